// Package memledger is the ledger in memory: simple, under one lock, and the
// reference for the others.
//
// It is for tests and for runs whose state need not outlive the process.
package memledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgerstep"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Ledger keeps everything in memory. Make one with New.
type Ledger struct {
	hub ledger.Hub
	eye ledger.Observer // nil: none

	mu     sync.Mutex // guards all below; every step holds it from beginning to end
	closed bool
	rows   map[sandbox.ID]*row
	served map[string]int64 // by tenant: the turn at which Claim last served it
	turn   int64
	keys   map[keyName]keyRow
	nodes  map[string]sandbox.Node
	audit  []sandbox.AuditEntry
	tokens map[string]ledger.Token
	did    []change // by the step under way

	policies  map[string]ledger.Policy // by version
	policySeq int64                    // of the active one; 0 for none
}

// change is for the observer.
type change struct {
	rec    sandbox.Record
	events []sandbox.Event
}

var _ ledger.Ledger = (*Ledger)(nil)

// row is a sandbox with what only a live one has.
type row struct {
	entry   ledgerstep.Entry
	events  []sandbox.Event
	limits  sandbox.Limits
	verdict []byte
	secrets []byte
}

type keyName struct{ tenant, key string }

type keyRow struct {
	hash    sandbox.Digest
	expires time.Time
	id      sandbox.ID
}

// New makes an empty ledger.
func New() *Ledger {
	return &Ledger{
		rows:   map[sandbox.ID]*row{},
		served: map[string]int64{},
		keys:   map[keyName]keyRow{},
		nodes:  map[string]sandbox.Node{},
		tokens: map[string]ledger.Token{},

		policies: map[string]ledger.Policy{},
	}
}

// NewObserved makes an empty ledger that tells o what is done to it.
func NewObserved(o ledger.Observer) *Ledger {
	l := New()
	l.eye = o
	return l
}

// Close implements ledger.Ledger.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, r := range l.rows {
		r.erase()
	}
	return nil
}

// step runs f under the lock; watchers are told if it changed something.
func (l *Ledger) step(ctx context.Context, f func() (changed bool, err error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ledger.ErrClosed()
	}
	began := time.Now()
	changed, err := f()
	if changed {
		l.hub.Notify()
	}
	l.tell(changed, time.Since(began))
	return err
}

// tell tells the observer what the step did that held the lock.
func (l *Ledger) tell(changed bool, took time.Duration) {
	did := l.did
	l.did = nil
	if l.eye == nil || !changed {
		return
	}
	l.eye.Committed(1, took, nil)
	for _, c := range did {
		l.eye.Changed(c.rec, c.events)
	}
}

// read is step for what changes nothing.
func (l *Ledger) read(ctx context.Context, f func() error) error {
	return l.step(ctx, func() (bool, error) { return false, f() })
}

// take lets one sandbox take a step.
func (l *Ledger) take(ctx context.Context, id sandbox.ID, f func(r *row) error) error {
	_, err := l.takeRecord(ctx, id, f)
	return err
}

// takeRecord is take, and returns what became of the record.
func (l *Ledger) takeRecord(ctx context.Context, id sandbox.ID, f func(r *row) error) (rec sandbox.Record, err error) {
	err = l.step(ctx, func() (bool, error) {
		r, err := l.row(id)
		if err != nil {
			return false, err
		}
		if err := f(r); err != nil {
			return false, err
		}
		changed, err := l.keep(r)
		if err == nil {
			rec, err = clone(r.entry.Record)
		}
		return changed, err
	})
	return rec, err
}

func (l *Ledger) row(id sandbox.ID) (*row, error) {
	r := l.rows[id]
	if r == nil {
		return nil, ledger.ErrNoSandbox(id)
	}
	return r, nil
}

// keep takes over what a step left in r's entry.
func (l *Ledger) keep(r *row) (changed bool, err error) {
	changed = r.entry.Changed
	r.events = append(r.events, r.entry.Events...)
	if len(r.entry.Events) > 0 {
		l.did = append(l.did, change{r.entry.Record, r.entry.Events})
	}
	r.entry.Events, r.entry.Changed = nil, false
	if !r.entry.Record.State.Live() {
		r.erase()
	}
	if changed { // nothing of the caller's values is shared
		r.entry.Record, err = clone(r.entry.Record)
	}
	return changed, err
}

func (r *row) erase() {
	clear(r.secrets)
	r.secrets, r.verdict, r.limits = nil, nil, sandbox.Limits{}
}

func (r *row) admitted() (sandbox.Admitted, error) {
	rec, err := clone(r.entry.Record)
	return sandbox.Admitted{Record: rec, Limits: r.limits, Verdict: bytes.Clone(r.verdict), Secrets: bytes.Clone(r.secrets)}, err
}

