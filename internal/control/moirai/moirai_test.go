package moirai_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/control/moirai"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet is nodes that answer as the test says.
type fleet struct {
	book ledger.Ledger

	mu     sync.Mutex
	answer func(node string, n int) error // of the n-th assignment, from 1; nil: taken
	sent   []sandbox.Assignment
}

func (f *fleet) Nodes(ctx context.Context) ([]sandbox.Node, error) {
	nodes, err := f.book.Nodes(ctx)
	for i := range nodes {
		nodes[i].SeenAt = time.Now()
	}
	return nodes, err
}

func (f *fleet) Fresh() time.Duration { return time.Hour }

func (f *fleet) Assign(_ context.Context, a sandbox.Assignment, adm sandbox.Admitted) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, a)
	if adm.Record.Runtime.Attempt != a.Attempt {
		return errors.New("the record that was handed on is not of this attempt")
	}
	if f.answer == nil {
		return nil
	}
	return f.answer(a.Node, len(f.sent))
}

func (f *fleet) assignments() []sandbox.Assignment {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.sent)
}

type world struct {
	t     *testing.T
	book  ledger.Ledger
	fleet *fleet
	key   *seal.Key
}

// newWorld is a scheduler at work on a book in memory.
func newWorld(t *testing.T, answer func(string, int) error, nodes ...sandbox.Node) *world {
	t.Helper()
	key, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	book := memledger.New()
	w := &world{t: t, book: book, fleet: &fleet{book: book, answer: answer}, key: key}
	for _, n := range nodes {
		if _, err := book.Join(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	ring, err := seal.NewRing(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	queue, err := acheron.New(acheron.Config{Ledger: book, Owner: "test", Backoff: 10 * time.Millisecond, MaxBackoff: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s, err := moirai.New(moirai.Config{Queue: queue, Ledger: book, Nodes: w.fleet, Verdicts: ring})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		book.Close()
	})
	return w
}

func node(id string) sandbox.Node {
	return sandbox.Node{ID: id, Capacity: sandbox.Capacity{VCPUs: 4, MemoryMiB: 1024, DiskMiB: 1024}}
}

var wide = sandbox.Limits{Live: 100, Running: 100, VCPUs: 100, MemoryMiB: 1 << 20, DiskMiB: 1 << 20}

// admit enters a signed request; edit may change it before it is signed.
func (w *world) admit(limits sandbox.Limits, edit func(*sandbox.Resolved)) sandbox.ID {
	w.t.Helper()
	now := time.Now()
	id := sandbox.MakeID(ulid.Make().String())
	req := sandbox.Resolved{
		Command: []string{"true"}, Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64, Processes: 8},
		TemplateDigest: digest("a"), GuestDigest: digest("b"), SecretsDigest: digest("c"),
		MaxDuration: time.Minute, StartTimeout: time.Minute, QueueTimeout: time.Minute, CapacityWait: time.Minute,
	}
	if edit != nil {
		edit(&req)
	}
	b, d, err := w.key.SignVerdict(seal.Verdict{Sandbox: id, Tenant: "t", PolicyVersion: string(digest("d")), Issued: now, Expires: now.Add(time.Hour), Request: req})
	if err != nil {
		w.t.Fatal(err)
	}
	rec := sandbox.Record{ID: id, Tenant: "t", State: sandbox.Queued, CreatedAt: now, Request: req, Verdict: sandbox.Verdict{Decision: sandbox.Allow, Digest: d, KeyID: w.key.ID()}}
	if _, _, err := w.book.Admit(w.t.Context(), sandbox.Admitted{Record: rec, Limits: limits, Verdict: b}, sandbox.AuditEntry{Time: now, Tenant: "t", Action: "run"}, ledger.IdempotencyKey{}); err != nil {
		w.t.Fatal(err)
	}
	return id
}

func digest(c string) sandbox.Digest { return sandbox.Digest("sha256:" + strings.Repeat(c, 64)) }

// until waits for a record of which ok holds.
func (w *world) until(id sandbox.ID, ok func(sandbox.Record) bool) sandbox.Record {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	changed := w.book.Watch(ctx)
	for {
		rec, err := w.book.Get(w.t.Context(), id)
		if err != nil {
			w.t.Fatal(err)
		}
		if ok(rec) {
			return rec
		}
		if _, open := <-changed; !open {
			w.t.Fatalf("%s stays %s on %q, attempt %d", id, rec.State, rec.Node, rec.Runtime.Attempt)
		}
	}
}

func assigned(r sandbox.Record) bool { return r.State == sandbox.Assigned }

func TestPlacesOnTheLeastLoaded(t *testing.T) {
	w := newWorld(t, nil, node("a"), node("b"))
	on := map[string]int{}
	for range 4 {
		rec := w.until(w.admit(wide, nil), assigned)
		on[rec.Node]++
	}
	if on["a"] != 2 || on["b"] != 2 {
		t.Errorf("placed %v", on)
	}
}

func TestTriesElsewhereWhenRefused(t *testing.T) {
	refuse := func(node string, _ int) error {
		if node == "a" {
			return fault.New(fault.Conflict, "had it")
		}
		return nil
	}
	w := newWorld(t, refuse, node("a"), node("b"))
	rec := w.until(w.admit(wide, nil), func(r sandbox.Record) bool { return assigned(r) && r.Node == "b" })
	if rec.Runtime.Attempt != 2 {
		t.Errorf("attempt %d", rec.Runtime.Attempt)
	}
}

// An answer that was lost is asked for again, from the same node, with the
// same attempt.
func TestUncertainAssignmentIsSentAgain(t *testing.T) {
	taken := make(chan struct{})
	lost := func(_ string, n int) error {
		if n < 3 {
			return fault.New(fault.Unavailable, "the line broke")
		}
		close(taken)
		return nil
	}
	w := newWorld(t, lost, node("a"), node("b"))
	w.admit(wide, nil)
	select {
	case <-taken:
	case <-time.After(20 * time.Second):
		t.Fatal("it was not sent three times")
	}
	sent := w.fleet.assignments()
	if len(sent) != 3 || sent[0] != sent[1] || sent[1] != sent[2] {
		t.Errorf("sent %+v", sent)
	}
}

func TestGivesUpWhenNoNodeFits(t *testing.T) {
	w := newWorld(t, nil, node("a"))
	id := w.admit(wide, func(r *sandbox.Resolved) {
		r.Resources.MemoryMiB, r.CapacityWait = 4096, 100*time.Millisecond
	})
	rec := w.until(id, func(r sandbox.Record) bool { return !r.State.Live() })
	if rec.Exit.Cause != sandbox.NoCapacity || !strings.Contains(rec.Exit.Message, "size: 1") || strings.Contains(rec.Exit.Message, `"a"`) {
		t.Errorf("%+v", rec.Exit)
	}
	if took := rec.EndedAt.Sub(rec.CreatedAt); took < 100*time.Millisecond {
		t.Errorf("given up after %v", took)
	}
}

// A node that is only full is worth waiting for: the time for capacity does
// not run.
func TestWaitsItsTurnWhereNodesAreFull(t *testing.T) {
	w := newWorld(t, nil, node("a"))
	short := func(r *sandbox.Resolved) { r.Resources.VCPUs, r.CapacityWait = 4, 50*time.Millisecond }
	first := w.admit(wide, short)
	rec := w.until(first, assigned)
	second := w.admit(wide, short)
	time.Sleep(200 * time.Millisecond) // longer than the time for capacity
	if got := w.until(second, func(sandbox.Record) bool { return true }); got.State != sandbox.Queued {
		t.Fatalf("the second is %s: %+v", got.State, got.Exit)
	}
	w.end(rec)
	w.until(second, assigned)
}

// Waiting for the tenant's own limit does not use up the time for capacity.
func TestWaitsForTheTenantsLimit(t *testing.T) {
	w := newWorld(t, nil, node("a"))
	one := wide
	one.Running = 1
	short := func(r *sandbox.Resolved) { r.CapacityWait = 50 * time.Millisecond }
	first := w.admit(one, short)
	rec := w.until(first, assigned)
	second := w.admit(one, short)
	time.Sleep(200 * time.Millisecond) // longer than the time for capacity
	if got := w.until(second, func(sandbox.Record) bool { return true }); got.State != sandbox.Queued {
		t.Fatalf("the second is %s: %+v", got.State, got.Exit)
	}
	w.end(rec)
	w.until(second, assigned)
}

// end ends a placed sandbox.
func (w *world) end(rec sandbox.Record) {
	w.t.Helper()
	a := sandbox.Assignment{Sandbox: rec.ID, Attempt: rec.Runtime.Attempt, Node: rec.Node, Epoch: rec.Epoch}
	if _, err := w.book.End(w.t.Context(), a, sandbox.End{At: time.Now(), Exit: sandbox.ExitRecord{Cause: sandbox.Killed}}); err != nil {
		w.t.Fatal(err)
	}
}

func TestAnUnsignedRequestNeverRuns(t *testing.T) {
	w := newWorld(t, nil, node("a"))
	other, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	w.key = other // whoever writes the queue has no key of ours
	rec := w.until(w.admit(wide, nil), func(r sandbox.Record) bool { return !r.State.Live() })
	if rec.Exit.Cause != sandbox.Internal || len(w.fleet.assignments()) != 0 {
		t.Errorf("%+v, %d assignments", rec.Exit, len(w.fleet.assignments()))
	}
}

func TestACrowdFindsItsPlaces(t *testing.T) {
	nodes := make([]sandbox.Node, 6)
	for i := range nodes {
		nodes[i] = node(string(rune('a' + i)))
		nodes[i].Capacity = sandbox.Capacity{VCPUs: 50, MemoryMiB: 50 * (128 + sandbox.VMOverheadMiB), DiskMiB: 50 * 64}
	}
	w := newWorld(t, nil, nodes...)
	limits := sandbox.Limits{Live: 300, Running: 300, VCPUs: 300, MemoryMiB: 1 << 30, DiskMiB: 1 << 30}
	ids := make([]sandbox.ID, 300)
	for i := range ids {
		ids[i] = w.admit(limits, nil)
	}
	for _, id := range ids {
		w.until(id, assigned)
	}
	per := map[string]int{}
	once := map[sandbox.ID]int{}
	for _, a := range w.fleet.assignments() {
		per[a.Node]++
		once[a.Sandbox]++
	}
	for n, c := range per {
		if c > 50 {
			t.Errorf("node %s has room for 50 and got %d", n, c)
		}
	}
	if len(once) != len(ids) {
		t.Errorf("%d of %d were assigned", len(once), len(ids))
	}
}
