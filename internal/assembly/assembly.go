// Package assembly is the one place that puts the parts together: which back
// end stands behind which seam, in which order services start, and where their
// files are.
//
// It has two sizes of the embedded form: Up, a server, and Local, everything
// for one command in its own process. Both are the same parts in the same
// order; they differ in their folder, their lifeline and who may reach them.
package assembly
