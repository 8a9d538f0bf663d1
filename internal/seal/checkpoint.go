package seal

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Checkpoint says where an audit log stood at a time. Kept where the log's
// writer cannot change it, it tells later whether the log was rewritten.
type Checkpoint struct {
	Version int            `json:"version"` // set by SignCheckpoint
	Writer  string         `json:"writer"`  // whose log it is
	Count   int64          `json:"count"`   // of the entries that there were, at least one
	Head    sandbox.Digest `json:"head"`    // of the last of them
	Time    time.Time      `json:"time"`
}

// checkpointLine is a checkpoint as sinks keep it: the parts of an envelope as
// one line of JSON, so that people and programs can read them.
type checkpointLine struct {
	Checkpoint json.RawMessage `json:"checkpoint"` // the payload
	KeyID      string          `json:"key_id"`
	Signature  []byte          `json:"signature"`
}

// SignCheckpoint makes the line that is kept, without an end of line.
func (k *Key) SignCheckpoint(c Checkpoint) ([]byte, error) {
	c.Version, c.Time = FormatVersion, plainTime(c.Time)
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	b, err := k.seal(checkpointDomain, c)
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	return json.Marshal(checkpointLine{
		Checkpoint: b[headerLen:], KeyID: k.id, Signature: b[len(magic)+keyIDLen : headerLen],
	})
}

// OpenCheckpoint checks a line that was kept and returns what it says. Errors
// are of kind PolicyDenied.
func (r *Ring) OpenCheckpoint(line []byte) (Checkpoint, error) {
	var l checkpointLine
	if len(line) > MaxEnvelope {
		return Checkpoint{}, refuse("checkpoint", errors.New("it is too long"))
	}
	if err := decodeStrict(line, &l); err != nil {
		return Checkpoint{}, refuse("checkpoint", err)
	}
	if len(l.KeyID) != keyIDLen || len(l.Signature) != ed25519.SignatureSize { // else another line would be the same envelope
		return Checkpoint{}, refuse("checkpoint", errors.New("its key ID or signature has another length"))
	}
	envelope := append([]byte(magic+l.KeyID), l.Signature...)
	_, payload, err := r.open(checkpointDomain, append(envelope, l.Checkpoint...))
	if err != nil {
		return Checkpoint{}, refuse("checkpoint", err)
	}
	var c Checkpoint
	if err := decodeStrict(payload, &c); err != nil {
		return Checkpoint{}, refuse("checkpoint", err)
	}
	if err := c.check(); err != nil {
		return Checkpoint{}, refuse("checkpoint", err)
	}
	return c, nil
}

func (c *Checkpoint) check() error {
	switch {
	case c.Version != FormatVersion:
		return fmt.Errorf("its version %d is not %d", c.Version, FormatVersion)
	case c.Writer == "":
		return errors.New("it names no writer")
	case c.Count < 1 || !c.Head.Valid():
		return errors.New("it names no entry")
	}
	return nil
}
