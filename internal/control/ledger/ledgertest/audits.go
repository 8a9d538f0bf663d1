package ledgertest

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var auditCases = []testCase{
	{"The audit is one chain over all steps", func(t *testing.T, w *world) {
		entry := w.audit("token.create")
		entry.Seq, entry.PrevDigest = 77, "sha256:forged"
		entry.Reasons = []sandbox.Reason{{Judge: "p", Message: "bad \xff byte <&>"}}
		entry.Difference = "+a\n-b \xff\n"
		entry.Time = w.now.In(time.FixedZone("", -7200))
		w.must(w.l.Audit(w.ctx, entry))
		id := w.admit("a")
		rec := w.request("a").Record
		rec.State = sandbox.Refused
		w.must(w.l.Refuse(w.ctx, rec, w.audit("run")))
		_, err := w.l.Kill(w.ctx, id, sandbox.Killed, w.now, w.audit("kill"))
		w.must(err)
		all := w.audits()
		if len(all) != 4 {
			t.Fatalf("there are %d entries", len(all))
		}
		var digest sandbox.Digest
		for i, e := range all {
			if e.Seq != int64(i)+1 || e.PrevDigest != digest {
				t.Errorf("entry %d has Seq %d and PrevDigest %q, want %q", i+1, e.Seq, e.PrevDigest, digest)
			}
			if digest, err = ledger.AuditDigest(e); err != nil || !digest.Valid() {
				t.Fatalf("its digest is %q, %v", digest, err)
			}
		}
		w.must(ledger.VerifyAudit(nil, all))
		w.must(ledger.VerifyAudit(&all[1], all[2:]))
		want := entry
		want.Seq, want.PrevDigest, want.Time = 1, "", w.now
		want.Difference = "+a\n-b \uFFFD\n"
		want.Reasons = []sandbox.Reason{{Judge: "p", Message: "bad \uFFFD byte <&>"}}
		if d := cmp.Diff(want, all[0]); d != "" {
			t.Errorf("the entry differs (-want +got):\n%s", d)
		}
	}},
	{"An edited chain is found out", func(t *testing.T, w *world) {
		for range 5 {
			w.must(w.l.Audit(w.ctx, w.audit("x")))
		}
		for name, spoil := range map[string]func(a []sandbox.AuditEntry) []sandbox.AuditEntry{
			"an entry edited":  func(a []sandbox.AuditEntry) []sandbox.AuditEntry { a[2].TokenID = "other"; return a },
			"an entry missing": func(a []sandbox.AuditEntry) []sandbox.AuditEntry { return append(a[:2], a[3:]...) },
			"the first gone":   func(a []sandbox.AuditEntry) []sandbox.AuditEntry { return a[1:] },
			"two swapped":      func(a []sandbox.AuditEntry) []sandbox.AuditEntry { a[1], a[2] = a[2], a[1]; return a },
		} {
			if err := ledger.VerifyAudit(nil, spoil(w.audits())); !fault.Is(err, fault.Conflict) {
				t.Errorf("%s: VerifyAudit says %v", name, err)
			}
		}
	}},
	{"AuditRows are the bytes that the chain stands on, and AuditHead is its end", func(t *testing.T, w *world) {
		head, err := w.l.AuditHead(w.ctx)
		w.must(err)
		if head != (ledger.AuditHead{}) {
			t.Errorf("the head of an empty chain is %+v", head)
		}
		for i := range 7 {
			e := w.audit("x")
			e.Tenant = []string{"a", "b\xff"}[i%2]
			w.must(w.l.Audit(w.ctx, e))
		}
		var chain ledger.AuditChain
		for after, pages := int64(0), 0; ; pages++ {
			rows, err := w.l.AuditRows(w.ctx, after, 3)
			w.must(err)
			if len(rows) == 0 {
				if pages != 3 {
					t.Errorf("it came in %d pages", pages)
				}
				break
			}
			for _, r := range rows {
				e, err := chain.Next(r)
				w.must(err)
				after++
				if r.Seq != after || e.Seq != after || r.Tenant != []string{"b\uFFFD", "a"}[after%2] || e.Tenant != r.Tenant {
					t.Errorf("row %+v, entry %+v; want number %d", r, e, after)
				}
			}
		}
		head, err = w.l.AuditHead(w.ctx)
		w.must(err)
		if head != chain.Head() || head.Seq != 7 {
			t.Errorf("the head is %+v, want %+v", head, chain.Head())
		}
	}},
	{"AuditEntries selects, oldest first", func(t *testing.T, w *world) {
		start := w.now
		for i := range 6 {
			e := w.audit([]string{"run", "kill", "run"}[i%3])
			e.Tenant, e.Sandbox = []string{"a", "b"}[i%2], makeID(i/3)
			e.Time = start.Add(time.Duration(i) * time.Second)
			if i == 4 {
				e.Decision = sandbox.Deny
			}
			w.must(w.l.Audit(w.ctx, e))
		}
		for _, c := range []struct {
			q    ledger.AuditQuery
			want []int64
		}{
			{ledger.AuditQuery{Tenant: "b"}, []int64{2, 4, 6}},
			{ledger.AuditQuery{After: 4}, []int64{5, 6}},
			{ledger.AuditQuery{Tenant: "a", After: 1, Limit: 1}, []int64{3}},
			{ledger.AuditQuery{Tenant: "c"}, nil},
			{ledger.AuditQuery{Action: "kill"}, []int64{2, 5}},
			{ledger.AuditQuery{Decision: sandbox.Deny}, []int64{5}},
			{ledger.AuditQuery{Sandbox: makeID(1)}, []int64{4, 5, 6}},
			{ledger.AuditQuery{Since: start.Add(4 * time.Second)}, []int64{5, 6}},
			{ledger.AuditQuery{Until: start.Add(time.Second)}, []int64{1}},
			{ledger.AuditQuery{Until: start.Add(time.Second + 1)}, []int64{1, 2}},
			{ledger.AuditQuery{Since: start.Add(1), Until: start.Add(5 * time.Second), Action: "run", After: 3, Tenant: "b"}, []int64{4}},
			{ledger.AuditQuery{Action: "run", Limit: 2, After: 1}, []int64{3, 4}},
		} {
			got, err := w.l.AuditEntries(w.ctx, c.q)
			w.must(err)
			var seqs []int64
			for _, e := range got {
				seqs = append(seqs, e.Seq)
			}
			if d := cmp.Diff(c.want, seqs); d != "" {
				t.Errorf("%+v (-want +got):\n%s", c.q, d)
			}
		}
	}},
}

