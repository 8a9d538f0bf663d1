// Package ledgertest is the suite that every ledger passes: the comments of
// the seam, sentence by sentence, as cases.
//
// A back end's test calls Run, and Model with as many rounds as it can bear.
package ledgertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Open makes a new, empty ledger. The suite closes it; what else is to be
// cleaned up is for Open to register with t.
type Open func(t testing.TB) ledger.Ledger

// Run runs every case, each on a ledger of its own.
func Run(t *testing.T, open Open) {
	for _, group := range [][]testCase{admissionCases, queueCases, placementCases, endCases, bookCases, auditCases, tokenCases, policyCases, crowdCases} {
		for _, c := range group {
			t.Run(c.name, func(t *testing.T) { c.run(t, newWorld(t, open)) })
		}
	}
}

type testCase struct {
	name string
	run  func(t *testing.T, w *world)
}

// epoch0 is when the suite's time begins.
var epoch0 = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)

// plenty is limits that no case meets by accident.
var plenty = sandbox.Limits{Live: 1 << 20, Running: 1 << 20, VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}

const (
	scheduler = "s1"
	lease     = 30 * time.Second
)

// world is a ledger with a clock and makers of whatever a case needs. Its
// methods fail the case when a step does not succeed.
type world struct {
	t   testing.TB
	l   ledger.Ledger
	ctx context.Context
	now time.Time
	n   int // of the last ID
}

func newWorld(t testing.TB, open Open) *world {
	l := open(t)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("closing the ledger: %v", err)
		}
	})
	return &world{t: t, l: l, ctx: t.Context(), now: epoch0}
}

// later moves the clock.
func (w *world) later(d time.Duration) time.Time {
	w.now = w.now.Add(d)
	return w.now
}

// id is a new one, higher than all before.
func (w *world) id() sandbox.ID {
	w.n++
	return makeID(w.n)
}

func makeID(n int) sandbox.ID { return sandbox.MakeID(fmt.Sprintf("%026d", n)) }

// request is an admitted request of tenant, created now.
func (w *world) request(tenant string) sandbox.Admitted {
	return sandbox.Admitted{
		Record: sandbox.Record{
			ID: w.id(), Tenant: tenant, State: sandbox.Queued, CreatedAt: w.now, Name: "n",
			Request: sandbox.Resolved{
				Template: "base", Command: []string{"true"}, Labels: map[string]string{"team": "ci"},
				Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64, Processes: 16},
			},
			Verdict: sandbox.Verdict{Decision: sandbox.Allow, PolicyVersion: "v1"},
		},
		Limits:  plenty,
		Verdict: []byte("verdict of it"),
		Secrets: []byte("secrets of it"),
	}
}

func (w *world) audit(action string) sandbox.AuditEntry {
	return sandbox.AuditEntry{Time: w.now, Tenant: "a", Action: action, Decision: sandbox.Allow}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("unexpected error: %v", err)
	}
}

// refused insists on an error of a kind.
func (w *world) refused(err error, k fault.Kind) {
	w.t.Helper()
	if !fault.Is(err, k) {
		w.t.Fatalf("got error %v, want one of kind %s", err, k)
	}
}

func (w *world) admitThis(a sandbox.Admitted) sandbox.ID {
	w.t.Helper()
	rec, created, err := w.l.Admit(w.ctx, a, w.audit("run"), ledger.IdempotencyKey{})
	w.must(err)
	if !created || rec.ID != a.Record.ID {
		w.t.Fatalf("Admit returned %s, created %v; want %s, true", rec.ID, created, a.Record.ID)
	}
	return rec.ID
}

func (w *world) admit(tenant string) sandbox.ID {
	w.t.Helper()
	return w.admitThis(w.request(tenant))
}

// claim is the next claim of scheduler, and must be one.
func (w *world) claim() ledger.Claim {
	w.t.Helper()
	c, ok, err := w.l.Claim(w.ctx, scheduler, w.now, lease, nil)
	w.must(err)
	if !ok {
		w.t.Fatal("Claim found nothing")
	}
	return c
}

