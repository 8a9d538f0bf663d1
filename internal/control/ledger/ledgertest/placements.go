package ledgertest

import (
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var placementCases = []testCase{
	{"Place binds a claimed request to a node", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		id := w.admit("a")
		w.later(2 * time.Millisecond)
		c := w.claim()
		w.later(3 * time.Millisecond)
		a := w.place(c, "n1", epoch)
		if a != (sandbox.Assignment{Sandbox: id, Attempt: 1, Node: "n1", Epoch: epoch}) {
			t.Fatalf("the assignment is %+v", a)
		}
		rec := w.in(id, sandbox.Assigned)
		if rec.Node != "n1" || rec.Epoch != epoch || rec.Runtime.Attempt != 1 || !rec.AssignedAt.Equal(w.now) {
			t.Errorf("the record is %+v", rec)
		}
		if rec.Timings.Queued != 2 || rec.Timings.Placed != 5 {
			t.Errorf("the timings are %+v", rec.Timings)
		}
		if ev := w.road(id, sandbox.Queued, sandbox.Assigned); !ev[1].Time.Equal(w.now) {
			t.Errorf("the event is %+v", ev[1])
		}
		w.later(lease)
		w.nothing()
		_, err := w.l.Place(w.ctx, c, "n1", epoch, w.now)
		w.refused(err, fault.Conflict)
	}},
	{"Place needs the node's present epoch", func(_ *testing.T, w *world) {
		old := w.join("n1")
		epoch := w.join("n1")
		if epoch <= old {
			w.t.Fatalf("epoch %d follows %d", epoch, old)
		}
		w.admit("a")
		c := w.claim()
		_, err := w.l.Place(w.ctx, c, "n1", old, w.now)
		w.refused(err, fault.Unavailable)
		_, err = w.l.Place(w.ctx, c, "n2", 1, w.now)
		w.refused(err, fault.Conflict)
		w.place(c, "n1", epoch)
	}},
	{"Place of an invented claim is a Conflict", func(_ *testing.T, w *world) {
		epoch := w.join("n1")
		w.admit("a")
		c := w.claim()
		for _, spoil := range []func(c *ledger.Claim){
			func(c *ledger.Claim) { c.Owner = "s2" },
			func(c *ledger.Claim) { c.Token++ },
		} {
			d := c
			spoil(&d)
			_, err := w.l.Place(w.ctx, d, "n1", epoch, w.now)
			w.refused(err, fault.Conflict)
		}
		c.Admitted.Record.ID = makeID(99)
		_, err := w.l.Place(w.ctx, c, "n1", epoch, w.now)
		w.refused(err, fault.NotFound)
	}},
	{"Place keeps to each limit of the tenant", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		res := sandbox.Resources{VCPUs: 2, MemoryMiB: 256, DiskMiB: 100}
		for name, l := range map[string]sandbox.Limits{
			"running": {Running: 2, VCPUs: 100, MemoryMiB: 10000, DiskMiB: 10000},
			"vcpus":   {Running: 100, VCPUs: 5, MemoryMiB: 10000, DiskMiB: 10000},
			"memory":  {Running: 100, VCPUs: 100, MemoryMiB: 3*256 - 1, DiskMiB: 10000}, // the overhead is not counted
			"disk":    {Running: 100, VCPUs: 100, MemoryMiB: 10000, DiskMiB: 299},
		} {
			l.Live = 100
			var placed []sandbox.Assignment
			for range 3 {
				a := w.request(name)
				a.Record.Request.Resources, a.Limits = res, l
				w.admitThis(a)
			}
			for range 2 {
				placed = append(placed, w.place(w.claim(), "n1", epoch))
			}
			c := w.claim()
			_, err := w.l.Place(w.ctx, c, "n1", epoch, w.now)
			w.refused(err, fault.QuotaExceeded)
			w.in(c.Admitted.Record.ID, sandbox.Queued)
			w.ended(placed[0].Sandbox)
			w.place(c, "n1", epoch) // the claim is still held
			if u, err := w.l.Usage(w.ctx, []string{name}); err != nil || u[name].Running != 2 {
				t.Errorf("%s: usage is %v, %v", name, u, err)
			}
		}
	}},
	{"Place goes by the limits that were admitted, not by the claim's copy", func(_ *testing.T, w *world) {
		epoch := w.join("n1")
		a := w.request("a")
		a.Limits.Running = 0
		w.admitThis(a)
		c := w.claim()
		c.Admitted.Limits = plenty
		c.Admitted.Record.Tenant = "b"
		_, err := w.l.Place(w.ctx, c, "n1", epoch, w.now)
		w.refused(err, fault.QuotaExceeded)
	}},
	{"Place keeps to the node's capacity, the overhead of VMs included", func(t *testing.T, w *world) {
		res := sandbox.Resources{VCPUs: 2, MemoryMiB: 256, DiskMiB: 100}
		for name, c := range map[string]sandbox.Capacity{
			"vcpus":  {VCPUs: 5, MemoryMiB: 10000, DiskMiB: 10000},
			"memory": {VCPUs: 100, MemoryMiB: 3*(256+sandbox.VMOverheadMiB) - 1, DiskMiB: 10000},
			"disk":   {VCPUs: 100, MemoryMiB: 10000, DiskMiB: 299},
		} {
			epoch, err := w.l.Join(w.ctx, sandbox.Node{ID: name, Capacity: c})
			w.must(err)
			var first sandbox.Assignment
			for i := range 3 {
				a := w.request("a")
				a.Record.Request.Resources = res
				w.admitThis(a)
				c := w.claim()
				got, err := w.l.Place(w.ctx, c, name, epoch, w.now)
				if i < 2 {
					w.must(err)
					first = got
					continue
				}
				w.refused(err, fault.Unavailable)
				w.ended(first.Sandbox)
				w.place(c, name, epoch)
			}
		}
		nodes, err := w.l.Nodes(w.ctx)
		w.must(err)
		for _, n := range nodes {
			if want := (sandbox.Capacity{VCPUs: 4, MemoryMiB: 2 * (256 + sandbox.VMOverheadMiB), DiskMiB: 200}); n.InUse != want {
				t.Errorf("of %s is in use %+v, want %+v", n.ID, n.InUse, want)
			}
		}
	}},
	{"A node that joined again still holds what it had", func(_ *testing.T, w *world) {
		node := sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 1, MemoryMiB: 1000, DiskMiB: 1000}}
		epoch, err := w.l.Join(w.ctx, node)
		w.must(err)
		a := w.accepted("a", "n1", epoch)
		node.InUse.VCPUs = -5 // not for the node to say
		epoch, err = w.l.Join(w.ctx, node)
		w.must(err)
		w.admit("a")
		c := w.claim()
		_, err = w.l.Place(w.ctx, c, "n1", epoch, w.now)
		w.refused(err, fault.Unavailable)
		w.end(a, sandbox.ExitRecord{Cause: sandbox.NodeLost})
		w.place(c, "n1", epoch)
	}},
	{"Requeue gives an assignment back, and the next attempt is a higher one", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		id := w.admit("a")
		younger := w.admit("a")
		first := w.claimOf(id)
		a := w.place(first, "n1", epoch)
		at := w.now.Add(time.Minute)
		w.must(w.l.Requeue(w.ctx, a, at, "refused"))
		w.must(w.l.Requeue(w.ctx, a, at, "refused")) // again
		rec := w.in(id, sandbox.Queued)
		if rec.Node != "" || rec.Epoch != 0 || !rec.AssignedAt.IsZero() || rec.Timings.Placed != 0 {
			t.Errorf("the record still tells of its node: %+v", rec)
		}
		ev := w.road(id, sandbox.Queued, sandbox.Assigned, sandbox.Queued)
		if ev[2].Message != "refused" || !ev[2].Time.Equal(at) {
			t.Errorf("the event is %+v", ev[2])
		}
		w.claimOf(younger)
		w.nothing()
		w.later(time.Minute)
		w.ended(younger)
		c := w.claimOf(id)
		if c.Token <= first.Token {
			t.Errorf("token %d follows %d", c.Token, first.Token)
		}
		b := w.place(c, "n1", epoch)
		if b.Attempt != 2 {
			t.Errorf("the next attempt is %d", b.Attempt)
		}
		w.refused(w.l.Requeue(w.ctx, a, at, "refused"), fault.Conflict)
		w.refused(w.l.Accept(w.ctx, a, w.now), fault.Conflict)
		w.must(w.l.Accept(w.ctx, b, w.now))
	}},
	{"Requeue frees what was taken", func(_ *testing.T, w *world) {
		node := sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 1, MemoryMiB: 1000, DiskMiB: 1000}}
		epoch, err := w.l.Join(w.ctx, node)
		w.must(err)
		a := w.assigned("a", "n1", epoch)
		w.must(w.l.Requeue(w.ctx, a, w.now.Add(time.Hour), ""))
		w.assigned("a", "n1", epoch)
	}},
	{"Requeue is a Conflict once accepted", func(_ *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		w.refused(w.l.Requeue(w.ctx, a, w.now, ""), fault.Conflict)
		w.in(a.Sandbox, sandbox.Starting)
		w.ended(a.Sandbox)
		w.refused(w.l.Requeue(w.ctx, a, w.now, ""), fault.Conflict)
	}},
	{"Requeue of one that is to be killed ends it", func(t *testing.T, w *world) {
		a := w.assigned("a", "n1", w.join("n1"))
		_, err := w.l.Kill(w.ctx, a.Sandbox, sandbox.Killed, w.now, w.audit("kill"))
		w.must(err)
		w.must(w.l.Requeue(w.ctx, a, w.now, "refused"))
		w.must(w.l.Requeue(w.ctx, a, w.now, "refused"))
		rec := w.in(a.Sandbox, sandbox.Failed)
		if rec.Exit.Cause != sandbox.Killed || rec.Exit.Source != sandbox.FromHost || rec.Kill != "" {
			t.Errorf("it ended with %+v", rec.Exit)
		}
		w.nothing()
	}},
	{"Accept is written once", func(t *testing.T, w *world) {
		a := w.assigned("a", "n1", w.join("n1"))
		w.later(time.Second)
		w.must(w.l.Accept(w.ctx, a, w.now))
		at := w.now
		w.later(time.Second)
		w.must(w.l.Accept(w.ctx, a, w.now))
		if rec := w.in(a.Sandbox, sandbox.Starting); !rec.AcceptedAt.Equal(at) {
			t.Errorf("it was accepted at %v, want %v", rec.AcceptedAt, at)
		}
		w.road(a.Sandbox, sandbox.Queued, sandbox.Assigned, sandbox.Starting)
	}},
	{"A fenced assignment can be given back, and no more", func(_ *testing.T, w *world) {
		a := w.assigned("a", "n1", w.join("n1"))
		b := w.accepted("a", "n1", a.Epoch)
		w.join("n1")
		w.refused(w.l.Accept(w.ctx, a, w.now), fault.Conflict)
		w.refused(w.l.Accept(w.ctx, b, w.now), fault.Conflict)
		w.refused(w.l.Advance(w.ctx, b, sandbox.Progress{State: sandbox.Running, At: w.now}), fault.Conflict)
		w.must(w.l.Requeue(w.ctx, a, w.now, "fenced"))
		w.refused(w.l.Requeue(w.ctx, b, w.now, "fenced"), fault.Conflict)
		w.in(a.Sandbox, sandbox.Queued)
		w.in(b.Sandbox, sandbox.Starting)
	}},
	{"A fenced assignment may end", func(_ *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		w.join("n1")
		w.end(a, sandbox.ExitRecord{Cause: sandbox.NodeLost})
		w.in(a.Sandbox, sandbox.Failed)
	}},
	{"An assignment with any part wrong is a Conflict", func(_ *testing.T, w *world) {
		a := w.assigned("a", "n1", w.join("n1"))
		w.join("n2")
		for _, spoil := range []func(a *sandbox.Assignment){
			func(a *sandbox.Assignment) { a.Attempt++ },
			func(a *sandbox.Assignment) { a.Node = "n2" },
			func(a *sandbox.Assignment) { a.Epoch++ },
		} {
			b := a
			spoil(&b)
			w.refused(w.l.Accept(w.ctx, b, w.now), fault.Conflict)
			w.refused(w.l.Advance(w.ctx, b, sandbox.Progress{}), fault.Conflict)
			w.refused(w.l.Requeue(w.ctx, b, w.now, ""), fault.Conflict)
			_, err := w.l.End(w.ctx, b, sandbox.End{At: w.now, Exit: sandbox.ExitRecord{Cause: sandbox.Internal}})
			w.refused(err, fault.Conflict)
		}
		b := a
		b.Sandbox = makeID(99)
		w.refused(w.l.Accept(w.ctx, b, w.now), fault.NotFound)
		w.refused(w.l.Advance(w.ctx, b, sandbox.Progress{}), fault.NotFound)
		w.refused(w.l.Requeue(w.ctx, b, w.now, ""), fault.NotFound)
		_, err := w.l.End(w.ctx, b, sandbox.End{At: w.now, Exit: sandbox.ExitRecord{Cause: sandbox.Internal}})
		w.refused(err, fault.NotFound)
		w.in(a.Sandbox, sandbox.Assigned)
	}},
	{"Advance needs an accepted one", func(_ *testing.T, w *world) {
		a := w.assigned("a", "n1", w.join("n1"))
		run := sandbox.Progress{State: sandbox.Running, At: w.now}
		w.refused(w.l.Advance(w.ctx, a, run), fault.Conflict)
		w.must(w.l.Accept(w.ctx, a, w.now))
		w.must(w.l.Advance(w.ctx, a, run))
		w.ended(a.Sandbox)
		w.refused(w.l.Advance(w.ctx, a, run), fault.Conflict)
	}},
	{"Advance goes along the table of states", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		for _, s := range []sandbox.State{sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Succeeded, sandbox.Failed, "x"} {
			w.refused(w.l.Advance(w.ctx, a, sandbox.Progress{State: s, At: w.now}), fault.InvalidArgument)
		}
		w.refused(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Running}), fault.InvalidArgument)
		run := sandbox.Progress{State: sandbox.Running, At: w.later(time.Second)}
		w.must(w.l.Advance(w.ctx, a, run))
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Running, At: w.later(time.Second)}))
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Stopping, At: w.later(time.Second), Cause: sandbox.MaxDuration}))
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Stopping, At: w.later(time.Second), Cause: sandbox.Memory}))
		w.must(w.l.Advance(w.ctx, a, run)) // an old word, said again
		rec := w.in(a.Sandbox, sandbox.Stopping)
		if !rec.StartedAt.Equal(run.At) || rec.Kill != sandbox.MaxDuration {
			t.Errorf("it started at %v and is to end by %q", rec.StartedAt, rec.Kill)
		}
		ev := w.road(a.Sandbox, sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Running, sandbox.Stopping)
		if ev[4].Cause != sandbox.MaxDuration {
			t.Errorf("the event is %+v", ev[4])
		}
	}},
	{"What stops before it ran never runs", func(_ *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Stopping, At: w.now, Cause: sandbox.StartTimeout}))
		w.refused(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Running, At: w.now}), fault.Conflict)
		w.road(a.Sandbox, sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Stopping)
	}},
	{"Advance fills in facts, and the first word counts", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		p := sandbox.Progress{
			Runtime:   sandbox.Runtime{Driver: "fake", Version: "1", Accelerator: "none", Start: "cold", Attempt: 7},
			Isolation: sandbox.Isolation{Accelerator: "none", Confinement: []string{"seccomp"}, Missing: []string{"uid: not root"}},
			VMReady:   w.now.Add(20 * time.Millisecond),
		}
		w.must(w.l.Advance(w.ctx, a, p))
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{
			State: sandbox.Running, At: w.now, FirstOutput: w.now.Add(30 * time.Millisecond), VMReady: w.now.Add(time.Hour),
			Runtime: sandbox.Runtime{Driver: "other"}, Isolation: sandbox.Isolation{Confinement: []string{"none"}},
		}))
		rec := w.get(a.Sandbox)
		if r := rec.Runtime; r != (sandbox.Runtime{Driver: "fake", Version: "1", Accelerator: "none", Start: "cold", Attempt: 1}) {
			t.Errorf("the runtime is %+v", r)
		}
		if i := rec.Isolation; i.Accelerator != "none" || len(i.Confinement) != 1 || i.Confinement[0] != "seccomp" || len(i.Missing) != 1 {
			t.Errorf("the isolation is %+v", i)
		}
		if rec.Timings.VMReady != 20 || rec.Timings.FirstOutput != 30 {
			t.Errorf("the timings are %+v", rec.Timings)
		}
	}},
}
