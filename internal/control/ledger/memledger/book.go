package memledger

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgerstep"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Place implements ledger.Placements.
func (l *Ledger) Place(ctx context.Context, c ledger.Claim, node string, epoch int64, now time.Time) (a sandbox.Assignment, err error) {
	err = l.take(ctx, c.Admitted.Record.ID, func(r *row) (err error) {
		b := ledgerstep.Bind{Node: l.node(node), Usage: l.usage(r.entry.Record.Tenant), Epoch: epoch}
		if b.Node.ID == "" {
			return ledger.ErrNoNode(node)
		}
		a, err = r.entry.Place(c, b, r.limits, now)
		return err
	})
	return a, err
}

// Requeue implements ledger.Placements.
func (l *Ledger) Requeue(ctx context.Context, a sandbox.Assignment, notBefore time.Time, reason string) error {
	return l.take(ctx, a.Sandbox, func(r *row) error { return r.entry.Requeue(a, notBefore, reason) })
}

// Accept implements ledger.Placements.
func (l *Ledger) Accept(ctx context.Context, a sandbox.Assignment, now time.Time) error {
	return l.take(ctx, a.Sandbox, func(r *row) error { return r.entry.Accept(a, l.nodes[a.Node].Epoch, now) })
}

// Advance implements ledger.Placements.
func (l *Ledger) Advance(ctx context.Context, a sandbox.Assignment, p sandbox.Progress) error {
	return l.take(ctx, a.Sandbox, func(r *row) error { return r.entry.Advance(a, l.nodes[a.Node].Epoch, p) })
}

// End implements ledger.Placements.
func (l *Ledger) End(ctx context.Context, a sandbox.Assignment, end sandbox.End) (sandbox.Record, error) {
	return l.takeRecord(ctx, a.Sandbox, func(r *row) error { return r.entry.End(a, end) })
}

// Kill implements ledger.Placements.
func (l *Ledger) Kill(ctx context.Context, id sandbox.ID, cause sandbox.Cause, now time.Time, audit sandbox.AuditEntry) (sandbox.Record, error) {
	return l.takeRecord(ctx, id, func(r *row) error {
		if err := r.entry.Kill(cause, now); err != nil {
			return err
		}
		return l.append(audit)
	})
}

// Get implements ledger.Book.
func (l *Ledger) Get(ctx context.Context, id sandbox.ID) (rec sandbox.Record, err error) {
	err = l.read(ctx, func() error {
		r, err := l.row(id)
		if err != nil {
			return err
		}
		rec, err = clone(r.entry.Record)
		return err
	})
	return rec, err
}

// Admitted implements ledger.Book.
func (l *Ledger) Admitted(ctx context.Context, id sandbox.ID) (a sandbox.Admitted, err error) {
	err = l.read(ctx, func() error {
		r, err := l.row(id)
		if err != nil {
			return err
		}
		if !r.entry.Record.State.Live() {
			return ledger.ErrEnded(id)
		}
		a, err = r.admitted()
		return err
	})
	return a, err
}

// List implements ledger.Book.
func (l *Ledger) List(ctx context.Context, q ledger.Query) (p ledger.Page, err error) {
	err = l.read(ctx, func() error {
		var found []*row
		for id, r := range l.rows {
			if (q.Before == "" || id < q.Before) && matches(q, &r.entry.Record) {
				found = append(found, r)
			}
		}
		slices.SortFunc(found, func(a, b *row) int {
			return strings.Compare(string(b.entry.Record.ID), string(a.entry.Record.ID))
		})
		if n := ledger.PageSize(q.Limit); len(found) > n {
			found, p.More = found[:n], true
		}
		for _, r := range found {
			rec, err := clone(r.entry.Record)
			if err != nil {
				return err
			}
			p.Records = append(p.Records, rec)
		}
		return nil
	})
	return p, err
}

