package sqliteledger

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// audit appends an entry to the chain.
func (t *txn) audit(a sandbox.AuditEntry) error {
	head, err := t.auditHead()
	if err != nil {
		return err
	}
	a.Seq, a.PrevDigest = head.Seq+1, head.Digest
	a.Tenant = strings.ToValidUTF8(a.Tenant, "\uFFFD") // as in its text
	doc, err := ledger.AuditText(a)
	if err != nil {
		return err
	}
	t.changed = true
	return t.exec(sqlInsertAudit, a.Seq, a.Tenant, document(doc))
}

func (c *conn) auditHead() (h ledger.AuditHead, err error) {
	_, err = c.first(func(s *sqlite3.Stmt) error {
		h = ledger.AuditHead{Seq: s.ColumnInt64(0), Digest: ledger.DigestOf(s.ColumnRawText(1))}
		return nil
	}, sqlAuditTail)
	return h, err
}

// AuditHead implements ledger.Audits.
func (l *Ledger) AuditHead(ctx context.Context) (h ledger.AuditHead, err error) {
	err = l.read(ctx, func(c *conn) error {
		h, err = c.auditHead()
		return err
	})
	return h, err
}

// errEnough ends a query whose reader has what it wants.
var errEnough = errors.New("enough")

// AuditEntries implements ledger.Audits. Entries are found by seq and tenant;
// what else is asked for is looked up in each.
func (l *Ledger) AuditEntries(ctx context.Context, q ledger.AuditQuery) (out []sandbox.AuditEntry, err error) {
	sql, args := sqlAudit, []any{q.After}
	if q.Tenant != "" {
		sql, args = sqlAuditOfTenant, append(args, q.Tenant)
	}
	err = l.read(ctx, func(c *conn) error {
		err := c.query(func(s *sqlite3.Stmt) error {
			var a sandbox.AuditEntry
			if err := parse(s, 0, &a); err != nil || !q.Selects(a) {
				return err
			}
			if out = append(out, a); len(out) == ledger.PageSize(q.Limit) {
				return errEnough
			}
			return nil
		}, sql, args...)
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	return out, err
}

// AuditRows implements ledger.Audits.
func (l *Ledger) AuditRows(ctx context.Context, after int64, limit int) (out []ledger.AuditRow, err error) {
	err = l.read(ctx, func(c *conn) error {
		return c.query(func(s *sqlite3.Stmt) error {
			out = append(out, ledger.AuditRow{Seq: s.ColumnInt64(0), Tenant: s.ColumnText(1), Text: bytes.Clone(s.ColumnRawText(2))})
			return nil
		}, sqlAuditRows, after, ledger.PageSize(limit))
	})
	return out, err
}
