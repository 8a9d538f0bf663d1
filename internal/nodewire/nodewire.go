// Package nodewire is the translation between the nouns and the messages that
// control plane and nodes exchange.
//
// The nouns travel as JSON in the bytes fields of tartarus.node.v1. Both sides
// use the functions here, so that what one writes the other reads: decoding is
// strict (an unknown field, a second value or an ID of the wrong form is an
// error) and bounded. Errors travel as gRPC statuses (StatusOf, FromStatus).
package nodewire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// MaxNounBytes bounds the JSON of one noun. Secrets and verdicts travel in
// fields of their own and are not nouns.
const MaxNounBytes = 256 << 10

// EncodeNode writes what a node says of itself when it joins.
func EncodeNode(n sandbox.Node) ([]byte, error) { return encode("node", n) }

// DecodeNode reads what EncodeNode wrote.
func DecodeNode(b []byte) (sandbox.Node, error) { return decode[sandbox.Node]("node", b) }

// EncodeProgress writes what a node tells of a live sandbox.
func EncodeProgress(p sandbox.Progress) ([]byte, error) { return encode("progress", p) }

// DecodeProgress reads what EncodeProgress wrote. The state is checked: a node
// may tell of Running and Stopping only, and of causes of the table only.
func DecodeProgress(b []byte) (sandbox.Progress, error) {
	p, err := decode[sandbox.Progress]("progress", b)
	if err != nil {
		return sandbox.Progress{}, err
	}
	return p, checkProgress(p)
}

// EncodeEnd writes how a sandbox ended.
func EncodeEnd(e sandbox.End) ([]byte, error) { return encode("end", e) }

// DecodeEnd reads what EncodeEnd wrote. Cause and log digest are checked.
func DecodeEnd(b []byte) (sandbox.End, error) {
	e, err := decode[sandbox.End]("end", b)
	if err != nil {
		return sandbox.End{}, err
	}
	if !e.Exit.Cause.Valid() {
		return sandbox.End{}, malformed("end", "its cause is not one of the table")
	}
	if e.LogDigest != "" && !e.LogDigest.Valid() {
		return sandbox.End{}, malformed("end", "its log digest has not the form of one")
	}
	return e, checkProgress(e.Progress)
}

func checkProgress(p sandbox.Progress) error {
	if p.State != "" && p.State != sandbox.Running && p.State != sandbox.Stopping {
		return malformed("progress", "a node cannot bring a sandbox into that state")
	}
	if p.Cause != "" && !p.Cause.Valid() {
		return malformed("progress", "its cause is not one of the table")
	}
	return nil
}

// EncodeAssignment makes the message of an assignment.
func EncodeAssignment(a sandbox.Assignment) *nodev1.Assignment {
	return &nodev1.Assignment{Sandbox: string(a.Sandbox), Attempt: int32(a.Attempt), Node: a.Node, Epoch: a.Epoch}
}

// DecodeAssignment reads the message of an assignment. One without a valid
// sandbox, attempt and node is refused.
func DecodeAssignment(m *nodev1.Assignment) (sandbox.Assignment, error) {
	a := sandbox.Assignment{
		Sandbox: sandbox.ID(m.GetSandbox()), Attempt: int(m.GetAttempt()),
		Node: m.GetNode(), Epoch: m.GetEpoch(),
	}
	switch {
	case !a.Sandbox.Valid():
		return sandbox.Assignment{}, malformed("assignment", "its sandbox has not the form of an ID")
	case a.Attempt < 1:
		return sandbox.Assignment{}, malformed("assignment", "it has no attempt")
	case a.Node == "":
		return sandbox.Assignment{}, malformed("assignment", "it has no node")
	}
	return a, nil
}

func encode[T any](what string, v T) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "encoding the %s failed", what)
	}
	if len(b) > MaxNounBytes {
		return nil, fault.New(fault.TooLarge, "the %s takes %d bytes, more than %d", what, len(b), MaxNounBytes)
	}
	return b, nil
}

func decode[T any](what string, b []byte) (T, error) {
	var v, none T
	if len(b) > MaxNounBytes {
		return none, fault.New(fault.TooLarge, "the %s takes %d bytes, more than %d", what, len(b), MaxNounBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return none, fault.Wrap(fault.InvalidArgument, err, "the %s cannot be read", what)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return none, malformed(what, "more follows its end")
	}
	return v, nil
}

func malformed(what, why string) error {
	return fault.Invalid(what, "control plane and nodes must be of the same version", "the %s is malformed: %s", what, why)
}
