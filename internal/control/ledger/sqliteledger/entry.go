package sqliteledger

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgerstep"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// load reads a sandbox for a step.
func (c *conn) load(id sandbox.ID) (*ledgerstep.Entry, error) {
	e := &ledgerstep.Entry{}
	found, err := c.first(func(s *sqlite3.Stmt) error {
		e.Seq = s.ColumnInt64(1)
		if s.ColumnType(2) != sqlite3.NULL {
			e.Turn.Owner = s.ColumnText(2)
			e.Turn.Token = s.ColumnInt64(3)
			e.Turn.ClaimedAt = instant(s.ColumnInt64(4))
			e.Turn.Until = instant(s.ColumnInt64(5))
			e.Turn.NotBefore = instant(s.ColumnInt64(6))
			if err := parse(s, 7, &e.Turn.Waiting); err != nil {
				return err
			}
		}
		return parse(s, 0, &e.Record)
	}, sqlEntry, string(id))
	if err == nil && !found {
		err = ledger.ErrNoSandbox(id)
	}
	return e, err
}

// save writes what a step made of a sandbox.
func (t *txn) save(e *ledgerstep.Entry) error {
	if !e.Changed {
		return nil
	}
	t.changed = true
	rec := &e.Record
	doc, err := text(rec)
	if err != nil {
		return err
	}
	if err := t.exec(sqlUpdateRecord, string(rec.ID), string(rec.State), rec.Node, rec.EndedAt, e.Seq, doc); err != nil {
		return err
	}
	if err := t.saveEvents(e); err != nil {
		return err
	}
	if rec.State.Live() {
		return t.saveTurn(e)
	}
	t.erased = true
	if err := t.exec(sqlDeleteLive, string(rec.ID)); err != nil {
		return err
	}
	return t.exec(sqlDeleteSealed, string(rec.ID))
}

// saveTurn writes a live sandbox's place in the queue or on a node, where the
// record itself has not changed.
func (t *txn) saveTurn(e *ledgerstep.Entry) error {
	t.changed = true
	waiting, err := text(e.Turn.Waiting)
	if err != nil {
		return err
	}
	u := e.Turn
	return t.exec(sqlUpdateLive, string(e.Record.ID), e.Record.Node, u.NotBefore, u.Owner, u.Token, u.ClaimedAt,
		u.Until, u.ReadyAt(), e.OverdueAt(), waiting)
}

func (t *txn) saveEvents(e *ledgerstep.Entry) error {
	if len(e.Events) > 0 {
		t.changes = append(t.changes, change{e.Record, e.Events})
	}
	for _, ev := range e.Events {
		if err := t.exec(sqlInsertEvent, string(e.Record.ID), ev.Seq, ev.Time, string(ev.State), string(ev.Cause), ev.Message); err != nil {
			return err
		}
	}
	return nil
}

// insert writes a new sandbox; a is only looked at if it is live.
func (t *txn) insert(e *ledgerstep.Entry, a sandbox.Admitted) error {
	rec := &e.Record
	taken, err := t.number(sqlExists, string(rec.ID))
	if err != nil {
		return err
	}
	if taken != 0 {
		return ledger.ErrTaken(rec.ID)
	}
	t.changed = true
	doc, err := text(rec)
	if err != nil {
		return err
	}
	if err := t.exec(sqlInsertRecord, string(rec.ID), rec.Tenant, string(rec.State), rec.Node, rec.EndedAt, e.Seq, doc,
		rec.Verdict.PolicyVersion); err != nil {
		return err
	}
	if err := t.saveEvents(e); err != nil || !rec.State.Live() {
		return err
	}
	res := rec.Request.Resources
	if err := t.exec(sqlInsertLive, string(rec.ID), rec.Tenant, res.VCPUs, res.MemoryMiB, res.DiskMiB, rec.CreatedAt, e.Deadline()); err != nil {
		return err
	}
	limits, err := text(a.Limits)
	if err != nil {
		return err
	}
	return t.exec(sqlInsertSealed, string(rec.ID), limits, a.Verdict, a.Secrets)
}

// record reads a record.
func (c *conn) record(id sandbox.ID) (rec sandbox.Record, err error) {
	found, err := c.first(func(s *sqlite3.Stmt) error { return parse(s, 0, &rec) }, sqlRecord, string(id))
	if err == nil && !found {
		err = ledger.ErrNoSandbox(id)
	}
	return rec, err
}

// admitted reads all that a live sandbox was admitted with.
func (c *conn) admitted(id sandbox.ID) (a sandbox.Admitted, err error) {
	if a.Record, err = c.record(id); err != nil {
		return a, err
	}
	return a, c.sealed(id, &a)
}

// sealed reads what a live sandbox was admitted with beside its record.
func (c *conn) sealed(id sandbox.ID, a *sandbox.Admitted) error {
	found, err := c.first(func(s *sqlite3.Stmt) error {
		a.Verdict = bytes.Clone(s.ColumnRawBlob(1))
		a.Secrets = bytes.Clone(s.ColumnRawBlob(2))
		return parse(s, 0, &a.Limits)
	}, sqlSealed, string(id))
	if err == nil && !found {
		err = ledger.ErrEnded(id)
	}
	return err
}

func (c *conn) usage(tenant string) (u ledger.Usage, err error) {
	_, err = c.first(func(s *sqlite3.Stmt) error {
		u = ledger.Usage{
			Live: s.ColumnInt(0), Running: s.ColumnInt(1), VCPUs: s.ColumnInt(2),
			MemoryMiB: s.ColumnInt64(3), DiskMiB: s.ColumnInt64(4),
		}
		return nil
	}, sqlUsage, tenant)
	return u, err
}

// inUse reads a row of node_use, from its running on; NULL is nothing.
func inUse(s *sqlite3.Stmt, col int) sandbox.Capacity {
	return sandbox.Capacity{
		VCPUs:     s.ColumnInt(col + 1),
		MemoryMiB: s.ColumnInt64(col+2) + s.ColumnInt64(col)*sandbox.VMOverheadMiB,
		DiskMiB:   s.ColumnInt64(col + 3),
	}
}

// epoch is a node's present one; 0 if it never joined.
func (c *conn) epoch(node string) (int64, error) { return c.number(sqlEpoch, node) }

// idList is ids for json_each.
func idList(ids []string) document {
	if len(ids) == 0 {
		return document("[]")
	}
	b, err := json.Marshal(ids)
	if err != nil { // strings cannot fail
		return document("[]")
	}
	return b
}

// ready is a time that Due tells: long since rather than never.
func ready(s *sqlite3.Stmt, col int) time.Time {
	if s.ColumnType(col) == sqlite3.NULL {
		return time.Time{}
	}
	return time.Unix(0, s.ColumnInt64(col)).UTC()
}
