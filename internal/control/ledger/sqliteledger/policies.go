package sqliteledger

import (
	"context"
	"math"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// ActivatePolicy implements ledger.Policies.
func (l *Ledger) ActivatePolicy(ctx context.Context, p ledger.Policy, before string, audit sandbox.AuditEntry) (activated bool, err error) {
	if err := ledger.CheckPolicy(p); err != nil {
		return false, err
	}
	err = l.step(ctx, func(t *txn) error {
		last, err := t.activePolicy()
		switch {
		case err != nil:
			return err
		case last.Version == p.Version:
			return nil
		case last.Version != before:
			return ledger.ErrPolicyBefore()
		}
		if err := t.exec(sqlReplacePolicy, last.Version, p.ActivatedAt); err != nil {
			return err
		}
		if err := t.exec(sqlPutPolicy, p.Version, p.Text, p.Origin, last.Seq+1, p.ActivatedAt); err != nil {
			return err
		}
		t.changed, activated = true, true
		return t.audit(audit)
	})
	return activated && err == nil, err
}

// ActivePolicy implements ledger.Policies.
func (l *Ledger) ActivePolicy(ctx context.Context) (p ledger.Policy, err error) {
	err = l.read(ctx, func(c *conn) error {
		p, err = c.activePolicy()
		if err == nil && p.Version == "" {
			err = ledger.ErrNoPolicy()
		}
		return err
	})
	return p, err
}

// activePolicy is the zero value if there is none.
func (c *conn) activePolicy() (p ledger.Policy, err error) {
	_, err = c.first(func(s *sqlite3.Stmt) error {
		p = policyOf(s)
		p.Text = s.ColumnText(6)
		return nil
	}, sqlActivePolicy)
	return p, err
}

// Policy implements ledger.Policies.
func (l *Ledger) Policy(ctx context.Context, version string) (p ledger.Policy, err error) {
	err = l.read(ctx, func(c *conn) error {
		found := 0
		if err := c.query(func(s *sqlite3.Stmt) error {
			if found++; found == 1 {
				p = policyOf(s)
				p.Text = s.ColumnText(6)
			}
			return nil
		}, sqlPolicy, version); err != nil {
			return err
		}
		switch {
		case found == 0 || version == "":
			return ledger.ErrNoPolicy()
		case found > 1 && p.Version != version:
			return ledger.ErrManyPolicies()
		}
		return nil
	})
	if err != nil {
		return ledger.Policy{}, err
	}
	return p, nil
}

// ListPolicies implements ledger.Policies.
func (l *Ledger) ListPolicies(ctx context.Context, q ledger.PolicyQuery) (out []ledger.Policy, err error) {
	before := q.Before
	if before == 0 {
		before = math.MaxInt64
	}
	err = l.read(ctx, func(c *conn) error {
		return c.query(func(s *sqlite3.Stmt) error {
			out = append(out, policyOf(s))
			return nil
		}, sqlPolicies, before, ledger.PageSize(q.Limit))
	})
	return out, err
}

// policyOf reads sqlPolicyColumns.
func policyOf(s *sqlite3.Stmt) ledger.Policy {
	return ledger.Policy{
		Version: s.ColumnText(0), Origin: s.ColumnText(1), Seq: s.ColumnInt64(2),
		ActivatedAt: instant(s.ColumnInt64(3)), ReplacedAt: instant(s.ColumnInt64(4)), Bytes: s.ColumnInt(5),
	}
}
