// Package sandbox holds the shared nouns: what a run is called, asks for,
// becomes and leaves behind, and the one table of its states.
//
// A request is never edited on its way. Each stage wraps it in a richer value:
//
//	Request → Resolved → Admitted → Assignment → ExitRecord
//
// Record is all of it together, as the ledger keeps it and users read it.
// The package imports nothing of this module, so that everything may import it.
package sandbox
