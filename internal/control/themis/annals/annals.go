// Package annals is the history of policies: which text held from when on, and
// what changed with it.
package annals

import (
	"context"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/judges/aeacus"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Ledger is where they are kept.
type Ledger interface {
	ActivatePolicy(ctx context.Context, p ledger.Policy, before string, audit sandbox.AuditEntry) (activated bool, err error)
	ActivePolicy(ctx context.Context) (ledger.Policy, error)
}

// Annals writes down what holds. It may be used by many at once.
type Annals struct {
	ledger Ledger
	clock  func() time.Time
}

// New makes Annals on a ledger; clock is time.Now if nil.
func New(l Ledger, clock func() time.Time) *Annals {
	if clock == nil {
		clock = time.Now
	}
	return &Annals{ledger: l, clock: clock}
}

// tries bounds how often another server may come first.
const tries = 10

// Activate implements themis.Book: text, difference and audit entry are
// written in one step, and nothing if p held already.
func (a *Annals) Activate(ctx context.Context, p *themis.Policy, origin string) (err error) {
	for range tries {
		before, err := a.ledger.ActivePolicy(ctx)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if before.Version == p.Version() {
			return nil
		}
		now := a.clock()
		audit := aeacus.Activated(now, p.Version(), change(before, p, origin))
		_, err = a.ledger.ActivatePolicy(ctx, ledger.Policy{
			Version: p.Version(), Text: p.Text(), Origin: origin, ActivatedAt: now,
		}, before.Version, audit)
		if !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return fault.New(fault.Unavailable, "other servers activate policies all the time").
		WithHint("give all servers of a ledger the same policy")
}

func change(before ledger.Policy, p *themis.Policy, origin string) aeacus.Change {
	c := aeacus.Change{Origin: origin, Before: before.Version}
	if before.Version != "" {
		c.Difference, c.Added, c.Removed = Difference(before.Text, p.Text())
	}
	return c
}
