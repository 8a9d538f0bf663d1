// Package clotho is the intake of the scheduler: it takes the next request
// off the queue, and lets through only what a verdict of ours stands behind.
package clotho

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// Queue is where requests come from.
type Queue interface {
	Next(ctx context.Context) (ledger.Claim, error)
}

// Verdicts checks signatures.
type Verdicts interface {
	OpenVerdict(b []byte, now time.Time) (seal.Verdict, sandbox.Digest, error)
}

// Intake takes requests off the queue.
type Intake struct {
	Queue    Queue
	Verdicts Verdicts
	Clock    func() time.Time
}

// Thread is a request taken in. Want is what was signed: the record beside it
// is for showing, and is not believed.
type Thread struct {
	Claim ledger.Claim
	Want  sandbox.Resolved
}

// ErrUnsigned marks a claimed request whose verdict does not hold: whoever
// could write the queue wrote it, or it waited longer than its verdict lives.
var ErrUnsigned = errors.New("its verdict does not hold")

// Next waits for the next request. With ErrUnsigned the Thread's claim is set
// and held: the caller ends it.
func (in *Intake) Next(ctx context.Context) (Thread, error) {
	c, err := in.Queue.Next(ctx)
	if err != nil {
		return Thread{}, err
	}
	rec := c.Admitted.Record
	v, digest, err := in.Verdicts.OpenVerdict(c.Admitted.Verdict, in.Clock())
	switch {
	case err != nil:
		return Thread{Claim: c}, fmt.Errorf("taking in %s: %w: %w", rec.ID, ErrUnsigned, err)
	case v.Sandbox != rec.ID || v.Tenant != rec.Tenant || digest != rec.Verdict.Digest:
		return Thread{Claim: c}, fmt.Errorf("taking in %s: %w: it is of another request", rec.ID, ErrUnsigned)
	}
	return Thread{Claim: c, Want: v.Request}, nil
}
