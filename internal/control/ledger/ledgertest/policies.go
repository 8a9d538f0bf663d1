package ledgertest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func (w *world) policy(version string) ledger.Policy {
	return ledger.Policy{Version: version, Text: "text ä of " + version, Origin: "/etc/" + version, ActivatedAt: w.now}
}

// activate makes a policy the active one.
func (w *world) activate(version, before string) {
	w.t.Helper()
	done, err := w.l.ActivatePolicy(w.ctx, w.policy(version), before, w.audit("policy"))
	w.must(err)
	if !done {
		w.t.Fatalf("%s was not activated", version)
	}
}

// versions are those that are kept, the one activated last first.
func (w *world) versions() []string {
	w.t.Helper()
	all, err := w.l.ListPolicies(w.ctx, ledger.PolicyQuery{})
	w.must(err)
	var out []string
	for _, p := range all {
		out = append(out, p.Version)
	}
	return out
}

var policyCases = []testCase{
	{"Without an activation there is no policy", func(_ *testing.T, w *world) {
		_, err := w.l.ActivePolicy(w.ctx)
		w.refused(err, fault.NotFound)
		for _, v := range []string{"v1", ""} {
			_, err = w.l.Policy(w.ctx, v)
			w.refused(err, fault.NotFound)
		}
	}},
	{"An activation keeps text and audit entry, and tells when it was replaced", func(t *testing.T, w *world) {
		first := w.policy("v1")
		first.Seq, first.ReplacedAt = 77, w.now
		_, err := w.l.ActivatePolicy(w.ctx, first, "", w.audit("policy"))
		w.must(err)
		first.Seq, first.ReplacedAt, first.Bytes = 1, time.Time{}, len(first.Text)
		got, err := w.l.ActivePolicy(w.ctx)
		w.must(err)
		if d := cmp.Diff(first, got); d != "" || !got.Active() {
			t.Errorf("the active one differs (-want +got):\n%s", d)
		}
		w.later(time.Minute)
		w.activate("v2", "v1")
		first.ReplacedAt = w.now
		got, err = w.l.Policy(w.ctx, "v1")
		w.must(err)
		if d := cmp.Diff(first, got); d != "" || got.Active() {
			t.Errorf("the one before differs (-want +got):\n%s", d)
		}
		if n := len(w.audits()); n != 2 {
			t.Errorf("there are %d audit entries", n)
		}
		w.must(ledger.VerifyAudit(nil, w.audits()))
	}},
	{"To activate the active one again changes nothing", func(t *testing.T, w *world) {
		w.activate("v1", "")
		w.later(time.Minute)
		for _, before := range []string{"", "v1", "v9"} {
			done, err := w.l.ActivatePolicy(w.ctx, w.policy("v1"), before, w.audit("policy"))
			w.must(err)
			if done {
				t.Errorf("before %q: activated again", before)
			}
		}
		got, err := w.l.ActivePolicy(w.ctx)
		w.must(err)
		if !got.ActivatedAt.Equal(epoch0) || len(w.audits()) != 1 {
			t.Errorf("it is %+v, with %d audit entries", got, len(w.audits()))
		}
	}},
	{"An activation on top of another one than is active is a Conflict, and writes nothing", func(t *testing.T, w *world) {
		for _, before := range []string{"v1", ""} {
			_, err := w.l.ActivatePolicy(w.ctx, w.policy("v2"), "v0", w.audit("policy"))
			w.refused(err, fault.Conflict)
			if before == "v1" {
				w.activate("v1", "")
			}
		}
		if v := w.versions(); len(v) != 1 || len(w.audits()) != 1 {
			t.Errorf("there are %v, with %d audit entries", v, len(w.audits()))
		}
		for _, bad := range []ledger.Policy{{ActivatedAt: w.now}, {Version: "v3"}} {
			_, err := w.l.ActivatePolicy(w.ctx, bad, "v1", w.audit("policy"))
			w.refused(err, fault.InvalidArgument)
		}
	}},
	{"A policy may come back", func(t *testing.T, w *world) {
		w.activate("v1", "")
		w.activate("v2", "v1")
		at := w.later(time.Minute)
		w.activate("v1", "v2")
		got, err := w.l.ActivePolicy(w.ctx)
		w.must(err)
		if got.Version != "v1" || got.Seq != 3 || !got.ActivatedAt.Equal(at) || !got.Active() {
			t.Errorf("the active one is %+v", got)
		}
		if v := w.versions(); !slices.Equal(v, []string{"v1", "v2"}) {
			t.Errorf("there are %v", v)
		}
	}},
	{"A policy is found by a beginning of its version that no other has", func(t *testing.T, w *world) {
		before := ""
		for _, v := range []string{"sha256:ab1", "sha256:ab12", "sha256:b\xc3\xa4", "sha256:a%_"} {
			w.activate(v, before)
			before = v
		}
		for version, want := range map[string]string{
			"sha256:ab12": "sha256:ab12", "sha256:ab1": "sha256:ab1", "sha256:b": "sha256:b\xc3\xa4", "sha256:a%": "sha256:a%_",
		} {
			got, err := w.l.Policy(w.ctx, version)
			w.must(err)
			if got.Version != want || got.Text == "" {
				t.Errorf("%s is %+v", version, got)
			}
		}
		for version, want := range map[string]fault.Kind{"sha256:ab": fault.Conflict, "sha": fault.Conflict, "ab1": fault.NotFound, "sha256:ab13": fault.NotFound, "": fault.NotFound} {
			_, err := w.l.Policy(w.ctx, version)
			w.refused(err, want)
		}
	}},
	{"ListPolicies returns pages without texts, the last activated first", func(t *testing.T, w *world) {
		w.activate("v1", "")
		w.activate("v2", "v1")
		w.activate("v3", "v2")
		var got []string
		for q := (ledger.PolicyQuery{Limit: 2}); ; {
			page, err := w.l.ListPolicies(w.ctx, q)
			w.must(err)
			for _, p := range page {
				if p.Text != "" || p.Bytes != len(w.policy(p.Version).Text) || p.Origin == "" || p.Active() != (p.Version == "v3") {
					t.Errorf("in the list it is %+v", p)
				}
				got = append(got, p.Version)
				q.Before = p.Seq
			}
			if len(page) < 2 {
				break
			}
		}
		if !slices.Equal(got, []string{"v3", "v2", "v1"}) {
			t.Errorf("the pages have %v", got)
		}
	}},
	{"Prune leaves the active policy, those that records name, and those just replaced", func(t *testing.T, w *world) {
		named := func(version string) sandbox.ID {
			a := w.request("a")
			a.Record.Verdict.PolicyVersion = version
			return w.admitThis(a)
		}
		w.activate("v1", "")
		w.activate("v2", "v1")
		live, ended := named("v1"), named("v2")
		refused := w.request("a").Record
		refused.State, refused.Verdict.PolicyVersion = sandbox.Refused, "v3"
		w.activate("v3", "v2")
		w.must(w.l.Refuse(w.ctx, refused, w.audit("run")))
		w.activate("v4", "v3")
		w.ended(ended)
		w.activate("v5", "v4")
		prune := func(keep ledger.Retention, want ...string) {
			t.Helper()
			_, err := w.l.Prune(w.ctx, keep, w.now)
			w.must(err)
			if got := w.versions(); !slices.Equal(got, want) {
				t.Errorf("left are %v, want %v", got, want)
			}
		}
		w.later(ledger.PolicyGrace - 1)
		prune(ledger.Retention{}, "v5", "v4", "v3", "v2", "v1")
		w.later(1)
		prune(ledger.Retention{}, "v5", "v3", "v2", "v1")
		prune(ledger.Retention{Age: 1}, "v5", "v1")
		w.in(live, sandbox.Queued)
	}},
}

