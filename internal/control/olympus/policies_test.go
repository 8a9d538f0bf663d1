package olympus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// activate makes another version the one that holds.
func (w *world) activate(text string) *themis.Policy {
	w.t.Helper()
	p := must(themis.Parse([]byte(text)))(w.t)
	before := ""
	if kept, err := w.book.ActivePolicy(w.t.Context()); err == nil {
		before = kept.Version
	}
	must(w.book.ActivatePolicy(w.t.Context(), ledger.Policy{
		Version: p.Version(), Text: text, Origin: "/etc/policy.yaml", ActivatedAt: time.Now(),
	}, before, sandbox.AuditEntry{Time: time.Now(), Action: "policy.activate", PolicyVersion: p.Version(), Difference: "+x \x00\n"}))(w.t)
	w.policy.p = p
	return p
}

func TestVersionsOfThePolicy(t *testing.T) {
	w := newWorld(t)
	admin := w.token("local", sandbox.ScopeAdmin)
	get := func(path string) map[string]any { t.Helper(); return w.ask(ask{path: path, token: admin}).json(t, 200) }
	first := w.policy.p.Version()
	second := w.activate(policyText + "# second\n")
	third := w.activate(policyText + "# third\n")

	// A record and its audit entry name the version that judged it.
	id := w.run(w.token("acme"), `{"command":["true"]}`)
	rec := get("/sandbox/" + string(id))
	if v := rec["verdict"].(map[string]any)["policy_version"]; v != third.Version() {
		t.Errorf("the verdict names %v", v)
	}

	if p := get("/policy"); p["text"] != third.Text() || p["origin"] != "/etc/policy.yaml" || p["replaced_at"] != nil || p["activated_at"] == nil || p["problem"] != nil {
		t.Errorf("active: %v", p)
	}
	for _, version := range []string{first, first[:15], strings.TrimPrefix(first, "sha256:")} {
		if p := get("/policy?version=" + version); p["text"] != policyText || p["version"] != first || p["replaced_at"] == nil {
			t.Errorf("%s: %v", version, p)
		}
	}
	w.ask(ask{path: "/policy?version=sha256:00000000", token: admin}).fails(t, fault.NotFound)
	for _, version := range []string{"sha256:", "abc", "SHA256:ABCDEF", "latest", "%00"} {
		if e := w.ask(ask{path: "/policy?version=" + version, token: admin}).fails(t, fault.InvalidArgument); e.Field != "version" {
			t.Errorf("%s: %+v", version, e)
		}
	}
	var got []string
	for next := ""; ; {
		page := get("/policies?page_size=1&page_token=" + next)
		for _, p := range page["policies"].([]any) {
			p := p.(map[string]any)
			if p["text"] != "" || p["bytes"] == 0.0 {
				t.Errorf("in the list it is %v", p)
			}
			got = append(got, p["version"].(string))
		}
		if next = page["next_page_token"].(string); next == "" {
			break
		}
	}
	if want := []string{third.Version(), second.Version(), first}; strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the versions are %v, want %v", got, want)
	}
	for _, path := range []string{"/policies?page_token=x", "/policies?page_token=0", "/policies?page_size=2000"} {
		w.ask(ask{path: path, token: admin}).fails(t, fault.InvalidArgument)
	}
	if e := get("/audit?page_size=1")["entries"].([]any)[0].(map[string]any); e["difference"] == "" {
		t.Errorf("audit: %v", e)
	}
}

// A new version that does not hold is told of beside the one that does.
func TestThePolicysProblemIsTold(t *testing.T) {
	w := newWorld(t)
	admin := w.token("local", sandbox.ScopeAdmin)
	old := w.policy.p.Version()
	active := w.activate(policyText + "# second\n")
	w.policy.status = themis.Status{Origin: "/etc/policy.yaml", Problem: "line 3, column 4: unknown key", Hint: "mend it", ProblemAt: time.Now()}
	p := w.ask(ask{path: "/policy", token: admin}).json(t, 200)
	problem, _ := p["problem"].(map[string]any)
	if p["version"] != active.Version() || problem["message"] != "line 3, column 4: unknown key" || problem["hint"] != "mend it" || problem["since"] == nil {
		t.Errorf("%v", p)
	}
	if p := w.ask(ask{path: "/policy?version=" + old, token: admin}).json(t, 200); p["problem"] != nil {
		t.Errorf("an old version has a problem: %v", p)
	}
}

func TestForm(t *testing.T) {
	var f olympus.Form
	req, err := f.Request([]byte(`{"command": ["true"], "max_duration": "1.5s", "resources": {"vcpus": 2}}`))
	if err != nil || req.MaxDuration != 1500*time.Millisecond || req.Resources.VCPUs != 2 {
		t.Errorf("%+v, %v", req, err)
	}
	if _, err := f.Request([]byte(`{"resources": {"cpus": 2}}`)); !fault.Is(err, fault.InvalidArgument) {
		t.Error(err)
	}
	shown, err := f.Show(sandbox.Resolved{MaxDuration: 1500 * time.Millisecond, User: "root"})
	if err != nil || !strings.Contains(string(shown), `"max_duration":"1.500s"`) || !strings.Contains(string(shown), `"user":"root"`) {
		t.Errorf("%s, %v", shown, err)
	}
	plain, err := f.Resolved([]byte(`{"max_duration": "1.5s"}`))
	if err != nil || !strings.Contains(string(plain), `"max_duration":"1.500s"`) || !strings.Contains(string(plain), `"user":""`) {
		t.Errorf("%s, %v", plain, err)
	}
	if _, err := f.Resolved([]byte(`{"memory": 1}`)); !fault.Is(err, fault.InvalidArgument) {
		t.Error(err)
	}
}
