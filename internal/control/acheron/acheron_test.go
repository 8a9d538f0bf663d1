package acheron_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNextWaitsForARequest(t *testing.T) {
	in(t, func(w *world) {
		w.nothing(time.Hour)
		w.after(1234*time.Millisecond, func() { w.admit("a") })
		w.next(sandbox.MakeID("00000000000000000000000001"), 1234*time.Millisecond)
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	in(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.t.Context())
		w.after(time.Second, cancel)
		if _, err := w.queue.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Next returned %v", err)
		}
	})
}

func TestAClaimThatIsForgottenComesBack(t *testing.T) {
	in(t, func(w *world) {
		id := w.admit("a")
		w.next(id, 0)
		w.next(id, 30*time.Second)
	})
}

func TestBackoffDoublesUpToItsBound(t *testing.T) {
	in(t, func(w *world) {
		id := w.admit("a")
		c := w.next(id, 0)
		for _, d := range []int{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
			w.noNode(c)
			c = w.next(id, time.Duration(d)*time.Millisecond)
			if len(c.Waiting.Reasons) != 1 {
				t.Errorf("it waits for %+v", c.Waiting)
			}
		}
	})
}

func TestReturnOfALostClaimIsAConflict(t *testing.T) {
	in(t, func(w *world) {
		id := w.admit("a")
		c := w.next(id, 0)
		w.next(id, 30*time.Second)
		if err := w.queue.Return(w.t.Context(), c, ledger.Waiting{}, false); !fault.Is(err, fault.Conflict) {
			t.Errorf("Return says %v", err)
		}
		if _, err := w.queue.Drop(w.t.Context(), c, sandbox.NoCapacity, ""); !fault.Is(err, fault.Conflict) {
			t.Errorf("Drop says %v", err)
		}
	})
}

func TestRoomThatBecomesFreeIsUsedAtOnce(t *testing.T) {
	in(t, func(w *world) {
		one := w.place(w.next(w.admit("a"), 0))
		id := w.admit("b")
		c := w.next(id, 0)
		for range 7 { // until it waits long
			w.noNode(c)
			c, _ = w.queue.Next(w.t.Context())
		}
		w.noNode(c)
		w.after(500*time.Millisecond, func() { w.end(one) })
		c = w.next(id, 500*time.Millisecond)
		w.noNode(c) // it did not suffice: back to waiting
		w.nothing(4999 * time.Millisecond)
		c = w.next(id, time.Millisecond)
		w.noNode(c)
		w.after(500*time.Millisecond, func() { w.epoch = w.join(1 << 20) })
		w.next(id, 500*time.Millisecond)
	})
}

func TestOneFreePlaceIsNotTriedByAllThatWait(t *testing.T) {
	in(t, func(w *world) {
		one := w.place(w.next(w.admit("a"), 0))
		for range 50 {
			w.admit("b")
		}
		ctx := w.t.Context()
		for range 50 * 6 {
			c, err := w.queue.Next(ctx)
			w.must(err)
			w.noNode(c)
		}
		w.end(one)
		c, err := w.queue.Next(ctx)
		w.must(err)
		w.place(c)
		began, tries := time.Now(), 0
		for time.Since(began) == 0 {
			c, err := w.queue.Next(ctx)
			w.must(err)
			tries++
			w.noNode(c)
		}
		if tries > 2 {
			t.Errorf("%d were tried for one place", tries)
		}
	})
}

func TestATenantAtItsLimitIsPassedOverUntilSomethingEnds(t *testing.T) {
	in(t, func(w *world) {
		one := w.place(w.next(w.admit("a", running(1)), 0))
		second := w.admit("a", running(1))
		w.admit("a", running(1))
		w.ownLimit(w.next(second, 0))
		b := w.admit("b")
		w.place(w.next(b, 0))
		w.nothing(time.Hour)
		if d, err := w.queue.Depth(w.t.Context()); err != nil || d.Limited != 1 || d.Ready != 2 || d.Oldest < time.Hour {
			t.Errorf("the depth is %+v, %v", d, err)
		}
		w.end(b) // another's
		w.nothing(time.Hour)
		w.after(time.Minute+time.Millisecond, func() { w.end(one) })
		w.place(w.next(second, time.Minute+time.Millisecond))
	})
}

func TestWhatEndsWhileItIsReturnedIsNotMissed(t *testing.T) {
	in(t, func(w *world) {
		one := w.place(w.next(w.admit("a", running(1)), 0))
		second := w.admit("a", running(1))
		c := w.next(second, 0)
		if _, err := w.book.Place(w.t.Context(), c, "n1", w.epoch, time.Now()); !fault.Is(err, fault.QuotaExceeded) {
			t.Fatalf("Place says %v", err)
		}
		w.end(one) // between the try and the Return
		w.ownLimit(c)
		w.next(second, 0)
	})
}