// modelPolicies are the versions that the model's requests name and activate.
var modelPolicies = []string{"v1", "v2", "v3"}

func (m *model) activates(rt *rapid.T) {
	version := rapid.SampledFrom(modelPolicies).Draw(rt, "version")
	active := ""
	if n := len(m.policies); n > 0 {
		active = m.policies[n-1].Version
	}
	before := rapid.SampledFrom([]string{active, active, active, "v1"}).Draw(rt, "before")
	want := ""
	if version != active && before != active {
		want = "conflict"
	}
	done, err := m.l.ActivatePolicy(m.ctx, m.policy(version), before, m.world.audit("policy"))
	m.agree(rt, "ActivatePolicy", err, want)
	if done != (want == "" && version != active) {
		rt.Fatalf("activated %v over %q, before %q: %v", version, active, before, done)
	}
	if !done {
		return
	}
	m.audit++
	m.seq++
	if n := len(m.policies); n > 0 {
		m.policies[n-1].ReplacedAt = m.now
	}
	m.policies = slices.DeleteFunc(m.policies, func(p ledger.Policy) bool { return p.Version == version })
	p := m.policy(version)
	p.Seq, p.Bytes = m.seq, len(p.Text)
	m.policies = append(m.policies, p)
}

func (m *model) comparePolicies(rt *rapid.T) {
	got, err := m.l.ListPolicies(m.ctx, ledger.PolicyQuery{})
	m.agree(rt, "ListPolicies", err, "")
	var want []ledger.Policy
	for _, p := range slices.Backward(m.policies) {
		kept, err := m.l.Policy(m.ctx, p.Version)
		m.agree(rt, "Policy", err, "")
		if d := cmp.Diff(p, kept); d != "" {
			rt.Fatalf("policy %s differs (-model +got):\n%s", p.Version, d)
		}
		p.Text = ""
		want = append(want, p)
	}
	if d := cmp.Diff(want, got); d != "" {
		rt.Fatalf("the policies differ (-model +got):\n%s", d)
	}
	active, err := m.l.ActivePolicy(m.ctx)
	if len(want) == 0 {
		m.agree(rt, "ActivePolicy", err, "not_found")
		return
	}
	m.agree(rt, "ActivePolicy", err, "")
	if active.Version != want[0].Version || !strings.HasSuffix(active.Text, active.Version) {
		rt.Fatalf("active is %+v, the model says %+v", active, want[0])
	}
}
