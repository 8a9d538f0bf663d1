package ledgertest

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var admissionCases = []testCase{
	{"Admit writes the record as it was given", func(t *testing.T, w *world) {
		a := w.request("a")
		a.Record.CreatedAt = w.now.In(time.FixedZone("", 3600))
		a.Record.Timings.Judged = 0
		w.later(1500 * time.Microsecond)
		id := w.admitThis(a)
		want := a.Record
		want.CreatedAt = epoch0
		want.Timings.Judged = 1.5
		if d := cmp.Diff(want, w.get(id)); d != "" {
			t.Errorf("the record differs (-want +got):\n%s", d)
		}
		got, err := w.l.Admitted(w.ctx, id)
		w.must(err)
		if string(got.Verdict) != "verdict of it" || string(got.Secrets) != "secrets of it" || got.Limits != plenty {
			t.Errorf("Admitted returned verdict %q, secrets %q, limits %v", got.Verdict, got.Secrets, got.Limits)
		}
		if d := cmp.Diff(want, got.Record); d != "" {
			t.Errorf("the record of Admitted differs (-want +got):\n%s", d)
		}
		if ev := w.road(id, sandbox.Queued); !ev[0].Time.Equal(w.now) {
			t.Errorf("the first event is at %v, want %v", ev[0].Time, w.now)
		}
	}},
	{"Admit keeps nothing of the caller's values", func(t *testing.T, w *world) {
		a := w.request("a")
		id := w.admitThis(a)
		a.Record.Request.Command[0] = "false"
		a.Record.Request.Labels["team"] = "x"
		a.Secrets[0] = 'X'
		rec := w.get(id)
		rec.Request.Labels["team"] = "y"
		got, err := w.l.Admitted(w.ctx, id)
		w.must(err)
		if got.Record.Request.Command[0] != "true" || got.Record.Request.Labels["team"] != "ci" || string(got.Secrets) != "secrets of it" {
			t.Errorf("what the caller did later shows: %v %v %q", got.Record.Request.Command, got.Record.Request.Labels, got.Secrets)
		}
	}},
	{"Admit writes the audit entry, a refusal for quota writes nothing", func(t *testing.T, w *world) {
		a := w.request("a")
		a.Limits.Live = 1
		w.admitThis(a)
		b := w.request("a")
		b.Limits.Live = 1
		_, created, err := w.l.Admit(w.ctx, b, w.audit("run"), ledger.IdempotencyKey{Key: "k", Hash: "h", Expires: w.now.Add(time.Hour)})
		w.refused(err, fault.QuotaExceeded)
		if created {
			t.Error("created is true with an error")
		}
		_, err = w.l.Get(w.ctx, b.Record.ID)
		w.refused(err, fault.NotFound)
		if n := len(w.audits()); n != 1 {
			t.Errorf("there are %d audit entries, want 1", n)
		}
		// The key was not written either: it is free for another request.
		w.ended(a.Record.ID)
		c := w.request("a")
		_, created, err = w.l.Admit(w.ctx, c, w.audit("run"), ledger.IdempotencyKey{Key: "k", Hash: "other", Expires: w.now.Add(time.Hour)})
		w.must(err)
		if !created {
			t.Error("the key of a refused request is taken")
		}
	}},
	{"Limits of zero allow nothing", func(_ *testing.T, w *world) {
		a := w.request("a")
		a.Limits = sandbox.Limits{}
		_, _, err := w.l.Admit(w.ctx, a, w.audit("run"), ledger.IdempotencyKey{})
		w.refused(err, fault.QuotaExceeded)
	}},
	{"Live counts the queued and those on nodes, of the tenant alone", func(_ *testing.T, w *world) {
		epoch := w.join("n1")
		one := func() error {
			a := w.request("a")
			a.Limits.Live = 2
			_, _, err := w.l.Admit(w.ctx, a, w.audit("run"), ledger.IdempotencyKey{})
			return err
		}
		w.admit("b")
		w.ended(w.claim().Admitted.Record.ID)
		w.must(one())
		a := w.place(w.claim(), "n1", epoch)
		w.must(one())
		w.refused(one(), fault.QuotaExceeded)
		w.ended(a.Sandbox)
		w.must(one())
		w.refused(one(), fault.QuotaExceeded)
	}},
	{"An ID that is taken is a Conflict", func(_ *testing.T, w *world) {
		a := w.request("a")
		w.admitThis(a)
		_, _, err := w.l.Admit(w.ctx, a, w.audit("run"), ledger.IdempotencyKey{})
		w.refused(err, fault.Conflict)
		rec := a.Record
		rec.State = sandbox.Refused
		w.refused(w.l.Refuse(w.ctx, rec, w.audit("run")), fault.Conflict)
	}},
	{"A malformed record is refused", func(_ *testing.T, w *world) {
		for _, spoil := range []func(r *sandbox.Record){
			func(r *sandbox.Record) { r.ID = "../x" },
			func(r *sandbox.Record) { r.Tenant = "" },
			func(r *sandbox.Record) { r.CreatedAt = time.Time{} },
			func(r *sandbox.Record) { r.State = sandbox.Running },
		} {
			a := w.request("a")
			spoil(&a.Record)
			_, _, err := w.l.Admit(w.ctx, a, w.audit("run"), ledger.IdempotencyKey{})
			w.refused(err, fault.InvalidArgument)
			w.refused(w.l.Refuse(w.ctx, a.Record, w.audit("run")), fault.InvalidArgument)
		}
		if n := len(w.audits()); n != 0 {
			w.t.Errorf("there are %d audit entries, want none", n)
		}
	}},
	{"A key with the same hash returns the record it made", func(t *testing.T, w *world) {
		key := ledger.IdempotencyKey{Key: "k", Hash: "h", Expires: w.now.Add(time.Hour)}
		a := w.request("a")
		_, created, err := w.l.Admit(w.ctx, a, w.audit("run"), key)
		w.must(err)
		if !created {
			t.Fatal("the first was not created")
		}
		w.ended(a.Record.ID)
		again := w.request("a")
		again.Limits = sandbox.Limits{} // a repeat takes nothing, so no limit stops it
		rec, created, err := w.l.Admit(w.ctx, again, w.audit("run"), key)
		w.must(err)
		if created || rec.ID != a.Record.ID || rec.State != sandbox.Failed {
			t.Errorf("a repeat returned %s (%s), created %v; want %s (failed), false", rec.ID, rec.State, created, a.Record.ID)
		}
		_, err = w.l.Get(w.ctx, again.Record.ID)
		w.refused(err, fault.NotFound)
		if n := len(w.audits()); n != 1 {
			t.Errorf("there are %d audit entries, want 1: a repeat writes nothing", n)
		}
	}},
	{"A key with another hash is a Conflict", func(_ *testing.T, w *world) {
		key := ledger.IdempotencyKey{Key: "k", Hash: "h", Expires: w.now.Add(time.Hour)}
		_, _, err := w.l.Admit(w.ctx, w.request("a"), w.audit("run"), key)
		w.must(err)
		key.Hash = "g"
		_, _, err = w.l.Admit(w.ctx, w.request("a"), w.audit("run"), key)
		w.refused(err, fault.Conflict)
	}},
	{"A key is the tenant's own", func(t *testing.T, w *world) {
		key := ledger.IdempotencyKey{Key: "k", Hash: "h", Expires: w.now.Add(time.Hour)}
		_, _, err := w.l.Admit(w.ctx, w.request("a"), w.audit("run"), key)
		w.must(err)
		_, created, err := w.l.Admit(w.ctx, w.request("b"), w.audit("run"), key)
		w.must(err)
		if !created {
			t.Error("another tenant got what is not its own")
		}
	}},
	{"An expired key is free", func(t *testing.T, w *world) {
		key := ledger.IdempotencyKey{Key: "k", Hash: "h", Expires: w.now.Add(time.Hour)}
		_, _, err := w.l.Admit(w.ctx, w.request("a"), w.audit("run"), key)
		w.must(err)
		w.later(time.Hour - 1)
		_, created, err := w.l.Admit(w.ctx, w.request("a"), w.audit("run"), key)
		w.must(err)
		if created {
			t.Error("the key did not live until its Expires")
		}
		w.later(1)
		key.Hash, key.Expires = "g", w.now.Add(time.Hour)
		_, created, err = w.l.Admit(w.ctx, w.request("a"), w.audit("run"), key)
		w.must(err)
		if !created {
			t.Error("the key outlived its Expires")
		}
	}},
	{"A key outlives its record", func(t *testing.T, w *world) {
		key := ledger.IdempotencyKey{Key: "k", Hash: "h", Expires: w.now.Add(time.Hour)}
		a := w.request("a")
		_, _, err := w.l.Admit(w.ctx, a, w.audit("run"), key)
		w.must(err)
		w.ended(a.Record.ID)
		w.later(time.Minute)
		if n, err := w.l.Prune(w.ctx, ledger.Retention{Age: time.Second}, w.now); n != 1 || err != nil {
			t.Fatalf("Prune removed %d, %v", n, err)
		}
		_, _, err = w.l.Admit(w.ctx, w.request("a"), w.audit("run"), key)
		w.refused(err, fault.Conflict)
	}},
	{"Refuse writes a refused record and its audit entry", func(t *testing.T, w *world) {
		rec := w.request("a").Record
		rec.State = ""
		rec.Verdict = sandbox.Verdict{Decision: sandbox.Deny, PolicyVersion: "v1", Reasons: []sandbox.Reason{{Judge: "p", Message: "no"}}}
		w.later(time.Millisecond)
		w.must(w.l.Refuse(w.ctx, rec, w.audit("run")))
		got := w.in(rec.ID, sandbox.Refused)
		if !got.EndedAt.Equal(w.now) || len(got.Verdict.Reasons) != 1 {
			t.Errorf("it ended at %v with %v", got.EndedAt, got.Verdict)
		}
		w.road(rec.ID, sandbox.Refused)
		w.nothing()
		if n := len(w.audits()); n != 1 {
			t.Errorf("there are %d audit entries, want 1", n)
		}
		if got := w.ended(rec.ID); got.State != sandbox.Refused {
			t.Errorf("End made a refused one %s", got.State)
		}
		u, err := w.l.Usage(w.ctx, nil)
		w.must(err)
		if len(u) != 0 {
			t.Errorf("a refused one is in use: %v", u)
		}
	}},
}
