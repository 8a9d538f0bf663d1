package memledger

import (
	"context"
	"slices"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgerstep"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Claim implements ledger.Queue.
func (l *Ledger) Claim(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (ledger.Claim, bool, error) {
	return l.claim(ctx, owner, now, lease, func() *row {
		return l.next(skip, func(t ledgerstep.Turn) bool { return !t.ReadyAt().After(now) })
	})
}

// ClaimEarly implements ledger.Queue.
func (l *Ledger) ClaimEarly(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (ledger.Claim, bool, error) {
	return l.claim(ctx, owner, now, lease, func() *row {
		return l.next(skip, func(t ledgerstep.Turn) bool { return !t.Until.After(now) })
	})
}

// ClaimOverdue implements ledger.Queue.
func (l *Ledger) ClaimOverdue(ctx context.Context, owner string, now time.Time, lease time.Duration) (ledger.Claim, bool, error) {
	return l.claim(ctx, owner, now, lease, func() *row {
		var first *row
		for _, r := range l.queued() {
			at := r.entry.OverdueAt()
			if at.IsZero() || at.After(now) {
				continue
			}
			if first == nil || r.entry.Deadline().Before(first.entry.Deadline()) {
				first = r
			}
		}
		return first
	})
}

// next is the request whose turn it is, among those that offered says are.
func (l *Ledger) next(skip []string, offered func(ledgerstep.Turn) bool) *row {
	var best *row
	var bestRunning int
	seen := map[string]bool{}
	for _, r := range l.queued() { // so the first of a tenant is its oldest
		tenant := r.entry.Record.Tenant
		if seen[tenant] || slices.Contains(skip, tenant) || !offered(r.entry.Turn) {
			continue
		}
		seen[tenant] = true
		running := l.usage(tenant).Running
		if best == nil || running < bestRunning ||
			running == bestRunning && l.served[tenant] < l.served[best.entry.Record.Tenant] {
			best, bestRunning = r, running
		}
	}
	return best
}

func (l *Ledger) claim(ctx context.Context, owner string, now time.Time, lease time.Duration, pick func() *row) (c ledger.Claim, ok bool, err error) {
	err = l.step(ctx, func() (bool, error) {
		if err := ledger.CheckClaim(owner, lease); err != nil {
			return false, err
		}
		r := pick()
		if r == nil {
			return false, nil
		}
		a, err := r.admitted()
		if err != nil {
			return false, err
		}
		r.entry.Claim(owner, now, lease)
		l.turn++
		l.served[r.entry.Record.Tenant] = l.turn
		t := r.entry.Turn
		c, ok = ledger.Claim{Admitted: a, Owner: t.Owner, Token: t.Token, Until: t.Until, Waiting: t.Waiting}, true
		c.Waiting.Reasons = slices.Clone(t.Waiting.Reasons)
		return l.keep(r)
	})
	return c, ok, err
}

// Release implements ledger.Queue.
func (l *Ledger) Release(ctx context.Context, c ledger.Claim, notBefore time.Time, waiting ledger.Waiting) error {
	return l.take(ctx, c.Admitted.Record.ID, func(r *row) error { return r.entry.Release(c, notBefore, waiting) })
}

// Drop implements ledger.Queue.
func (l *Ledger) Drop(ctx context.Context, c ledger.Claim, end sandbox.End) (sandbox.Record, error) {
	return l.takeRecord(ctx, c.Admitted.Record.ID, func(r *row) error { return r.entry.Drop(c, end) })
}

// Due implements ledger.Queue.
func (l *Ledger) Due(ctx context.Context, skip []string) (d ledger.Due, err error) {
	err = l.read(ctx, func() error {
		first := time.Time{}
		for _, r := range l.queued() {
			at := r.entry.Turn.ReadyAt()
			if at.IsZero() {
				at = time.Unix(0, 0).UTC() // long since, but not never
			}
			if !slices.Contains(skip, r.entry.Record.Tenant) && (first.IsZero() || at.Before(first)) {
				first = at
			}
			if o := r.entry.OverdueAt(); !o.IsZero() && (d.Overdue.IsZero() || o.Before(d.Overdue)) {
				d.Overdue = o
			}
		}
		d.Offer = first
		for _, r := range l.rows {
			if r.entry.Record.State.OnNode() {
				d.OnNodes++
			}
		}
		for _, n := range l.nodes {
			d.Joins += n.Epoch
		}
		return nil
	})
	return d, err
}

// Backlog implements ledger.Queue.
func (l *Ledger) Backlog(ctx context.Context, now time.Time) (b ledger.Backlog, err error) {
	err = l.read(ctx, func() error {
		for _, r := range l.queued() {
			switch t := r.entry.Turn; {
			case t.Until.After(now):
				b.Claimed++
			case t.NotBefore.After(now):
				b.Waiting++
			default:
				b.Ready++
			}
			if at := r.entry.Record.CreatedAt; b.Oldest.IsZero() || at.Before(b.Oldest) {
				b.Oldest = at
			}
		}
		return nil
	})
	return b, err
}
