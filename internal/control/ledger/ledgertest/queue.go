package ledgertest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var queueCases = []testCase{
	{"Claim takes the oldest of a tenant, whole, for its owner", func(t *testing.T, w *world) {
		first, second := w.admit("a"), w.admit("a")
		c := w.claimOf(first)
		if c.Owner != scheduler || c.Token != 1 || !c.Until.Equal(w.now.Add(lease)) {
			t.Errorf("the claim is %s, %d, %v", c.Owner, c.Token, c.Until)
		}
		if string(c.Admitted.Secrets) != "secrets of it" || string(c.Admitted.Verdict) != "verdict of it" || c.Admitted.Limits != plenty {
			t.Errorf("the claim is not whole: %+v", c.Admitted)
		}
		w.claimOf(second)
		w.nothing()
		w.in(first, sandbox.Queued)
	}},
	{"An empty queue gives nothing", func(_ *testing.T, w *world) { w.nothing() }},
	{"A claim needs an owner and a lease", func(_ *testing.T, w *world) {
		w.admit("a")
		_, _, err := w.l.Claim(w.ctx, "", w.now, lease, nil)
		w.refused(err, fault.InvalidArgument)
		_, _, err = w.l.Claim(w.ctx, scheduler, w.now, 0, nil)
		w.refused(err, fault.InvalidArgument)
		w.claim()
	}},
	{"The tenant with the fewest on nodes goes first", func(_ *testing.T, w *world) {
		epoch := w.join("n1")
		w.assigned("a", "n1", epoch)
		a := w.admit("a")
		b := w.admit("b")
		w.claimOf(b)
		w.claimOf(a)
	}},
	{"Having few on nodes weighs more than having been served long ago", func(_ *testing.T, w *world) {
		epoch := w.join("n1")
		w.assigned("a", "n1", epoch)
		w.ended(w.assigned("b", "n1", epoch).Sandbox)
		b := w.admit("b")
		a := w.admit("a")
		w.claimOf(b)
		w.claimOf(a)
	}},
	{"Among equals the one served longest ago goes first", func(t *testing.T, w *world) {
		for range 3 {
			w.admit("a")
		}
		for range 2 {
			w.admit("b")
		}
		w.admit("c")
		var got []string
		for range 6 {
			got = append(got, w.claim().Admitted.Record.Tenant)
		}
		if want := []string{"a", "b", "c", "a", "b", "a"}; !slices.Equal(got, want) {
			t.Errorf("the tenants were served %v, want %v", got, want)
		}
	}},
	{"A tenant's thousand do not starve another's one", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		for range 1000 {
			w.admit("many")
		}
		for range 3 {
			w.place(w.claim(), "n1", epoch)
		}
		id := w.admit("one")
		w.claimOf(id)
		if got := w.claim().Admitted.Record.Tenant; got != "many" {
			t.Errorf("then %q is served", got)
		}
	}},
	{"Tenants in skip are passed over", func(_ *testing.T, w *world) {
		w.admit("a")
		b := w.admit("b")
		c, ok, err := w.l.Claim(w.ctx, scheduler, w.now, lease, []string{"a", `x"]`, "c"})
		w.must(err)
		if !ok || c.Admitted.Record.ID != b {
			w.t.Errorf("with a skipped, Claim took %v %s", ok, c.Admitted.Record.ID)
		}
		w.nothing("a")
		w.claim()
	}},
	{"A claim lives until its lease passes, then another may take it", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		id := w.admit("a")
		old := w.claimOf(id)
		w.later(lease - 1)
		w.nothing()
		w.later(1)
		c, ok, err := w.l.Claim(w.ctx, "s2", w.now, lease, nil)
		w.must(err)
		if !ok || c.Token <= old.Token || c.Owner != "s2" {
			t.Fatalf("after the lease: %v, token %d after %d, owner %s", ok, c.Token, old.Token, c.Owner)
		}
		w.refused(w.l.Release(w.ctx, old, w.now, ledger.Waiting{}), fault.Conflict)
		_, err = w.l.Place(w.ctx, old, "n1", epoch, w.now)
		w.refused(err, fault.Conflict)
		_, err = w.l.Drop(w.ctx, old, sandbox.End{At: w.now, Exit: sandbox.ExitRecord{Cause: sandbox.NoCapacity}})
		w.refused(err, fault.Conflict)
		w.place(c, "n1", epoch)
	}},
	{"The same owner's older claim is not its newer one", func(_ *testing.T, w *world) {
		w.admit("a")
		old := w.claim()
		w.later(lease)
		w.claim()
		w.refused(w.l.Release(w.ctx, old, w.now, ledger.Waiting{}), fault.Conflict)
	}},
	{"Place after the lease is a Conflict even if nobody took it", func(_ *testing.T, w *world) {
		epoch := w.join("n1")
		w.admit("a")
		c := w.claim()
		w.later(lease)
		_, err := w.l.Place(w.ctx, c, "n1", epoch, w.now)
		w.refused(err, fault.Conflict)
		w.must(w.l.Release(w.ctx, c, w.now, ledger.Waiting{}))
		w.claim()
	}},
	{"Release offers it again from notBefore on, with what it waits for", func(t *testing.T, w *world) {
		id := w.admit("a")
		c := w.claim()
		if len(c.Waiting.Reasons) != 0 || !c.Waiting.NoNodeSince.IsZero() {
			t.Errorf("a new one waits for %v", c.Waiting)
		}
		since := w.now
		w.must(w.l.Release(w.ctx, c, w.now.Add(time.Minute), ledger.Waiting{NoNodeSince: since, Reasons: []string{"2 full"}}))
		w.refused(w.l.Release(w.ctx, c, w.now, ledger.Waiting{}), fault.Conflict)
		w.later(time.Minute - 1)
		w.nothing()
		w.later(1)
		c = w.claimOf(id)
		if !c.Waiting.NoNodeSince.Equal(since) || !slices.Equal(c.Waiting.Reasons, []string{"2 full"}) {
			t.Errorf("it waits for %+v", c.Waiting)
		}
	}},
	{"Release of what is not there is NotFound", func(_ *testing.T, w *world) {
		w.refused(w.l.Release(w.ctx, ledger.Claim{Admitted: w.request("a"), Owner: "x", Token: 1}, w.now, ledger.Waiting{}), fault.NotFound)
	}},
	{"A younger one is offered while an older one waits", func(_ *testing.T, w *world) {
		w.admit("a")
		second := w.admit("a")
		w.must(w.l.Release(w.ctx, w.claim(), w.now.Add(time.Minute), ledger.Waiting{}))
		w.claimOf(second)
	}},
	{"ClaimEarly has no regard for NotBefore, but for claims", func(_ *testing.T, w *world) {
		first := w.admit("a")
		w.must(w.l.Release(w.ctx, w.claim(), w.now.Add(time.Minute), ledger.Waiting{}))
		w.nothing()
		c, ok, err := w.l.ClaimEarly(w.ctx, scheduler, w.now, lease, []string{"a"})
		w.must(err)
		if ok {
			w.t.Errorf("ClaimEarly took %s of a skipped tenant", c.Admitted.Record.ID)
		}
		c, ok, err = w.l.ClaimEarly(w.ctx, scheduler, w.now, lease, nil)
		w.must(err)
		if !ok || c.Admitted.Record.ID != first {
			w.t.Fatalf("ClaimEarly took %v %s", ok, c.Admitted.Record.ID)
		}
		_, ok, err = w.l.ClaimEarly(w.ctx, scheduler, w.now, lease, nil)
		w.must(err)
		if ok {
			w.t.Error("ClaimEarly took what another holds")
		}
	}},
	{"ClaimOverdue takes those that waited too long, the longest first", func(_ *testing.T, w *world) {
		overdue := func() (sandbox.ID, bool) {
			c, ok, err := w.l.ClaimOverdue(w.ctx, scheduler, w.now, lease)
			w.must(err)
			return c.Admitted.Record.ID, ok
		}
		long, short, never := w.request("a"), w.request("a"), w.request("a")
		long.Record.Request.QueueTimeout, short.Record.Request.QueueTimeout = 2*time.Minute, time.Minute
		w.admitThis(long)
		w.admitThis(short)
		w.admitThis(never)
		// What waits for later, and what another holds.
		w.must(w.l.Release(w.ctx, w.claimOf(long.Record.ID), w.now.Add(time.Hour), ledger.Waiting{}))
		w.claimOf(short.Record.ID)
		w.later(lease - 1)
		if id, ok := overdue(); ok {
			w.t.Fatalf("%s is overdue at %v", id, w.now)
		}
		w.later(30 * time.Second) // the lease on short has passed, its deadline nearly
		if id, ok := overdue(); ok {
			w.t.Fatalf("%s is overdue before its deadline", id)
		}
		w.later(time.Minute + time.Nanosecond)
		for _, want := range []sandbox.ID{short.Record.ID, long.Record.ID} {
			if id, ok := overdue(); !ok || id != want {
				w.t.Fatalf("overdue is %v %s, want %s", ok, id, want)
			}
		}
		if id, ok := overdue(); ok {
			w.t.Fatalf("%s is overdue", id)
		}
	}},
	{"ClaimOverdue leaves alone what another holds", func(_ *testing.T, w *world) {
		a := w.request("a")
		a.Record.Request.QueueTimeout = time.Second
		w.admitThis(a)
		w.claim()
		w.later(2 * time.Second)
		_, ok, err := w.l.ClaimOverdue(w.ctx, "s2", w.now, lease)
		w.must(err)
		if ok {
			w.t.Error("ClaimOverdue took what another holds")
		}
		w.later(lease)
		_, ok, err = w.l.ClaimOverdue(w.ctx, "s2", w.now, lease)
		w.must(err)
		if !ok {
			w.t.Error("ClaimOverdue found nothing after the lease")
		}
	}},
	{"Drop ends a claimed request in the queue", func(t *testing.T, w *world) {
		id := w.admit("a")
		c := w.claim()
		w.later(time.Second)
		rec, err := w.l.Drop(w.ctx, c, sandbox.End{At: w.now, Exit: sandbox.ExitRecord{Cause: sandbox.QueueTimeout, Message: "too long"}})
		w.must(err)
		if rec.State != sandbox.Failed || rec.Exit.Cause != sandbox.QueueTimeout || rec.Exit.Source != sandbox.FromHost || rec.Timings.Total != 1000 {
			t.Errorf("it ended as %s %+v after %v ms", rec.State, rec.Exit, rec.Timings.Total)
		}
		ev := w.road(id, sandbox.Queued, sandbox.Failed)
		if ev[1].Cause != sandbox.QueueTimeout || ev[1].Message != "too long" {
			t.Errorf("the event is %+v", ev[1])
		}
		_, err = w.l.Drop(w.ctx, c, sandbox.End{At: w.now, Exit: sandbox.ExitRecord{Cause: sandbox.QueueTimeout}})
		w.refused(err, fault.Conflict)
		_, err = w.l.Admitted(w.ctx, id)
		w.refused(err, fault.Conflict)
		w.later(lease)
		w.nothing()
	}},
	{"Due says when there is something to claim", func(t *testing.T, w *world) {
		due := func(skip ...string) ledger.Due {
			d, err := w.l.Due(w.ctx, skip)
			w.must(err)
			return d
		}
		if d := due(); !d.Offer.IsZero() || !d.Overdue.IsZero() || d.OnNodes != 0 || d.Joins != 0 {
			t.Fatalf("an empty ledger is due %+v", d)
		}
		a := w.request("a")
		a.Record.Request.QueueTimeout = time.Minute
		w.admitThis(a)
		deadline := w.now.Add(time.Minute)
		if d := due(); d.Offer.IsZero() || d.Offer.After(w.now) || !d.Overdue.Equal(deadline) {
			t.Fatalf("a new request is due %+v", d)
		}
		if d := due("a"); !d.Offer.IsZero() || !d.Overdue.Equal(deadline) {
			t.Fatalf("of a skipped tenant it is due %+v", d)
		}
		w.later(50 * time.Second)
		c := w.claim()
		if d := due(); !d.Offer.Equal(c.Until) || !d.Overdue.Equal(c.Until) {
			t.Fatalf("a claimed one is due %+v, want %v", d, c.Until)
		}
		w.must(w.l.Release(w.ctx, c, w.now.Add(time.Hour), ledger.Waiting{}))
		w.admit("b")
		if d := due("b"); !d.Offer.Equal(w.now.Add(time.Hour)) || !d.Overdue.Equal(deadline) {
			t.Fatalf("one that waits is due %+v", d)
		}
		epoch := w.join("n1")
		w.place(w.claim(), "n1", epoch)
		if d := due("a"); !d.Offer.IsZero() || d.OnNodes != 1 || d.Joins != 1 {
			t.Fatalf("with one on a node it is due %+v", d)
		}
		w.join("n1")
		w.join("n2")
		if d := due(); d.Joins != 3 {
			t.Fatalf("after three joins it is due %+v", d)
		}
	}},
	{"Backlog counts the queue", func(t *testing.T, w *world) {
		for range 3 {
			w.admit("a")
			w.later(time.Second)
		}
		w.must(w.l.Release(w.ctx, w.claim(), w.now.Add(time.Hour), ledger.Waiting{}))
		w.claim()
		b, err := w.l.Backlog(w.ctx, w.now)
		w.must(err)
		if b != (ledger.Backlog{Ready: 1, Waiting: 1, Claimed: 1, Oldest: epoch0}) {
			t.Errorf("the backlog is %+v", b)
		}
		b, err = w.l.Backlog(w.ctx, w.now.Add(lease))
		w.must(err)
		if b.Ready != 2 || b.Claimed != 0 {
			t.Errorf("after the lease the backlog is %+v", b)
		}
	}},
	{"Requests of many tenants are served in turn", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		for i := range 40 {
			w.admit(fmt.Sprintf("t%d", i%8))
		}
		running := map[string]int{}
		for range 40 {
			c := w.claim()
			least := 1 << 30
			for i := range 8 {
				least = min(least, running[fmt.Sprintf("t%d", i)])
			}
			tenant := c.Admitted.Record.Tenant
			if running[tenant] != least {
				t.Fatalf("%s with %d on nodes was served while another had %d", tenant, running[tenant], least)
			}
			w.place(c, "n1", epoch)
			running[tenant]++
		}
	}},
}
