package ledgertest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// crowdCases let many do the same at once.
var crowdCases = []testCase{
	{"A thousand at once cannot pass a live limit of ten", func(t *testing.T, w *world) {
		var admitted, refused atomic.Int64
		requests := make([]sandbox.Admitted, 1000)
		for i := range requests {
			requests[i] = w.request("a")
			requests[i].Limits.Live = 10
		}
		atOnce(100, func(worker int) {
			for i := worker; i < len(requests); i += 100 {
				switch _, _, err := w.l.Admit(w.ctx, requests[i], w.audit("run"), ledger.IdempotencyKey{}); {
				case err == nil:
					admitted.Add(1)
				case fault.Is(err, fault.QuotaExceeded):
					refused.Add(1)
				default:
					t.Error(err)
				}
			}
		})
		if admitted.Load() != 10 || refused.Load() != 990 {
			t.Errorf("%d were admitted and %d refused", admitted.Load(), refused.Load())
		}
		p, err := w.l.List(w.ctx, ledger.Query{})
		w.must(err)
		if len(p.Records) != 10 {
			t.Errorf("there are %d records", len(p.Records))
		}
		w.must(ledger.VerifyAudit(nil, w.audits()))
	}},
	{"One key used by many at once makes one record", func(t *testing.T, w *world) {
		requests := make([]sandbox.Admitted, 50)
		for i := range requests {
			requests[i] = w.request("a")
		}
		key := ledger.IdempotencyKey{Key: "k", Hash: "h", Expires: w.now.Add(time.Hour)}
		var created atomic.Int64
		ids := make([]sandbox.ID, len(requests))
		atOnce(len(requests), func(i int) {
			rec, isNew, err := w.l.Admit(w.ctx, requests[i], w.audit("run"), key)
			if err != nil {
				t.Error(err)
			}
			if isNew {
				created.Add(1)
			}
			ids[i] = rec.ID
		})
		for _, id := range ids {
			if id != ids[0] {
				t.Errorf("one was given %s, another %s", ids[0], id)
			}
		}
		if created.Load() != 1 {
			t.Errorf("%d were created", created.Load())
		}
	}},
	{"Many schedulers never hold the same request", func(t *testing.T, w *world) {
		const n = 60
		for i := range n {
			w.admit(fmt.Sprintf("t%d", i%3))
		}
		var mu sync.Mutex
		held := map[sandbox.ID]string{}
		atOnce(8, func(worker int) {
			for {
				c, ok, err := w.l.Claim(w.ctx, fmt.Sprintf("s%d", worker), w.now, lease, nil)
				if err != nil {
					t.Error(err)
				}
				if !ok {
					return
				}
				mu.Lock()
				if other := held[c.Admitted.Record.ID]; other != "" {
					t.Errorf("%s is held by %s and by %s", c.Admitted.Record.ID, other, c.Owner)
				}
				held[c.Admitted.Record.ID] = c.Owner
				mu.Unlock()
			}
		})
		if len(held) != n {
			t.Errorf("%d of %d were claimed", len(held), n)
		}
	}},
	{"Many at once cannot place beyond a limit or a node", func(t *testing.T, w *world) {
		epoch, err := w.l.Join(w.ctx, sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 7, MemoryMiB: 1 << 20, DiskMiB: 1 << 20}})
		w.must(err)
		var claims []ledger.Claim
		for i := range 60 {
			a := w.request([]string{"a", "b"}[i%2])
			a.Limits.Running = 4
			w.admitThis(a)
		}
		for range 60 {
			claims = append(claims, w.claim())
		}
		var placed atomic.Int64
		atOnce(20, func(worker int) {
			for i := worker; i < len(claims); i += 20 {
				_, err := w.l.Place(w.ctx, claims[i], "n1", epoch, w.now)
				switch {
				case err == nil:
					placed.Add(1)
				case !fault.Is(err, fault.QuotaExceeded) && !fault.Is(err, fault.Unavailable):
					t.Error(err)
				}
			}
		})
		u, err := w.l.Usage(w.ctx, nil)
		w.must(err)
		if placed.Load() != 7 || u["a"].Running > 4 || u["b"].Running > 4 || u["a"].Running+u["b"].Running != 7 {
			t.Errorf("%d were placed: %+v", placed.Load(), u)
		}
	}},
	{"Accept, Requeue, Kill and End at once leave one true story", func(t *testing.T, w *world) {
		for round := range 25 {
			epoch := w.join(fmt.Sprintf("n%d", round))
			a := w.assigned("a", fmt.Sprintf("n%d", round), epoch)
			var accept, requeue error
			atOnce(4, func(i int) {
				switch i {
				case 0:
					accept = w.l.Accept(w.ctx, a, w.now)
				case 1:
					requeue = w.l.Requeue(w.ctx, a, w.now, "")
				case 2:
					_, err := w.l.Kill(w.ctx, a.Sandbox, sandbox.Killed, w.now, w.audit("kill"))
					if err != nil {
						t.Error(err)
					}
				case 3:
					_, err := w.l.Get(w.ctx, a.Sandbox)
					if err != nil {
						t.Error(err)
					}
				}
			})
			if accept == nil && requeue == nil {
				t.Errorf("%s was accepted and given back", a.Sandbox)
			}
			w.ended(a.Sandbox)
			ev := w.events(a.Sandbox)
			for i := 1; i < len(ev); i++ {
				if !ev[i-1].State.May(ev[i].State) || ev[i].Seq != ev[i-1].Seq+1 {
					t.Errorf("%s went from %+v to %+v", a.Sandbox, ev[i-1], ev[i])
				}
			}
			accepted := ev[len(ev)-2].State == sandbox.Starting
			if accepted != (accept == nil) {
				t.Errorf("Accept said %v, and the events are %+v", accept, ev)
			}
		}
	}},
	{"A chain of audit written by many has no gap", func(t *testing.T, w *world) {
		atOnce(10, func(int) {
			for range 20 {
				if err := w.l.Audit(w.ctx, w.audit("x")); err != nil {
					t.Error(err)
				}
			}
		})
		all := w.audits()
		if len(all) != 200 {
			t.Errorf("there are %d entries", len(all))
		}
		w.must(ledger.VerifyAudit(nil, all))
	}},
}

// atOnce runs f in n goroutines, which begin together, and waits for all.
func atOnce(n int, f func(i int)) {
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-begin
			f(i)
		})
	}
	close(begin)
	wg.Wait()
}
