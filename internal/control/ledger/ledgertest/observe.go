package ledgertest

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// OpenObserved is Open for a ledger that tells o what is done to it.
type OpenObserved func(t testing.TB, o ledger.Observer) ledger.Ledger

// eye writes down what it is told.
type eye struct {
	mu      sync.Mutex
	changes map[sandbox.ID][]sandbox.Event
	last    map[sandbox.ID]sandbox.Record
	steps   int
	failed  int
}

// Changed implements ledger.Observer.
func (e *eye) Changed(rec sandbox.Record, events []sandbox.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.changes[rec.ID] = append(e.changes[rec.ID], events...)
	e.last[rec.ID] = rec
}

// Committed implements ledger.Observer.
func (e *eye) Committed(steps int, took time.Duration, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.steps += steps
	if err != nil || took < 0 || steps < 1 {
		e.failed++
	}
}

// Observe holds a ledger to the seam's Observer: it is told of every event,
// once, in order, before whoever asked is answered; and of nothing that did
// not happen.
func Observe(t *testing.T, open OpenObserved) {
	e := &eye{changes: map[sandbox.ID][]sandbox.Event{}, last: map[sandbox.ID]sandbox.Record{}}
	w := newWorld(t, func(t testing.TB) ledger.Ledger { return open(t, e) })
	epoch := w.join("n1")
	a := w.accepted("a", "n1", epoch)
	w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Running, At: w.now}))
	again := w.assigned("b", "n1", epoch)
	w.must(w.l.Requeue(w.ctx, again, w.now, "refused"))
	w.end(a, exited(0))
	w.end(a, exited(1)) // changes nothing
	over := w.request("c")
	over.Limits.Live = 0
	if _, _, err := w.l.Admit(w.ctx, over, w.audit("run"), ledger.IdempotencyKey{}); err == nil {
		t.Fatal("admitted beyond its limit")
	}
	refused := w.request("a").Record
	refused.State = sandbox.Refused
	w.must(w.l.Refuse(w.ctx, refused, w.audit("run")))

	e.mu.Lock()
	defer e.mu.Unlock()
	if _, told := e.changes[over.Record.ID]; told || len(e.changes) != 3 {
		t.Errorf("told of %d sandboxes, of one that was not admitted: %v", len(e.changes), told)
	}
	for id, got := range e.changes {
		if d := cmp.Diff(w.events(id), got); d != "" {
			t.Errorf("%s: %s", id, d)
		}
		if d := cmp.Diff(w.get(id), e.last[id]); d != "" {
			t.Errorf("%s: %s", id, d)
		}
	}
	if e.steps < 10 || e.failed != 0 {
		t.Errorf("told of %d steps, %d commits that failed", e.steps, e.failed)
	}
}
