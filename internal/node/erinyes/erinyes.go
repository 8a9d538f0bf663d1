// Package erinyes is the enforcement of limits: what its parts, alecto for
// time and tisiphone for memory, have to say of a sandbox.
//
// They give verdicts and never act. Whoever asked hands the verdict to
// thanatos, which is the one way to end a sandbox.
package erinyes

import "github.com/tartarus-vm/tartarus/internal/sandbox"

// Verdict says that a sandbox must end. The zero value lets it live.
type Verdict struct {
	Cause   sandbox.Cause
	Message string // for the record
}

// Guilty reports whether the sandbox must end.
func (v Verdict) Guilty() bool { return v.Cause != "" }