func TestGivingUpIsNotPutOff(t *testing.T) {
	in(t, func(w *world) {
		id := w.admit("a", func(a *sandbox.Admitted) { a.Record.Request.CapacityWait = 12 * time.Second })
		since := time.Now()
		c := w.next(id, 0)
		for time.Since(since) < 10*time.Second {
			w.must(w.queue.Return(w.t.Context(), c, ledger.Waiting{NoNodeSince: since}, false))
			var err error
			if c, err = w.queue.Next(w.t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		w.must(w.queue.Return(w.t.Context(), c, ledger.Waiting{NoNodeSince: since}, false))
		w.next(id, 12*time.Second-c.Until.Add(-30*time.Second).Sub(since))
	})
}

func TestFreeRoomIsNotUsedUpByWhatNeedsNone(t *testing.T) {
	in(t, func(w *world) {
		one := w.place(w.next(w.admit("z"), 0))
		w.place(w.next(w.admit("a", running(1)), 0))
		w.place(w.next(w.admit("b", running(1)), 0))
		w.place(w.next(w.admit("c", running(1)), 0))
		for range 2 { // so that its turn is last
			w.place(w.next(w.admit("d"), 0))
		}
		for _, tenant := range []string{"a", "b", "c"} {
			w.admit(tenant, running(1))
		}
		last := w.admit("d")
		// They wait for room, long enough that none comes by its own time.
		for range 4 * 7 {
			c, err := w.queue.Next(w.t.Context())
			w.must(err)
			w.noNode(c)
		}
		w.end(one)
		began := time.Now()
		for range 4 {
			c, err := w.queue.Next(w.t.Context())
			w.must(err)
			if c.Admitted.Record.ID == last {
				break
			}
			w.ownLimit(c)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("the room was not offered to all for %v", d)
		}
	})
}

func TestALimitedRequestThatIsKilledFreesItsTenant(t *testing.T) {
	in(t, func(w *world) {
		big := func(a *sandbox.Admitted) { a.Limits.VCPUs, a.Record.Request.Resources.VCPUs = 4, 4 }
		small := func(a *sandbox.Admitted) { a.Limits.VCPUs = 4 }
		w.place(w.next(w.admit("a", small), 0))
		first := w.admit("a", big)
		w.ownLimit(w.next(first, 0))
		second := w.admit("a", small)
		w.nothing(time.Minute)
		// However much else goes on.
		ctx, cancel := context.WithCancel(w.t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() {
			for ctx.Err() == nil {
				w.must(w.book.Audit(w.t.Context(), sandbox.AuditEntry{}))
				time.Sleep(100 * time.Millisecond)
			}
		})
		_, err := w.book.Kill(w.t.Context(), first, sandbox.Killed, time.Now(), sandbox.AuditEntry{})
		w.must(err)
		limit, stop := context.WithTimeout(w.t.Context(), 2*time.Second+100*time.Millisecond)
		defer stop()
		c, err := w.queue.Next(limit)
		if err != nil || c.Admitted.Record.ID != second {
			t.Errorf("Next gave %s, %v", c.Admitted.Record.ID, err)
		}
	})
}

func TestRequestsThatWaitTooLongEnd(t *testing.T) {
	in(t, func(w *world) {
		one := w.place(w.next(w.admit("a", running(1)), 0))
		limited := w.admit("a", running(1), queueTimeout(10*time.Second))
		w.ownLimit(w.next(limited, 0))
		waiting := w.admit("b", queueTimeout(1500*time.Millisecond))
		w.noNode(w.next(waiting, 0))
		forgotten := w.admit("c", queueTimeout(time.Second))
		w.next(forgotten, 0) // and never given back
		w.noNode(w.next(waiting, 100*time.Millisecond))
		w.noNode(w.next(waiting, 200*time.Millisecond))
		w.noNode(w.next(waiting, 400*time.Millisecond))
		w.nothing(time.Minute)
		for id, want := range map[sandbox.ID]time.Duration{
			limited: 10 * time.Second, waiting: 1500 * time.Millisecond, forgotten: 30 * time.Second,
		} {
			rec, err := w.book.Get(w.t.Context(), id)
			w.must(err)
			if got := rec.EndedAt.Sub(rec.CreatedAt); rec.Exit.Cause != sandbox.QueueTimeout || got != want || rec.Exit.Source != sandbox.FromHost {
				t.Errorf("%s of %s ended with %+v after %v, want %v", id, rec.Tenant, rec.Exit, got, want)
			}
		}
		rec, err := w.book.Get(w.t.Context(), waiting)
		w.must(err)
		if rec.Exit.Message != "it was not placed within 1.5s: 1 full" {
			t.Errorf("the message is %q", rec.Exit.Message)
		}
		if rec, err = w.book.Get(w.t.Context(), one); err != nil || rec.State != sandbox.Assigned {
			t.Errorf("the one on a node is %s, %v", rec.State, err)
		}
	})
}

func TestDropEndsWithItsCause(t *testing.T) {
	in(t, func(w *world) {
		id := w.admit("a")
		rec, err := w.queue.Drop(w.t.Context(), w.next(id, 0), sandbox.NoCapacity, "2 full")
		w.must(err)
		if rec.ID != id || rec.Exit.Cause != sandbox.NoCapacity || rec.Exit.Message != "2 full" || rec.State != sandbox.Failed {
			t.Errorf("the record is %+v", rec)
		}
	})
}

// deaf is a ledger as another process sees it, and counts the looks at it.
type deaf struct {
	ledger.Ledger
	looks atomic.Int64
	fail  error
}

func (d *deaf) Watch(context.Context) <-chan struct{} { return nil }

func (d *deaf) Due(ctx context.Context, skip []string) (ledger.Due, error) {
	d.looks.Add(1)
	if d.fail != nil {
		return ledger.Due{}, d.fail
	}
	return d.Ledger.Due(ctx, skip)
}

func TestAnotherProcessIsSeenAtThePoll(t *testing.T) {
	in(t, func(w *world) {
		book := &deaf{Ledger: w.book}
		w.queue = w.open(book)
		w.after(time.Minute+time.Second, func() { w.admit("a") })
		w.next(sandbox.MakeID("00000000000000000000000001"), time.Minute+2*time.Second)
		if n := book.looks.Load(); n > 40 {
			t.Errorf("it looked %d times in a minute", n)
		}
	})
}

func TestAnErrorOfTheLedgerIsReturned(t *testing.T) {
	in(t, func(w *world) {
		w.queue = w.open(&deaf{Ledger: w.book, fail: fault.New(fault.Unavailable, "no")})
		if _, err := w.queue.Next(w.t.Context()); !fault.Is(err, fault.Unavailable) {
			t.Errorf("Next returned %v", err)
		}
	})
}

func TestConfig(t *testing.T) {
	for _, cfg := range []acheron.Config{{}, {Ledger: memledger.New()}, {Owner: "x"}, {Ledger: memledger.New(), Owner: "x", Lease: -1}} {
		if _, err := acheron.New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

// TestSchedulersDrainTheQueue has four schedulers place what five tenants ask
// for, each with a limit, on a node with little room, with runs that end.
func TestSchedulersDrainTheQueue(t *testing.T) {
	in(t, func(w *world) {
		w.epoch = w.join(6)
		const n = 200
		for i := range n {
			w.admit(fmt.Sprintf("t%d", i%5), running(2))
		}
		ctx, cancel := context.WithCancel(w.t.Context())
		var mu sync.Mutex
		var wg sync.WaitGroup
		placed, onNode, failed := map[sandbox.ID]bool{}, 0, 0
		schedule := func() {
			for {
				c, err := w.queue.Next(ctx)
				if err != nil {
					return
				}
				a, err := w.book.Place(ctx, c, "n1", w.epoch, time.Now())
				mu.Lock()
				switch {
				case err == nil:
					if placed[a.Sandbox] {
						t.Errorf("%s was placed twice", a.Sandbox)
					}
					placed[a.Sandbox] = true
					onNode++
					wg.Go(func() {
						time.Sleep(time.Second)
						mu.Lock()
						onNode--
						done := len(placed) == n && onNode == 0
						mu.Unlock()
						w.end(a.Sandbox)
						if done {
							cancel()
						}
					})
				case fault.Is(err, fault.QuotaExceeded):
					failed++
					w.ownLimit(c)
				case fault.Is(err, fault.Unavailable):
					failed++
					w.noNode(c)
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		}
		began := time.Now()
		for range 4 {
			wg.Go(schedule)
		}
		wg.Wait()
		// 200 runs of a second, six at a time.
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("it took %v", took)
		}
		if failed > 3*n {
			t.Errorf("%d tries failed for %d requests", failed, n)
		}
		t.Logf("%d tries failed, in %v", failed, time.Since(began))
	})
}
