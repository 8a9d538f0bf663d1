package olympus

import (
	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Form is the API's JSON for those inside who write it in files: what they
// wrote is read as a caller's request is.
type Form struct{}

// Request reads the body of a POST /sandbox/run.
func (Form) Request(body []byte) (sandbox.Request, error) {
	in := &apiv1.RunRequest{}
	if err := decodeJSON(body, in); err != nil {
		return sandbox.Request{}, err
	}
	return requestOf(in)
}

// Resolved reads a part of a record's request, and returns it as a record
// would show it, with all that is left out at zero.
func (Form) Resolved(body []byte) ([]byte, error) {
	in := &apiv1.ResolvedRequest{}
	if err := decodeJSON(body, in); err != nil {
		return nil, err
	}
	return marshalJSON(in)
}

// Show is a resolved request as a record shows it.
func (Form) Show(r sandbox.Resolved) ([]byte, error) { return marshalJSON(resolvedOf(r)) }
