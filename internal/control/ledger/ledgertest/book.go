package ledgertest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var bookCases = []testCase{
	{"What is not there is NotFound", func(_ *testing.T, w *world) {
		_, err := w.l.Get(w.ctx, makeID(1))
		w.refused(err, fault.NotFound)
		_, err = w.l.Events(w.ctx, makeID(1), 0)
		w.refused(err, fault.NotFound)
	}},
	{"Events come after the one that was seen", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		ev, err := w.l.Events(w.ctx, a.Sandbox, 2)
		w.must(err)
		if len(ev) != 1 || ev[0].Seq != 3 || ev[0].State != sandbox.Starting {
			t.Errorf("after 2 come %+v", ev)
		}
		ev, err = w.l.Events(w.ctx, a.Sandbox, 3)
		w.must(err)
		if len(ev) != 0 {
			t.Errorf("after the last come %+v", ev)
		}
	}},
	{"List returns pages, newest first, that follow each other", func(t *testing.T, w *world) {
		for range 7 {
			w.admit("a")
		}
		var got []sandbox.ID
		q := ledger.Query{Limit: 3}
		for page := 1; ; page++ {
			p, err := w.l.List(w.ctx, q)
			w.must(err)
			for _, r := range p.Records {
				got = append(got, r.ID)
			}
			if p.More != (page < 3) {
				t.Fatalf("page %d: More is %v", page, p.More)
			}
			if !p.More {
				break
			}
			q.Before = got[len(got)-1]
		}
		if len(got) != 7 {
			t.Fatalf("the pages have %d records", len(got))
		}
		for i, id := range got {
			if id != makeID(7-i) {
				t.Errorf("record %d is %s", i, id)
			}
		}
	}},
	{"A page is 100, and at most 1000", func(t *testing.T, w *world) {
		for range 1001 {
			w.admit("a")
		}
		for limit, want := range map[int]int{0: 100, -1: 100, 5: 5, 5000: 1000} {
			for _, q := range []ledger.Query{{Limit: limit}, {Limit: limit, Tenant: "a"}} {
				p, err := w.l.List(w.ctx, q)
				w.must(err)
				if len(p.Records) != want || !p.More {
					t.Errorf("%+v gives %d records, more %v; want %d", q, len(p.Records), p.More, want)
				}
			}
			if a, err := w.l.AuditEntries(w.ctx, ledger.AuditQuery{Limit: limit}); err != nil || len(a) != want {
				t.Errorf("audit limit %d gives %d entries, %v; want %d", limit, len(a), err, want)
			}
		}
	}},
	{"List selects by tenant, state, node and labels", listSelects},
	{"Watch tells of a change since the last was received", func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		c := w.l.Watch(ctx)
		changed := func(what string, want bool) {
			t.Helper()
			select {
			case _, ok := <-c:
				if !want || !ok {
					t.Fatalf("after %s: told %v, want %v", what, ok, want)
				}
			default:
				if want {
					t.Fatalf("after %s: not told", what)
				}
			}
		}
		changed("nothing", false)
		id := w.admit("a")
		w.admit("a")
		changed("two steps", true)
		changed("two steps, once received", false)
		w.get(id)
		_, err := w.l.Kill(w.ctx, makeID(99), sandbox.Killed, w.now, w.audit("kill"))
		w.refused(err, fault.NotFound)
		changed("reading, and a step that failed", false)
		w.join("n1")
		changed("Join", true)
		w.ended(id)
		changed("End", true)
		cancel()
		select {
		case _, ok := <-c:
			if ok {
				t.Error("told after the end of its context")
			}
		case <-time.After(10 * time.Second):
			t.Error("not closed when its context ended")
		}
		w.admit("a")
	}},
	{"Watch never blocks a step, and each has its own", func(t *testing.T, w *world) {
		deaf, c := w.l.Watch(w.ctx), w.l.Watch(w.ctx)
		for range 3 {
			w.admit("a")
			<-c
		}
		if len(deaf) != 1 {
			t.Errorf("one that did not listen has %d values waiting", len(deaf))
		}
	}},
	{"Live counts live records by state, and nothing else", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		a := w.accepted("a", "n1", epoch)
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Running, At: w.now}))
		w.accepted("b", "n1", epoch)
		w.ended(w.admit("a"))
		w.admit("a")
		got, err := w.l.Live(w.ctx)
		w.must(err)
		want := map[sandbox.State]int{sandbox.Queued: 1, sandbox.Assigned: 0, sandbox.Starting: 1, sandbox.Running: 1, sandbox.Stopping: 0}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}},
	{"Usage is a sum over live records", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		a := w.accepted("a", "n1", epoch)
		w.assigned("a", "n1", epoch)
		w.assigned("b", "n1", epoch)
		w.admit("a")
		w.ended(w.admit("c"))
		want := map[string]ledger.Usage{
			"a": {Live: 3, Running: 2, VCPUs: 2, MemoryMiB: 256, DiskMiB: 128},
			"b": {Live: 1, Running: 1, VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
		}
		got, err := w.l.Usage(w.ctx, nil)
		w.must(err)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("usage differs (-want +got):\n%s", d)
		}
		got, err = w.l.Usage(w.ctx, []string{"b", "c", "d"})
		w.must(err)
		if d := cmp.Diff(map[string]ledger.Usage{"b": want["b"]}, got); d != "" {
			t.Errorf("usage of some differs (-want +got):\n%s", d)
		}
		w.end(a, exited(0))
		got, err = w.l.Usage(w.ctx, []string{"a"})
		w.must(err)
		if got["a"] != (ledger.Usage{Live: 2, Running: 1, VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}) {
			t.Errorf("after an end it is %+v", got["a"])
		}
	}},
	{"Join raises the epoch and keeps the node as it says", func(t *testing.T, w *world) {
		_, err := w.l.Join(w.ctx, sandbox.Node{})
		w.refused(err, fault.InvalidArgument)
		n := sandbox.Node{
			ID: "n1", Epoch: 77, Labels: map[string]string{"zone": "a"}, Capacity: sandbox.Capacity{VCPUs: 4, MemoryMiB: 4096, DiskMiB: 9},
			Runtime: sandbox.Runtime{Driver: "fake"}, SeenAt: w.now, Draining: true,
		}
		for want := int64(1); want <= 3; want++ {
			got, err := w.l.Join(w.ctx, n)
			w.must(err)
			if got != want {
				t.Errorf("epoch %d, want %d", got, want)
			}
		}
		w.join("n0")
		nodes, err := w.l.Nodes(w.ctx)
		w.must(err)
		if len(nodes) != 2 || nodes[0].ID != "n0" {
			t.Fatalf("the nodes are %+v", nodes)
		}
		n.Epoch = 3
		if d := cmp.Diff(n, nodes[1]); d != "" {
			t.Errorf("the node differs (-want +got):\n%s", d)
		}
	}},
	{"Prune removes ended records that are too old, and nothing else", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		old := w.accepted("a", "n1", epoch)
		live := w.accepted("a", "n1", epoch)
		queued := w.admit("a")
		w.end(old, exited(0))
		w.later(time.Hour)
		young := w.ended(w.admit("b"))
		prune := func(keep ledger.Retention, want int) {
			t.Helper()
			if n, err := w.l.Prune(w.ctx, keep, w.now); err != nil || n != want {
				t.Fatalf("Prune(%+v) removed %d, %v; want %d", keep, n, err, want)
			}
		}
		prune(ledger.Retention{}, 0)
		prune(ledger.Retention{Age: time.Hour}, 0)
		w.later(1)
		prune(ledger.Retention{Age: time.Hour}, 1)
		prune(ledger.Retention{Age: time.Hour}, 0)
		_, err := w.l.Get(w.ctx, old.Sandbox)
		w.refused(err, fault.NotFound)
		_, err = w.l.Events(w.ctx, old.Sandbox, 0)
		w.refused(err, fault.NotFound)
		w.in(live.Sandbox, sandbox.Starting)
		w.get(queued)
		w.get(young.ID)
		if n := len(w.audits()); n != 4 {
			t.Errorf("there are %d audit entries, want 4", n)
		}
	}},
	{"Prune keeps those that ended last", func(t *testing.T, w *world) {
		var ids []sandbox.ID
		for range 450 {
			ids = append(ids, w.admit("a"))
		}
		live := w.admit("a")
		for i := range ids { // the youngest ends first
			w.later(time.Millisecond)
			w.ended(ids[len(ids)-1-i])
		}
		if n, err := w.l.Prune(w.ctx, ledger.Retention{Count: 3}, w.now); err != nil || n != 447 {
			t.Fatalf("Prune removed %d, %v; want 447", n, err)
		}
		p, err := w.l.List(w.ctx, ledger.Query{})
		w.must(err)
		var got []sandbox.ID
		for _, r := range p.Records {
			got = append(got, r.ID)
		}
		if want := []sandbox.ID{live, ids[2], ids[1], ids[0]}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("what is left is %v, want %v", got, want)
		}
	}},
	{"A context that has ended stops a step before it begins", func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(w.ctx)
		cancel()
		a := w.request("a")
		if _, _, err := w.l.Admit(ctx, a, w.audit("run"), ledger.IdempotencyKey{}); err == nil {
			t.Error("Admit succeeded")
		}
		if _, err := w.l.Nodes(ctx); err == nil {
			t.Error("Nodes succeeded")
		}
		_, err := w.l.Get(w.ctx, a.Record.ID)
		w.refused(err, fault.NotFound)
	}},
	{"After Close everything is Unavailable", func(_ *testing.T, w *world) {
		id := w.admit("a")
		w.must(w.l.Close())
		w.must(w.l.Close())
		_, err := w.l.Get(w.ctx, id)
		w.refused(err, fault.Unavailable)
		_, _, err = w.l.Admit(w.ctx, w.request("a"), w.audit("run"), ledger.IdempotencyKey{})
		w.refused(err, fault.Unavailable)
		_, _, err = w.l.Claim(w.ctx, scheduler, w.now, lease, nil)
		w.refused(err, fault.Unavailable)
	}},
}

