package acheron_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var plenty = sandbox.Limits{Live: 1 << 20, Running: 1 << 20, VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}

// world is a queue over a ledger, in synctest's time.
type world struct {
	t     *testing.T
	book  ledger.Ledger
	queue *acheron.Queue
	epoch int64 // of node n1
	n     int
}

// in runs f in a bubble with a world of its own.
func in(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, book: memledger.New()}
		w.queue = w.open(w.book)
		w.epoch = w.join(1 << 20)
		f(w)
	})
}

func (w *world) open(l acheron.Ledger) *acheron.Queue {
	w.t.Helper()
	q, err := acheron.New(acheron.Config{Ledger: l, Owner: "s1"})
	w.must(err)
	return q
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// join makes node n1 known, with room for so many.
func (w *world) join(vcpus int) int64 {
	w.t.Helper()
	epoch, err := w.book.Join(w.t.Context(), sandbox.Node{
		ID: "n1", Capacity: sandbox.Capacity{VCPUs: vcpus, MemoryMiB: 1 << 40, DiskMiB: 1 << 40},
	})
	w.must(err)
	return epoch
}

func (w *world) admit(tenant string, change ...func(a *sandbox.Admitted)) sandbox.ID {
	w.t.Helper()
	w.n++
	a := sandbox.Admitted{Limits: plenty, Record: sandbox.Record{
		ID: sandbox.MakeID(fmt.Sprintf("%026d", w.n)), Tenant: tenant, CreatedAt: time.Now(),
		Request: sandbox.Resolved{Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 1}},
	}}
	for _, f := range change {
		f(&a)
	}
	_, _, err := w.book.Admit(w.t.Context(), a, sandbox.AuditEntry{Time: time.Now()}, ledger.IdempotencyKey{})
	w.must(err)
	return a.Record.ID
}

func running(n int) func(a *sandbox.Admitted) {
	return func(a *sandbox.Admitted) { a.Limits.Running = n }
}

func queueTimeout(d time.Duration) func(a *sandbox.Admitted) {
	return func(a *sandbox.Admitted) { a.Record.Request.QueueTimeout = d }
}

// next insists that Next gives id, after so long.
func (w *world) next(id sandbox.ID, after time.Duration) ledger.Claim {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 24*time.Hour)
	defer cancel()
	began := time.Now()
	c, err := w.queue.Next(ctx)
	w.must(err)
	if got := c.Admitted.Record.ID; got != id {
		w.t.Fatalf("Next gave %s, want %s", got, id)
	}
	if d := time.Since(began); d != after {
		w.t.Fatalf("Next gave %s after %v, want %v", id, d, after)
	}
	return c
}

// nothing insists that Next gives nothing for so long.
func (w *world) nothing(d time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	defer cancel()
	c, err := w.queue.Next(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("Next gave %s, %v, want nothing", c.Admitted.Record.ID, err)
	}
}

func (w *world) place(c ledger.Claim) sandbox.ID {
	w.t.Helper()
	a, err := w.book.Place(w.t.Context(), c, "n1", w.epoch, time.Now())
	w.must(err)
	return a.Sandbox
}

func (w *world) noNode(c ledger.Claim) {
	w.t.Helper()
	w.must(w.queue.Return(w.t.Context(), c, ledger.Waiting{NoNodeSince: time.Now(), Reasons: []string{"1 full"}}, false))
}

func (w *world) ownLimit(c ledger.Claim) {
	w.t.Helper()
	w.must(w.queue.Return(w.t.Context(), c, ledger.Waiting{}, true))
}

func (w *world) end(id sandbox.ID) {
	w.t.Helper()
	_, err := w.book.End(w.t.Context(), sandbox.Assignment{Sandbox: id},
		sandbox.End{At: time.Now(), Exit: sandbox.ExitRecord{Cause: sandbox.Internal}})
	w.must(err)
}

// after does f in a while, beside whatever the test does.
func (w *world) after(d time.Duration, f func()) {
	go func() {
		time.Sleep(d)
		f()
	}()
}