func matches(q ledger.Query, rec *sandbox.Record) bool {
	for k, v := range q.Labels {
		if have, ok := rec.Request.Labels[k]; !ok || have != v {
			return false
		}
	}
	return (q.Tenant == "" || rec.Tenant == q.Tenant) &&
		(q.Node == "" || rec.Node == q.Node) &&
		(len(q.States) == 0 || slices.Contains(q.States, rec.State))
}

// Events implements ledger.Book.
func (l *Ledger) Events(ctx context.Context, id sandbox.ID, after int64) (out []sandbox.Event, err error) {
	err = l.read(ctx, func() error {
		r, err := l.row(id)
		if err != nil {
			return err
		}
		for _, e := range r.events {
			if e.Seq > after {
				out = append(out, e)
			}
		}
		return nil
	})
	return out, err
}

// Watch implements ledger.Book.
func (l *Ledger) Watch(ctx context.Context) <-chan struct{} { return l.hub.Watch(ctx) }

// Live implements ledger.Book.
func (l *Ledger) Live(ctx context.Context) (map[sandbox.State]int, error) {
	out := map[sandbox.State]int{}
	for _, s := range sandbox.States() {
		if s.State.Live() {
			out[s.State] = 0
		}
	}
	err := l.read(ctx, func() error {
		for _, r := range l.rows {
			if s := r.entry.Record.State; s.Live() {
				out[s]++
			}
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
	err = l.read(ctx, func() error {
		out = map[string]ledger.Usage{}
		for _, r := range l.rows {
			if rec := &r.entry.Record; rec.State.Live() && (len(tenants) == 0 || slices.Contains(tenants, rec.Tenant)) {
				out[rec.Tenant] = ledger.Usage{}
			}
		}
		for t := range out {
			out[t] = l.usage(t)
		}
		return nil
	})
	return out, err
}

// Join implements ledger.Book.
func (l *Ledger) Join(ctx context.Context, node sandbox.Node) (epoch int64, err error) {
	err = l.step(ctx, func() (bool, error) {
		n, err := clone(node)
		if err != nil {
			return false, err
		}
		if n.ID == "" {
			return false, ledger.ErrNodeID()
		}
		n.Epoch, n.InUse = l.nodes[n.ID].Epoch+1, sandbox.Capacity{}
		l.nodes[n.ID] = n
		epoch = n.Epoch
		return true, nil
	})
	return epoch, err
}

// Nodes implements ledger.Book.
func (l *Ledger) Nodes(ctx context.Context) (out []sandbox.Node, err error) {
	err = l.read(ctx, func() error {
		for _, id := range slices.Sorted(maps.Keys(l.nodes)) {
			n, err := clone(l.node(id))
			if err != nil {
				return err
			}
			out = append(out, n)
		}
		return nil
	})
	return out, err
}

// AuditEntries implements ledger.Audits.
func (l *Ledger) AuditEntries(ctx context.Context, q ledger.AuditQuery) (out []sandbox.AuditEntry, err error) {
	err = l.read(ctx, func() error {
		for _, a := range l.audit {
			if !q.Selects(a) {
				continue
			}
			if len(out) == ledger.PageSize(q.Limit) {
				return nil
			}
			c, err := clone(a)
			if err != nil {
				return err
			}
			out = append(out, c)
		}
		return nil
	})
	return out, err
}

// AuditRows implements ledger.Audits.
func (l *Ledger) AuditRows(ctx context.Context, after int64, limit int) (out []ledger.AuditRow, err error) {
	err = l.read(ctx, func() error {
		from := min(max(after, 0), int64(len(l.audit)))
		to := min(from+int64(ledger.PageSize(limit)), int64(len(l.audit)))
		for _, a := range l.audit[from:to] {
			text, err := ledger.AuditText(a)
			if err != nil {
				return err
			}
			out = append(out, ledger.AuditRow{Seq: a.Seq, Tenant: a.Tenant, Text: text})
		}
		return nil
	})
	return out, err
}

// AuditHead implements ledger.Audits.
func (l *Ledger) AuditHead(ctx context.Context) (h ledger.AuditHead, err error) {
	err = l.read(ctx, func() error {
		if n := len(l.audit); n > 0 {
			h.Seq = l.audit[n-1].Seq
			h.Digest, err = ledger.AuditDigest(l.audit[n-1])
		}
		return err
	})
	return h, err
}

// Prune implements ledger.Book.
func (l *Ledger) Prune(ctx context.Context, keep ledger.Retention, now time.Time) (removed int, err error) {
	err = l.step(ctx, func() (bool, error) {
		var ended []*row
		for _, r := range l.rows {
			if !r.entry.Record.State.Live() {
				ended = append(ended, r)
			}
		}
		slices.SortFunc(ended, func(a, b *row) int { // the last to end first
			return cmp.Or(b.entry.Record.EndedAt.Compare(a.entry.Record.EndedAt),
				strings.Compare(string(b.entry.Record.ID), string(a.entry.Record.ID)))
		})
		for i, r := range ended {
			old := keep.Age > 0 && r.entry.Record.EndedAt.Before(now.Add(-keep.Age))
			if old || keep.Count > 0 && i >= keep.Count {
				delete(l.rows, r.entry.Record.ID)
				removed++
			}
		}
		maps.DeleteFunc(l.keys, func(_ keyName, k keyRow) bool { return !k.expires.After(now) })
		l.prunePolicies(now)
		return removed > 0, nil
	})
	return removed, err
}

// PutToken implements ledger.Tokens.
func (l *Ledger) PutToken(ctx context.Context, t ledger.Token) error {
	return l.step(ctx, func() (bool, error) {
		t, err := clone(t)
		if err != nil {
			return false, err
		}
		if err := ledger.CheckToken(t); err != nil {
			return false, err
		}
		for _, have := range l.tokens {
			if have.ID == t.ID || have.Hash == t.Hash {
				return false, ledger.SameToken(have, t)
			}
		}
		l.tokens[t.ID] = t
		return true, nil
	})
}

// TokenByHash implements ledger.Tokens.
func (l *Ledger) TokenByHash(ctx context.Context, hash [32]byte) (t ledger.Token, err error) {
	err = l.read(ctx, func() error {
		for _, have := range l.tokens {
			if have.Hash == hash {
				t, err = clone(have)
				return err
			}
		}
		return ledger.ErrNoToken()
	})
	return t, err
}

// ListTokens implements ledger.Tokens.
func (l *Ledger) ListTokens(ctx context.Context, tenant string) (out []ledger.Token, err error) {
	err = l.read(ctx, func() error {
		for _, have := range l.tokens {
			if tenant != "" && have.Tenant != tenant {
				continue
			}
			t, err := clone(have)
			if err != nil {
				return err
			}
			out = append(out, t)
		}
		slices.SortFunc(out, func(a, b ledger.Token) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
		})
		return nil
	})
	return out, err
}

// RevokeToken implements ledger.Tokens.
func (l *Ledger) RevokeToken(ctx context.Context, id string, at time.Time) error {
	return l.step(ctx, func() (bool, error) {
		t, ok := l.tokens[id]
		if !ok {
			return false, ledger.ErrNoToken()
		}
		if !t.RevokedAt.IsZero() {
			return false, nil
		}
		t.RevokedAt = at.UTC().Round(0)
		l.tokens[id] = t
		return true, nil
	})
}

// TouchTokens implements ledger.Tokens.
func (l *Ledger) TouchTokens(ctx context.Context, used map[string]time.Time) error {
	return l.step(ctx, func() (bool, error) {
		for id, at := range used {
			if t, ok := l.tokens[id]; ok && at.After(t.LastUsedAt) {
				t.LastUsedAt = at.UTC().Round(0)
				l.tokens[id] = t
			}
		}
		return false, nil // nobody waits for it
	})
}