func listSelects(t *testing.T, w *world) {
	epoch := w.join("n1")
	labelled := func(tenant string, labels map[string]string) sandbox.ID {
		a := w.request(tenant)
		a.Record.Request.Labels = labels
		return w.admitThis(a)
	}
	odd := map[string]string{`k"'.$[0]`: `v"%_*`, "": "empty"}
	one := labelled("a", map[string]string{"team": "x", "env": "p"})
	two := labelled("b", map[string]string{"team": "x"})
	three := labelled("b", odd)
	four := labelled("b", nil)
	w.place(w.claimOf(one), "n1", epoch)
	w.ended(two)
	refused := w.request("a").Record
	refused.State = sandbox.Refused
	w.must(w.l.Refuse(w.ctx, refused, w.audit("run")))
	team := refused.ID // it has the label team=ci
	for _, c := range []struct {
		name string
		q    ledger.Query
		want []sandbox.ID
	}{
		{"all", ledger.Query{}, []sandbox.ID{team, four, three, two, one}},
		{"tenant", ledger.Query{Tenant: "b"}, []sandbox.ID{four, three, two}},
		{"no such tenant", ledger.Query{Tenant: "c"}, nil},
		{"a state", ledger.Query{States: []sandbox.State{sandbox.Assigned}}, []sandbox.ID{one}},
		{"states", ledger.Query{States: []sandbox.State{sandbox.Failed, sandbox.Queued, sandbox.Failed}}, []sandbox.ID{four, three, two}},
		{"no such state", ledger.Query{States: []sandbox.State{"x"}}, nil},
		{"tenant and state", ledger.Query{Tenant: "b", States: []sandbox.State{sandbox.Queued}}, []sandbox.ID{four, three}},
		{"node", ledger.Query{Node: "n1"}, []sandbox.ID{one}},
		{"node and tenant", ledger.Query{Node: "n1", Tenant: "b"}, nil},
		{"node and state", ledger.Query{Node: "n1", States: []sandbox.State{sandbox.Assigned, sandbox.Queued}}, []sandbox.ID{one}},
		{"label", ledger.Query{Labels: map[string]string{"team": "x"}}, []sandbox.ID{two, one}},
		{"labels", ledger.Query{Labels: map[string]string{"team": "x", "env": "p"}}, []sandbox.ID{one}},
		{"label with another value", ledger.Query{Labels: map[string]string{"team": "y"}}, nil},
		{"odd labels", ledger.Query{Labels: odd}, []sandbox.ID{three}},
		{"label and before", ledger.Query{Labels: map[string]string{"team": "x"}, Before: two}, []sandbox.ID{one}},
		{"tenant, state and before", ledger.Query{Tenant: "b", States: []sandbox.State{sandbox.Queued}, Before: four}, []sandbox.ID{three}},
	} {
		p, err := w.l.List(w.ctx, c.q)
		w.must(err)
		var got []sandbox.ID
		for _, r := range p.Records {
			got = append(got, r.ID)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) || p.More {
			t.Errorf("%s: got %v, more %v; want %v", c.name, got, p.More, c.want)
		}
	}
}