// clone copies through JSON, as the other back ends do.
func clone[T any](v T) (T, error) {
	var out T
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return out, fmt.Errorf("copying a %T: %w", v, err)
	}
	return out, nil
}

// Admit implements ledger.Admissions.
func (l *Ledger) Admit(ctx context.Context, a sandbox.Admitted, audit sandbox.AuditEntry, key ledger.IdempotencyKey) (rec sandbox.Record, created bool, err error) {
	err = l.step(ctx, func() (bool, error) {
		name := keyName{a.Record.Tenant, key.Key}
		if k, ok := l.keys[name]; key.Key != "" && ok && k.expires.After(a.Record.CreatedAt) {
			if k.hash != key.Hash {
				return false, ledger.ErrKeyOfAnother(key.Key)
			}
			r := l.rows[k.id]
			if r == nil {
				return false, ledger.ErrKeyOfRemoved(key.Key)
			}
			rec, err = clone(r.entry.Record)
			return false, err
		}
		e, err := ledgerstep.Admit(a, audit)
		if err != nil {
			return false, err
		}
		if err := l.usage(a.Record.Tenant).FitsLive(a.Limits); err != nil {
			return false, err
		}
		if rec, err = l.insert(e, a, audit); err != nil {
			return false, err
		}
		if key.Key != "" {
			l.keys[name] = keyRow{key.Hash, key.Expires, rec.ID}
		}
		created = true
		return true, nil
	})
	return rec, created, err
}

// Refuse implements ledger.Admissions.
func (l *Ledger) Refuse(ctx context.Context, rec sandbox.Record, audit sandbox.AuditEntry) error {
	return l.step(ctx, func() (bool, error) {
		e, err := ledgerstep.Refuse(rec, audit)
		if err != nil {
			return false, err
		}
		_, err = l.insert(e, sandbox.Admitted{}, audit)
		return err == nil, err
	})
}

func (l *Ledger) insert(e *ledgerstep.Entry, a sandbox.Admitted, audit sandbox.AuditEntry) (sandbox.Record, error) {
	id := e.Record.ID
	if l.rows[id] != nil {
		return sandbox.Record{}, ledger.ErrTaken(id)
	}
	r := &row{entry: *e, limits: a.Limits, verdict: bytes.Clone(a.Verdict), secrets: bytes.Clone(a.Secrets)}
	if _, err := l.keep(r); err != nil {
		return sandbox.Record{}, err
	}
	if err := l.append(audit); err != nil {
		return sandbox.Record{}, err
	}
	l.rows[id] = r
	return clone(r.entry.Record)
}

// Audit implements ledger.Admissions.
func (l *Ledger) Audit(ctx context.Context, audit sandbox.AuditEntry) error {
	return l.step(ctx, func() (bool, error) { return true, l.append(audit) })
}

func (l *Ledger) append(a sandbox.AuditEntry) error {
	a.Seq, a.PrevDigest = int64(len(l.audit))+1, ""
	if n := len(l.audit); n > 0 {
		d, err := ledger.AuditDigest(l.audit[n-1])
		if err != nil {
			return err
		}
		a.PrevDigest = d
	}
	text, err := ledger.AuditText(a)
	if err != nil {
		return err
	}
	var kept sandbox.AuditEntry
	if err := json.Unmarshal(text, &kept); err != nil {
		return err
	}
	l.audit = append(l.audit, kept)
	return nil
}

// usage is what a tenant has in use.
func (l *Ledger) usage(tenant string) ledger.Usage {
	var u ledger.Usage
	for _, r := range l.rows {
		rec := &r.entry.Record
		if rec.Tenant != tenant || !rec.State.Live() {
			continue
		}
		u.Live++
		if rec.State.OnNode() {
			u = u.Add(rec.Request.Resources)
		}
	}
	return u
}

// node is a node with what is in use of it; the zero value if unknown.
func (l *Ledger) node(id string) sandbox.Node {
	n := l.nodes[id]
	for _, r := range l.rows {
		if rec := &r.entry.Record; rec.Node == id && rec.State.OnNode() {
			d := rec.Request.Resources.Demand()
			n.InUse.VCPUs += d.VCPUs
			n.InUse.MemoryMiB += d.MemoryMiB
			n.InUse.DiskMiB += d.DiskMiB
		}
	}
	return n
}

// queued is every queued row, oldest first.
func (l *Ledger) queued() []*row {
	var out []*row
	for _, r := range l.rows {
		if r.entry.Record.State == sandbox.Queued {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *row) int {
		return strings.Compare(string(a.entry.Record.ID), string(b.entry.Record.ID))
	})
	return out
}
