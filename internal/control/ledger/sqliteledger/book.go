package sqliteledger

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Get implements ledger.Book.
func (l *Ledger) Get(ctx context.Context, id sandbox.ID) (rec sandbox.Record, err error) {
	err = l.read(ctx, func(c *conn) error {
		rec, err = c.record(id)
		return err
	})
	return rec, err
}

// Admitted implements ledger.Book.
func (l *Ledger) Admitted(ctx context.Context, id sandbox.ID) (a sandbox.Admitted, err error) {
	err = l.read(ctx, func(c *conn) error {
		a, err = c.admitted(id)
		return err
	})
	return a, err
}

// List implements ledger.Book. Where states are asked for, each is a walk of
// its own along an index, and the walks are joined: a few live records are
// found at once among any number of ended ones.
func (l *Ledger) List(ctx context.Context, q ledger.Query) (p ledger.Page, err error) {
	states := slices.Compact(slices.Sorted(slices.Values(q.States)))
	if len(states) == 0 && (q.Tenant != "" || q.Node != "") {
		for _, s := range sandbox.States() {
			states = append(states, s.State)
		}
	}
	if len(states) == 0 {
		states = []sandbox.State{""}
	}
	labels, err := text(q.Labels)
	if err != nil {
		return p, err
	}
	n := ledger.PageSize(q.Limit)
	var found []sandbox.Record
	err = l.read(ctx, func(c *conn) error {
		for _, state := range states {
			if err := c.query(func(s *sqlite3.Stmt) error {
				var rec sandbox.Record
				err := parse(s, 0, &rec)
				found = append(found, rec)
				return err
			}, listSQL(q, state), q.Tenant, q.Node, string(state), string(q.Before), labels, n+1); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	slices.SortFunc(found, func(a, b sandbox.Record) int { return strings.Compare(string(b.ID), string(a.ID)) })
	if len(found) > n {
		found, p.More = found[:n], true
	}
	p.Records = found
	return p, nil
}

func listSQL(q ledger.Query, state sandbox.State) string {
	sql := sqlList
	for _, c := range []struct {
		on   bool
		cond string
	}{
		{q.Tenant != "", sqlListTenant}, {q.Node != "", sqlListNode}, {state != "", sqlListState},
		{q.Before != "", sqlListBefore}, {len(q.Labels) > 0, sqlListLabels},
	} {
		if c.on {
			sql += c.cond
		}
	}
	return sql + sqlListOrder
}

// Events implements ledger.Book.
func (l *Ledger) Events(ctx context.Context, id sandbox.ID, after int64) (out []sandbox.Event, err error) {
	err = l.read(ctx, func(c *conn) error {
		there, err := c.number(sqlExists, string(id))
		if err != nil {
			return err
		}
		if there == 0 {
			return ledger.ErrNoSandbox(id)
		}
		return c.query(func(s *sqlite3.Stmt) error {
			out = append(out, sandbox.Event{
				Seq: s.ColumnInt64(0), Time: instant(s.ColumnInt64(1)), State: sandbox.State(s.ColumnText(2)),
				Cause: sandbox.Cause(s.ColumnText(3)), Message: s.ColumnText(4),
			})
			return nil
		}, sqlEvents, string(id), after)
	})
	return out, err
}

// Live implements ledger.Book.
func (l *Ledger) Live(ctx context.Context) (map[sandbox.State]int, error) {
	out := map[sandbox.State]int{}
	err := l.read(ctx, func(c *conn) error {
		for _, s := range sandbox.States() {
			if !s.State.Live() {
				continue
			}
			n, err := c.number(sqlCountState, string(s.State))
			if err != nil {
				return err
			}
			out[s.State] = int(n)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Usage implements ledger.Book.
func (l *Ledger) Usage(ctx context.Context, tenants []string) (out map[string]ledger.Usage, err error) {
	err = l.read(ctx, func(c *conn) error {
		out = map[string]ledger.Usage{}
		if len(tenants) == 0 {
			if err := c.query(func(s *sqlite3.Stmt) error {
				tenants = append(tenants, s.ColumnText(0))
				return nil
			}, sqlLiveTenants); err != nil {
				return err
			}
		}
		for _, tenant := range tenants {
			u, err := c.usage(tenant)
			if err != nil {
				return err
			}
			if u.Live > 0 {
				out[tenant] = u
			}
		}
		return nil
	})
	return out, err
}

// Join implements ledger.Book.
func (l *Ledger) Join(ctx context.Context, node sandbox.Node) (epoch int64, err error) {
	if node.ID == "" {
		return 0, ledger.ErrNodeID()
	}
	err = l.step(ctx, func(t *txn) error {
		last, err := t.epoch(node.ID)
		if err != nil {
			return err
		}
		epoch = last + 1
		node.Epoch, node.InUse = epoch, sandbox.Capacity{}
		doc, err := text(node)
		if err != nil {
			return err
		}
		t.changed = true
		return t.exec(sqlPutNode, node.ID, epoch, doc)
	})
	if err != nil {
		return 0, err
	}
	return epoch, nil
}

// Nodes implements ledger.Book. What a node said when it joined is parsed but
// once: there may be thousands, and whoever places asks for all.
func (l *Ledger) Nodes(ctx context.Context) (out []sandbox.Node, err error) {
	err = l.read(ctx, func(c *conn) error {
		out = nil
		return c.query(func(s *sqlite3.Stmt) error {
			n, err := l.joined.parse(s)
			if err != nil {
				return err
			}
			n.InUse = inUse(s, 3)
			out = append(out, n)
			return nil
		}, sqlNodes)
	})
	return out, err
}

// joined holds nodes as they joined last.
type joined struct {
	mu   sync.Mutex
	byID map[string]sandbox.Node // guarded by mu
}

// parse reads id, epoch and doc of a row. What it returns shares maps and
// slices with what others get, who do not change them.
func (j *joined) parse(s *sqlite3.Stmt) (sandbox.Node, error) {
	id, epoch := s.ColumnText(0), s.ColumnInt64(1)
	j.mu.Lock()
	defer j.mu.Unlock()
	if n, ok := j.byID[id]; ok && n.Epoch == epoch {
		return n, nil
	}
	var n sandbox.Node
	if err := parse(s, 2, &n); err != nil {
		return n, err
	}
	n.Epoch = epoch
	j.byID[id] = n
	return n, nil
}

// node reads a node with what is in use of it; ErrNoNode if it never joined.
func (j *joined) node(c *conn, id string) (n sandbox.Node, err error) {
	found, err := c.first(func(s *sqlite3.Stmt) error {
		n, err = j.parse(s)
		n.InUse = inUse(s, 3)
		return err
	}, sqlNode, id)
	if err == nil && !found {
		err = ledger.ErrNoNode(id)
	}
	return n, err
}

// pruneAtOnce bounds what one transaction removes, so that other steps need
// not wait for a long one.
const pruneAtOnce = 200

// Prune implements ledger.Book. It is many steps, each of which is whole.
func (l *Ledger) Prune(ctx context.Context, keep ledger.Retention, now time.Time) (removed int, err error) {
	for {
		var n int64
		err := l.step(ctx, func(t *txn) (err error) {
			n, err = t.prune(keep, now)
			return err
		})
		if err != nil {
			return removed, err
		}
		removed += int(n)
		if n == 0 {
			return removed, l.step(ctx, func(t *txn) error {
				return errors.Join(t.exec(sqlDeleteKeys, now), t.exec(sqlPrunePolicies, now.Add(-ledger.PolicyGrace)))
			})
		}
	}
}

// prune removes a part and says how many records that were.
func (t *txn) prune(keep ledger.Retention, now time.Time) (int64, error) {
	var ids []string
	add := func(s *sqlite3.Stmt) error {
		ids = append(ids, s.ColumnText(0))
		return nil
	}
	if keep.Age > 0 {
		if err := t.query(add, sqlTooOld, now.Add(-keep.Age), pruneAtOnce); err != nil {
			return 0, err
		}
	}
	if keep.Count > 0 && len(ids) == 0 {
		if err := t.query(add, sqlTooMany, keep.Count, pruneAtOnce); err != nil {
			return 0, err
		}
	}
	for _, id := range ids {
		t.changed = true
		if err := t.exec(sqlDeleteEvents, id); err != nil {
			return 0, err
		}
		if err := t.exec(sqlDeleteRecord, id); err != nil {
			return 0, err
		}
	}
	return int64(len(ids)), nil
}