var tokenCases = []testCase{
	{"A token is found by its hash", func(t *testing.T, w *world) {
		_, err := w.l.TokenByHash(w.ctx, [32]byte{1})
		w.refused(err, fault.NotFound)
		k := ledger.Token{
			ID: "t1", Hash: [32]byte{1, 0, 255}, Tenant: "a", Scopes: []sandbox.Scope{sandbox.ScopeRun, sandbox.ScopeRead},
			CreatedAt: w.now, ExpiresAt: w.now.Add(time.Hour),
		}
		w.must(w.l.PutToken(w.ctx, k))
		w.must(w.l.PutToken(w.ctx, k)) // the very same
		got, err := w.l.TokenByHash(w.ctx, k.Hash)
		w.must(err)
		if d := cmp.Diff(k, got); d != "" {
			t.Errorf("the token differs (-want +got):\n%s", d)
		}
		// Expiry is for the caller to judge.
		w.later(2 * time.Hour)
		_, err = w.l.TokenByHash(w.ctx, k.Hash)
		w.must(err)
	}},
	{"A token does not replace another", func(_ *testing.T, w *world) {
		k := ledger.Token{ID: "t1", Hash: [32]byte{1}, Tenant: "a", CreatedAt: w.now}
		w.must(w.l.PutToken(w.ctx, k))
		for _, spoil := range []func(k *ledger.Token){
			func(k *ledger.Token) { k.Hash = [32]byte{2} },
			func(k *ledger.Token) { k.ID = "t2" },
			func(k *ledger.Token) { k.Tenant = "b" },
			func(k *ledger.Token) { k.Scopes = []sandbox.Scope{sandbox.ScopeAdmin} },
			func(k *ledger.Token) { k.ExpiresAt = w.now },
		} {
			o := k
			spoil(&o)
			w.refused(w.l.PutToken(w.ctx, o), fault.Conflict)
		}
		for _, bad := range []ledger.Token{{Hash: [32]byte{3}, Tenant: "a"}, {ID: "x", Hash: [32]byte{3}}} {
			w.refused(w.l.PutToken(w.ctx, bad), fault.InvalidArgument)
		}
	}},
	{"The first revocation stays", func(t *testing.T, w *world) {
		k := ledger.Token{ID: "t1", Hash: [32]byte{1}, Tenant: "a", CreatedAt: w.now}
		w.must(w.l.PutToken(w.ctx, k))
		w.refused(w.l.RevokeToken(w.ctx, "t2", w.now), fault.NotFound)
		at := w.later(time.Second)
		w.must(w.l.RevokeToken(w.ctx, "t1", at))
		w.must(w.l.RevokeToken(w.ctx, "t1", w.later(time.Second)))
		got, err := w.l.TokenByHash(w.ctx, k.Hash)
		w.must(err)
		if !got.RevokedAt.Equal(at) {
			t.Errorf("it was revoked at %v, want %v", got.RevokedAt, at)
		}
		// To store it again as it was does not bring it back.
		w.refused(w.l.PutToken(w.ctx, k), fault.Conflict)
	}},
	{"A token remembers when it was used last", func(t *testing.T, w *world) {
		k := ledger.Token{ID: "t1", Hash: [32]byte{1}, Tenant: "a", CreatedAt: w.now}
		w.must(w.l.PutToken(w.ctx, k))
		for _, used := range []time.Time{w.now.Add(time.Minute), w.now.Add(time.Second)} { // the earlier one is late
			w.must(w.l.TouchTokens(w.ctx, map[string]time.Time{"t1": used, "gone": used}))
			got, err := w.l.TokenByHash(w.ctx, k.Hash)
			w.must(err)
			if !got.LastUsedAt.Equal(w.now.Add(time.Minute)) {
				t.Errorf("it was used last at %v", got.LastUsedAt)
			}
		}
		w.must(w.l.PutToken(w.ctx, k)) // still the very same
		list, err := w.l.ListTokens(w.ctx, "")
		w.must(err)
		if len(list) != 1 || !list[0].LastUsedAt.Equal(w.now.Add(time.Minute)) {
			t.Errorf("the list is %+v", list)
		}
	}},
	{"Tokens are listed by tenant, oldest first", func(t *testing.T, w *world) {
		for i, id := range []string{"t3", "t1", "t2"} {
			w.must(w.l.PutToken(w.ctx, ledger.Token{ID: id, Hash: [32]byte{byte(i)}, Tenant: []string{"a", "b"}[i%2], CreatedAt: w.later(time.Second)}))
		}
		for tenant, want := range map[string][]string{"": {"t3", "t1", "t2"}, "a": {"t3", "t2"}, "b": {"t1"}, "c": nil} {
			got, err := w.l.ListTokens(w.ctx, tenant)
			w.must(err)
			var ids []string
			for _, k := range got {
				ids = append(ids, k.ID)
			}
			if d := cmp.Diff(want, ids); d != "" {
				t.Errorf("tenant %q (-want +got):\n%s", tenant, d)
			}
		}
	}},
}
