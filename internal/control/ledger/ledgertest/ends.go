package ledgertest

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var endCases = []testCase{
	{"End writes the end as given", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Running, At: w.now}))
		w.later(250 * time.Millisecond)
		exit := exited(0)
		exit.LimitsHit = []sandbox.LimitHit{{Limit: "disk", Count: 3}}
		exit.Usage = sandbox.Usage{CPUSeconds: 0.5, LogBytes: 7}
		rec, err := w.l.End(w.ctx, a, sandbox.End{
			At: w.now, Exit: exit, LogDigest: "sha256:x",
			Progress: sandbox.Progress{FirstOutput: w.now.Add(-50 * time.Millisecond)},
		})
		w.must(err)
		if d := cmp.Diff(exit, rec.Exit); d != "" {
			t.Errorf("the exit record differs (-want +got):\n%s", d)
		}
		if rec.State != sandbox.Succeeded || rec.LogDigest != "sha256:x" || !rec.EndedAt.Equal(w.now) ||
			rec.Timings.Total != 250 || rec.Timings.FirstOutput != 200 {
			t.Errorf("the record is %+v", rec)
		}
		if d := cmp.Diff(rec, w.get(a.Sandbox)); d != "" {
			t.Errorf("what End returned differs from what is there:\n%s", d)
		}
		ev := w.road(a.Sandbox, sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Running, sandbox.Succeeded)
		if ev[4].Cause != sandbox.Exited || !ev[4].Time.Equal(w.now) {
			t.Errorf("the event is %+v", ev[4])
		}
	}},
	{"Only exited with 0 has succeeded", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		for _, exit := range []sandbox.ExitRecord{
			exited(3), {Cause: sandbox.Signaled, Signal: 9}, {Cause: sandbox.MaxDuration}, {Cause: sandbox.Exited}, {Cause: sandbox.Killed, Code: ptr(0)},
		} {
			if rec := w.end(w.accepted("a", "n1", epoch), exit); rec.State != sandbox.Failed {
				t.Errorf("%+v made it %s", exit, rec.State)
			}
		}
	}},
	{"An empty source becomes the cause's", func(t *testing.T, w *world) {
		epoch := w.join("n1")
		if rec := w.end(w.accepted("a", "n1", epoch), sandbox.ExitRecord{Cause: sandbox.Signaled}); rec.Exit.Source != sandbox.FromGuest {
			t.Errorf("signaled is the word of %q", rec.Exit.Source)
		}
		if rec := w.end(w.accepted("a", "n1", epoch), sandbox.ExitRecord{Cause: sandbox.Memory}); rec.Exit.Source != sandbox.FromHost {
			t.Errorf("memory is the word of %q", rec.Exit.Source)
		}
	}},
	{"The first end stays", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		first := w.end(a, exited(3))
		w.later(time.Second)
		again := w.end(a, sandbox.ExitRecord{Cause: sandbox.NodeLost})
		w.ended(a.Sandbox)
		stale := a
		stale.Attempt = 7
		w.end(stale, exited(0))
		if d := cmp.Diff(first, again); d != "" {
			t.Errorf("a second End returned another record:\n%s", d)
		}
		if d := cmp.Diff(first, w.get(a.Sandbox)); d != "" {
			t.Errorf("a later End changed the record:\n%s", d)
		}
		w.road(a.Sandbox, sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Failed)
	}},
	{"End erases what it was admitted with", func(_ *testing.T, w *world) {
		id := w.admit("a")
		w.ended(id)
		_, err := w.l.Admitted(w.ctx, id)
		w.refused(err, fault.Conflict)
		_, err = w.l.Admitted(w.ctx, makeID(99))
		w.refused(err, fault.NotFound)
	}},
	{"End from the queue needs no assignment", func(_ *testing.T, w *world) {
		id := w.admit("a")
		c := w.claim()
		w.ended(id)
		w.road(id, sandbox.Queued, sandbox.Failed)
		_, err := w.l.Place(w.ctx, c, "n1", w.join("n1"), w.now)
		w.refused(err, fault.Conflict)
		w.later(lease)
		w.nothing()
	}},
	{"End of whatever attempt", func(_ *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		w.ended(a.Sandbox)
		w.in(a.Sandbox, sandbox.Failed)
	}},
	{"What no node accepted cannot have succeeded", func(_ *testing.T, w *world) {
		id := w.admit("a")
		_, err := w.l.End(w.ctx, sandbox.Assignment{Sandbox: id}, sandbox.End{At: w.now, Exit: exited(0)})
		w.refused(err, fault.Conflict)
		a := w.place(w.claim(), "n1", w.join("n1"))
		_, err = w.l.End(w.ctx, a, sandbox.End{At: w.now, Exit: exited(0)})
		w.refused(err, fault.Conflict)
		w.end(a, sandbox.ExitRecord{Cause: sandbox.StartFailed})
	}},
	{"An end needs a known cause and a time", func(_ *testing.T, w *world) {
		id := w.admit("a")
		a := sandbox.Assignment{Sandbox: id}
		_, err := w.l.End(w.ctx, a, sandbox.End{At: w.now})
		w.refused(err, fault.InvalidArgument)
		_, err = w.l.End(w.ctx, a, sandbox.End{At: w.now, Exit: sandbox.ExitRecord{Cause: "boredom"}})
		w.refused(err, fault.InvalidArgument)
		_, err = w.l.End(w.ctx, a, sandbox.End{Exit: sandbox.ExitRecord{Cause: sandbox.Internal}})
		w.refused(err, fault.InvalidArgument)
		w.in(id, sandbox.Queued)
	}},
	{"End writes the steps that had not been told", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		started := w.later(time.Second)
		_, err := w.l.End(w.ctx, a, sandbox.End{
			At: w.later(time.Second), Exit: exited(0), Progress: sandbox.Progress{State: sandbox.Running, At: started},
		})
		w.must(err)
		ev := w.road(a.Sandbox, sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Running, sandbox.Succeeded)
		if rec := w.get(a.Sandbox); !rec.StartedAt.Equal(started) || !ev[3].Time.Equal(started) {
			t.Errorf("it started at %v, by its event at %v; want %v", rec.StartedAt, ev[3].Time, started)
		}
	}},
	{"End does not stumble over progress that comes too late", func(_ *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Stopping, At: w.now, Cause: sandbox.StartTimeout}))
		_, err := w.l.End(w.ctx, a, sandbox.End{
			At: w.now, Exit: sandbox.ExitRecord{Cause: sandbox.StartTimeout}, Progress: sandbox.Progress{State: sandbox.Running, At: w.now},
		})
		w.must(err)
		w.road(a.Sandbox, sandbox.Queued, sandbox.Assigned, sandbox.Starting, sandbox.Stopping, sandbox.Failed)
	}},
	{"Kill ends a queued one at once", func(t *testing.T, w *world) {
		id := w.admit("a")
		c := w.claim() // even one that is held
		w.later(time.Second)
		rec, err := w.l.Kill(w.ctx, id, sandbox.Killed, w.now, w.audit("kill"))
		w.must(err)
		if rec.State != sandbox.Failed || rec.Exit.Cause != sandbox.Killed || rec.Kill != "" || rec.Timings.Total != 1000 {
			t.Errorf("the record is %+v", rec)
		}
		w.road(id, sandbox.Queued, sandbox.Failed)
		_, err = w.l.Place(w.ctx, c, "n1", w.join("n1"), w.now)
		w.refused(err, fault.Conflict)
		_, err = w.l.Admitted(w.ctx, id)
		w.refused(err, fault.Conflict)
		if a := w.audits(); len(a) != 2 || a[1].Action != "kill" {
			t.Errorf("the audit is %+v", a)
		}
	}},
	{"Kill of a live one keeps the first cause until its end, whose cause is as given", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		for _, cause := range []sandbox.Cause{sandbox.Killed, sandbox.Memory} {
			rec, err := w.l.Kill(w.ctx, a.Sandbox, cause, w.now, w.audit("kill"))
			w.must(err)
			if rec.State != sandbox.Starting || rec.Kill != sandbox.Killed {
				t.Errorf("after Kill(%s) it is %s and to end by %q", cause, rec.State, rec.Kill)
			}
		}
		w.must(w.l.Advance(w.ctx, a, sandbox.Progress{State: sandbox.Stopping, At: w.now, Cause: sandbox.MaxDuration}))
		if rec := w.get(a.Sandbox); rec.Kill != sandbox.Killed {
			t.Errorf("the cause became %q", rec.Kill)
		}
		rec := w.end(a, exited(0)) // it was quicker
		if rec.State != sandbox.Succeeded || rec.Exit.Cause != sandbox.Exited || rec.Kill != "" {
			t.Errorf("it ended as %s with %+v, kill %q", rec.State, rec.Exit, rec.Kill)
		}
	}},
	{"Accept of one that is to be killed is a Conflict", func(_ *testing.T, w *world) {
		a := w.assigned("a", "n1", w.join("n1"))
		_, err := w.l.Kill(w.ctx, a.Sandbox, sandbox.Killed, w.now, w.audit("kill"))
		w.must(err)
		w.refused(w.l.Accept(w.ctx, a, w.now), fault.Conflict)
		w.in(a.Sandbox, sandbox.Assigned)
		w.end(a, sandbox.ExitRecord{Cause: sandbox.Killed})
	}},
	{"Accept said again is none, though a kill came between", func(_ *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		_, err := w.l.Kill(w.ctx, a.Sandbox, sandbox.Killed, w.now, w.audit("kill"))
		w.must(err)
		w.must(w.l.Accept(w.ctx, a, w.now))
	}},
	{"Kill of an ended one returns it as it is", func(t *testing.T, w *world) {
		a := w.accepted("a", "n1", w.join("n1"))
		want := w.end(a, exited(3))
		got, err := w.l.Kill(w.ctx, a.Sandbox, sandbox.Killed, w.now, w.audit("kill"))
		w.must(err)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("it changed:\n%s", d)
		}
		if n := len(w.audits()); n != 2 {
			t.Errorf("there are %d audit entries, want 2", n)
		}
	}},
	{"Kill of what is not there is NotFound, and writes nothing", func(t *testing.T, w *world) {
		_, err := w.l.Kill(w.ctx, makeID(99), sandbox.Killed, w.now, w.audit("kill"))
		w.refused(err, fault.NotFound)
		id := w.admit("a")
		_, err = w.l.Kill(w.ctx, id, "boredom", w.now, w.audit("kill"))
		w.refused(err, fault.InvalidArgument)
		if n := len(w.audits()); n != 1 {
			t.Errorf("there are %d audit entries, want 1", n)
		}
	}},
}
