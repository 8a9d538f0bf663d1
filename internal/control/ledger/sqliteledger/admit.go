package sqliteledger

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgerstep"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Admit implements ledger.Admissions.
func (l *Ledger) Admit(ctx context.Context, a sandbox.Admitted, audit sandbox.AuditEntry, key ledger.IdempotencyKey) (rec sandbox.Record, created bool, err error) {
	err = l.step(ctx, func(t *txn) error {
		known, err := t.known(a.Record.Tenant, key, a.Record.CreatedAt)
		if err != nil {
			return err
		}
		if known != "" {
			rec, err = t.recordOfKey(known, key.Key)
			return err
		}
		if err := t.reserve.admits(); err != nil {
			return err
		}
		e, err := ledgerstep.Admit(a, audit)
		if err != nil {
			return err
		}
		live, err := t.number(sqlLiveCount, a.Record.Tenant)
		if err != nil {
			return err
		}
		if err := (ledger.Usage{Live: int(live)}).FitsLive(a.Limits); err != nil {
			return err
		}
		if err := t.insert(e, a); err != nil {
			return err
		}
		if key.Key != "" {
			if err := t.exec(sqlPutKey, a.Record.Tenant, key.Key, string(key.Hash), key.Expires, string(a.Record.ID)); err != nil {
				return err
			}
		}
		rec, created = e.Record, true
		return t.audit(audit)
	})
	if err != nil {
		return sandbox.Record{}, false, err
	}
	return rec, created, nil
}

// known is the sandbox that an unexpired key made; "" for none.
func (t *txn) known(tenant string, key ledger.IdempotencyKey, now time.Time) (id sandbox.ID, err error) {
	if key.Key == "" {
		return "", nil
	}
	_, err = t.first(func(s *sqlite3.Stmt) error {
		switch {
		case !instant(s.ColumnInt64(1)).After(now):
			return nil
		case s.ColumnText(0) != string(key.Hash):
			return ledger.ErrKeyOfAnother(key.Key)
		}
		id = sandbox.ID(s.ColumnText(2))
		return nil
	}, sqlKey, tenant, key.Key)
	return id, err
}

func (t *txn) recordOfKey(id sandbox.ID, key string) (sandbox.Record, error) {
	there, err := t.number(sqlExists, string(id))
	if err != nil {
		return sandbox.Record{}, err
	}
	if there == 0 {
		return sandbox.Record{}, ledger.ErrKeyOfRemoved(key)
	}
	return t.record(id)
}

// Refuse implements ledger.Admissions.
func (l *Ledger) Refuse(ctx context.Context, rec sandbox.Record, audit sandbox.AuditEntry) error {
	return l.step(ctx, func(t *txn) error {
		if err := t.reserve.admits(); err != nil {
			return err
		}
		e, err := ledgerstep.Refuse(rec, audit)
		if err != nil {
			return err
		}
		if err := t.insert(e, sandbox.Admitted{}); err != nil {
			return err
		}
		return t.audit(audit)
	})
}

// Audit implements ledger.Admissions.
func (l *Ledger) Audit(ctx context.Context, audit sandbox.AuditEntry) error {
	return l.step(ctx, func(t *txn) error { return t.audit(audit) })
}

// Claim implements ledger.Queue.
func (l *Ledger) Claim(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (ledger.Claim, bool, error) {
	return l.claim(ctx, claimant{owner, now, lease}, sqlNext, now, idList(skip))
}

// ClaimEarly implements ledger.Queue.
func (l *Ledger) ClaimEarly(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (ledger.Claim, bool, error) {
	return l.claim(ctx, claimant{owner, now, lease}, sqlNextEarly, now, idList(skip))
}

// ClaimOverdue implements ledger.Queue.
func (l *Ledger) ClaimOverdue(ctx context.Context, owner string, now time.Time, lease time.Duration) (ledger.Claim, bool, error) {
	return l.claim(ctx, claimant{owner, now, lease}, sqlNextOverdue, now)
}

type claimant struct {
	owner string
	now   time.Time
	lease time.Duration
}

// claim takes the sandbox whose ID sql finds.
func (l *Ledger) claim(ctx context.Context, who claimant, sql string, args ...any) (c ledger.Claim, ok bool, err error) {
	if err := ledger.CheckClaim(who.owner, who.lease); err != nil {
		return c, false, err
	}
	err = l.step(ctx, func(t *txn) error {
		var id sandbox.ID
		found, err := t.first(func(s *sqlite3.Stmt) error {
			id = sandbox.ID(s.ColumnText(0))
			return nil
		}, sql, args...)
		if err != nil || !found {
			return err
		}
		e, err := t.load(id)
		if err != nil {
			return err
		}
		a := sandbox.Admitted{Record: e.Record}
		if err := t.sealed(id, &a); err != nil {
			return err
		}
		e.Claim(who.owner, who.now, who.lease)
		c = ledger.Claim{Admitted: a, Owner: e.Turn.Owner, Token: e.Turn.Token, Until: e.Turn.Until, Waiting: e.Turn.Waiting}
		ok = true
		if err := t.exec(sqlServe, e.Record.Tenant); err != nil {
			return err
		}
		return t.saveTurn(e)
	})
	if err != nil {
		return ledger.Claim{}, false, err
	}
	return c, ok, nil
}

// Release implements ledger.Queue.
func (l *Ledger) Release(ctx context.Context, c ledger.Claim, notBefore time.Time, waiting ledger.Waiting) error {
	return l.step(ctx, func(t *txn) error {
		e, err := t.load(c.Admitted.Record.ID)
		if err != nil {
			return err
		}
		if err := e.Release(c, notBefore, waiting); err != nil {
			return err
		}
		return t.saveTurn(e)
	})
}

// Drop implements ledger.Queue.
func (l *Ledger) Drop(ctx context.Context, c ledger.Claim, end sandbox.End) (sandbox.Record, error) {
	return l.take(ctx, c.Admitted.Record.ID, func(_ *txn, e *ledgerstep.Entry) error { return e.Drop(c, end) })
}

// Due implements ledger.Queue.
func (l *Ledger) Due(ctx context.Context, skip []string) (d ledger.Due, err error) {
	err = l.read(ctx, func(c *conn) error {
		_, err := c.first(func(s *sqlite3.Stmt) error {
			d = ledger.Due{Offer: ready(s, 0), Overdue: ready(s, 1), OnNodes: s.ColumnInt(2), Joins: s.ColumnInt64(3)}
			return nil
		}, sqlDue, idList(skip))
		return err
	})
	return d, err
}

// Backlog implements ledger.Queue.
func (l *Ledger) Backlog(ctx context.Context, now time.Time) (b ledger.Backlog, err error) {
	err = l.read(ctx, func(c *conn) error {
		_, err := c.first(func(s *sqlite3.Stmt) error {
			b = ledger.Backlog{Ready: s.ColumnInt(0), Waiting: s.ColumnInt(1), Claimed: s.ColumnInt(2), Oldest: ready(s, 3)}
			return nil
		}, sqlBacklog, now)
		return err
	})
	return b, err
}
