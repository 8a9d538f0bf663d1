package sqliteledger

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgerstep"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// take lets one sandbox take a step, and returns what became of its record.
func (l *Ledger) take(ctx context.Context, id sandbox.ID, f func(t *txn, e *ledgerstep.Entry) error) (rec sandbox.Record, err error) {
	err = l.step(ctx, func(t *txn) error {
		e, err := t.load(id)
		if err != nil {
			return err
		}
		if err := f(t, e); err != nil {
			return err
		}
		rec = e.Record
		return t.save(e)
	})
	if err != nil {
		return sandbox.Record{}, err
	}
	return rec, nil
}

// Place implements ledger.Placements.
func (l *Ledger) Place(ctx context.Context, c ledger.Claim, node string, epoch int64, now time.Time) (a sandbox.Assignment, err error) {
	_, err = l.take(ctx, c.Admitted.Record.ID, func(t *txn, e *ledgerstep.Entry) error {
		b := ledgerstep.Bind{Epoch: epoch}
		var limits sandbox.Limits
		var err error
		if b.Node, err = l.joined.node(t.conn, node); err != nil {
			return err
		}
		if b.Usage, err = t.usage(e.Record.Tenant); err != nil {
			return err
		}
		if _, err = t.first(func(s *sqlite3.Stmt) error { return parse(s, 0, &limits) }, sqlLimits, string(e.Record.ID)); err != nil {
			return err
		}
		a, err = e.Place(c, b, limits, now)
		return err
	})
	if err != nil {
		return sandbox.Assignment{}, err
	}
	return a, nil
}

// Requeue implements ledger.Placements.
func (l *Ledger) Requeue(ctx context.Context, a sandbox.Assignment, notBefore time.Time, reason string) error {
	_, err := l.take(ctx, a.Sandbox, func(_ *txn, e *ledgerstep.Entry) error { return e.Requeue(a, notBefore, reason) })
	return err
}

// Accept implements ledger.Placements.
func (l *Ledger) Accept(ctx context.Context, a sandbox.Assignment, now time.Time) error {
	_, err := l.take(ctx, a.Sandbox, func(t *txn, e *ledgerstep.Entry) error {
		epoch, err := t.epoch(a.Node)
		if err != nil {
			return err
		}
		return e.Accept(a, epoch, now)
	})
	return err
}

// Advance implements ledger.Placements.
func (l *Ledger) Advance(ctx context.Context, a sandbox.Assignment, p sandbox.Progress) error {
	_, err := l.take(ctx, a.Sandbox, func(t *txn, e *ledgerstep.Entry) error {
		epoch, err := t.epoch(a.Node)
		if err != nil {
			return err
		}
		return e.Advance(a, epoch, p)
	})
	return err
}

// End implements ledger.Placements.
func (l *Ledger) End(ctx context.Context, a sandbox.Assignment, end sandbox.End) (sandbox.Record, error) {
	return l.take(ctx, a.Sandbox, func(_ *txn, e *ledgerstep.Entry) error { return e.End(a, end) })
}

// Kill implements ledger.Placements.
func (l *Ledger) Kill(ctx context.Context, id sandbox.ID, cause sandbox.Cause, now time.Time, audit sandbox.AuditEntry) (sandbox.Record, error) {
	return l.take(ctx, id, func(t *txn, e *ledgerstep.Entry) error {
		if err := e.Kill(cause, now); err != nil {
			return err
		}
		return t.audit(audit)
	})
}