// claimOf insists that the next claim is id's.
func (w *world) claimOf(id sandbox.ID) ledger.Claim {
	w.t.Helper()
	c := w.claim()
	if got := c.Admitted.Record.ID; got != id {
		w.t.Fatalf("Claim took %s, want %s", got, id)
	}
	return c
}

// nothing insists that there is nothing to claim.
func (w *world) nothing(skip ...string) {
	w.t.Helper()
	c, ok, err := w.l.Claim(w.ctx, scheduler, w.now, lease, skip)
	w.must(err)
	if ok {
		w.t.Fatalf("Claim took %s, want nothing", c.Admitted.Record.ID)
	}
}

// join makes a large node known.
func (w *world) join(node string) int64 {
	w.t.Helper()
	epoch, err := w.l.Join(w.ctx, sandbox.Node{
		ID: node, SeenAt: w.now, Labels: map[string]string{"zone": "a"},
		Capacity: sandbox.Capacity{VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40},
	})
	w.must(err)
	return epoch
}

func (w *world) place(c ledger.Claim, node string, epoch int64) sandbox.Assignment {
	w.t.Helper()
	a, err := w.l.Place(w.ctx, c, node, epoch, w.now)
	w.must(err)
	return a
}

// assigned takes a new request of tenant to a node.
func (w *world) assigned(tenant, node string, epoch int64) sandbox.Assignment {
	w.t.Helper()
	return w.place(w.claimOf(w.admit(tenant)), node, epoch)
}

// accepted takes it a step further.
func (w *world) accepted(tenant, node string, epoch int64) sandbox.Assignment {
	w.t.Helper()
	a := w.assigned(tenant, node, epoch)
	w.must(w.l.Accept(w.ctx, a, w.now))
	return a
}

func (w *world) end(a sandbox.Assignment, exit sandbox.ExitRecord) sandbox.Record {
	w.t.Helper()
	rec, err := w.l.End(w.ctx, a, sandbox.End{At: w.now, Exit: exit})
	w.must(err)
	return rec
}

// ended ends it, wherever it is.
func (w *world) ended(id sandbox.ID) sandbox.Record {
	w.t.Helper()
	return w.end(sandbox.Assignment{Sandbox: id}, sandbox.ExitRecord{Cause: sandbox.Internal})
}

func (w *world) get(id sandbox.ID) sandbox.Record {
	w.t.Helper()
	rec, err := w.l.Get(w.ctx, id)
	w.must(err)
	return rec
}

// in insists on a state.
func (w *world) in(id sandbox.ID, s sandbox.State) sandbox.Record {
	w.t.Helper()
	rec := w.get(id)
	if rec.State != s {
		w.t.Fatalf("%s is %s, want %s", id, rec.State, s)
	}
	return rec
}

func (w *world) events(id sandbox.ID) []sandbox.Event {
	w.t.Helper()
	ev, err := w.l.Events(w.ctx, id, 0)
	w.must(err)
	return ev
}

// road insists on the states that id has gone through, numbered without gaps.
func (w *world) road(id sandbox.ID, want ...sandbox.State) []sandbox.Event {
	w.t.Helper()
	ev := w.events(id)
	var got []sandbox.State
	for i, e := range ev {
		got = append(got, e.State)
		if e.Seq != int64(i)+1 {
			w.t.Fatalf("event %d of %s has Seq %d", i+1, id, e.Seq)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Fatalf("%s went %v, want %v", id, got, want)
	}
	return ev
}

func (w *world) audits() []sandbox.AuditEntry {
	w.t.Helper()
	out, err := w.l.AuditEntries(w.ctx, ledger.AuditQuery{Limit: ledger.MaxPage})
	w.must(err)
	return out
}

func ptr[T any](v T) *T { return &v }

func exited(code int) sandbox.ExitRecord {
	return sandbox.ExitRecord{Cause: sandbox.Exited, Source: sandbox.FromGuest, Code: &code}
}
