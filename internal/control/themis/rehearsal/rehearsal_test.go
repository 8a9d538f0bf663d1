package rehearsal_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/minos"
	"github.com/tartarus-vm/tartarus/internal/control/judges/rhadamanthus"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/control/themis/rehearsal"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

const policyText = `
version: 1
tenants:
  ci: {quota: {vcpus: 2}}
defaults: {max_duration: 90s}
network: {allow: [{domain: "*.example.com", ports: [443]}]}
rules:
- {name: no-root, deny: 'request.user == "root"', reason: Nobody is root here.}
- {name: team, deny: 'labels["team"] == "bad"', reason: Bad team.}
- {name: unseen, deny: 'request.stdin_open', reason: Quiet.}
`

func stage() rehearsal.Stage {
	return rehearsal.Stage{API: olympus.Form{}, Bench: judges.New(minos.Minos{}, rhadamanthus.Rhadamanthus{})}
}

// files writes a policy and its tests, and returns the tests' folder.
func files(t *testing.T, policy, tests string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"policy.yaml": policy, "tests.yaml": tests} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCases(t *testing.T) {
	for name, c := range map[string]struct {
		tenant, request, expect string
		expected, got           string // "" if it is ok
	}{
		"allowed":             {"ci", `{command: [id], labels: {team: x}}`, `{decision: allow}`, "", ""},
		"denied by a rule":    {"ci", `{command: [id], user: root, labels: {team: x}}`, `{decision: deny, reason: no-root}`, "", ""},
		"by its message":      {"ci", `{command: [id], user: root, labels: {team: x}}`, `{decision: deny, reason: is root}`, "", ""},
		"one of two rules":    {"ci", `{command: [id], user: root, labels: {team: bad}}`, `{decision: deny, reason: team}`, "", ""},
		"by a maximum":        {"ci", `{command: [id], labels: {team: x}, max_duration: 99999s}`, `{decision: deny, reason: maxima.max_duration}`, "", ""},
		"by the quota":        {"ci", `{command: [id], labels: {team: x}, resources: {vcpus: 3}}`, `{decision: deny, reason: quota.vcpus}`, "", ""},
		"by the network":      {"ci", `{command: [id], labels: {team: x}, network: {allow: [{domain: evil.example, ports: [443]}]}}`, `{decision: deny, reason: evil.example}`, "", ""},
		"malformed":           {"ci", `{command: []}`, `{decision: deny, reason: invalid_argument}`, "", ""},
		"another tenant":      {"who", `{command: [id]}`, `{decision: deny, reason: names no tenant}`, "", ""},
		"any template":        {"ci", `{command: [id], labels: {team: x}, template: not-made-here}`, `{decision: allow, resolved: {template: not-made-here}}`, "", ""},
		"resolved":            {"ci", `{command: [id], labels: {team: x, a: b}, resources: {memory_mib: 200}}`, `{decision: allow, resolved: {max_duration: 90s, resources: {memory_mib: 256, vcpus: 1}, labels: {team: x}, stdin_open: false, network: null}}`, "", ""},
		"half a second":       {"ci", `{command: [id], labels: {team: x}, max_duration: 0.5s}`, `{decision: allow, resolved: {max_duration: 0.5s}}`, "", ""},
		"resolved, denied":    {"ci", `{command: [id], user: root, labels: {team: x}}`, `{decision: deny, reason: no-root, resolved: {user: root}}`, "", ""},
		"resolved grants":     {"ci", `{command: [id], labels: {team: x}, network: {allow: [{domain: A.example.com, ports: [443]}]}}`, `{decision: allow, resolved: {network: {allow: [{domain: a.example.com, protocol: tcp}]}}}`, "", ""},
		"not allowed":         {"ci", `{command: [id], user: root, labels: {team: x}}`, `{decision: allow}`, "allow", "deny: no-root: Nobody is root here."},
		"not denied":          {"ci", `{command: [id], labels: {team: x}}`, `{decision: deny, reason: no-root}`, "deny: no-root", "allow"},
		"for another reason":  {"ci", `{command: [id], labels: {team: bad}}`, `{decision: deny, reason: no-root}`, "deny: no-root", "deny: team: Bad team."},
		"a rule that fails":   {"ci", `{command: [id]}`, `{decision: deny, reason: team}`, "deny: team", "deny: team: " + rhadamanthus.Unevaluated + "Bad team."},
		"and is expected to":  {"ci", `{command: [id]}`, `{decision: deny, reason: could not be evaluated}`, "", ""},
		"many reasons":        {"ci", `{command: [id], user: root, max_duration: 99999s, resources: {vcpus: 99, disk_mib: 999999}, labels: {team: x}}`, `{decision: allow}`, "allow", "and 2 more"},
		"another value":       {"ci", `{command: [id], labels: {team: x}}`, `{decision: allow, resolved: {max_duration: 60s, user: root}}`, `max_duration "60s", user "root"`, `max_duration "90s", user "sandbox"`},
		"another inner value": {"ci", `{command: [id], labels: {team: x}}`, `{decision: allow, resolved: {resources: {vcpus: 2}, labels: {team: y, b: c}}}`, `labels.b "c", labels.team "y", resources.vcpus 2`, `labels.b nothing, labels.team "x", resources.vcpus 1`},
		"another list":        {"ci", `{command: [id, -u], labels: {team: x}}`, `{decision: allow, resolved: {command: [id]}}`, `command ["id"]`, `command ["id","-u"]`},
		"nothing to compare":  {"who", `{command: [id]}`, `{decision: deny, reason: tenant, resolved: {user: root}}`, "resolved values", "deny: policy_denied: "},
	} {
		dir := files(t, policyText, fmt.Sprintf("version: 1\npolicy: policy.yaml\ncases:\n- name: a case\n  tenant: %s\n  request: %s\n  expect: %s\n", c.tenant, c.request, c.expect))
		report, err := stage().Run(t.Context(), dir)
		if err != nil || len(report.Results) != 1 {
			t.Errorf("%s: %+v, %v", name, report, err)
			continue
		}
		r := report.Results[0]
		if r.OK != (c.expected == "") || r.Expected != c.expected || !strings.Contains(r.Got, c.got) || r.OK && r.Got != "" || r.Line != 4 || r.Name != "a case" {
			t.Errorf("%s: %+v, want expected %q, got %q", name, r, c.expected, c.got)
		}
	}
}

// A rule that no case sees deny is as good as none: it is told of.
func TestWhatNoCaseTests(t *testing.T) {
	dir := files(t, policyText, `version: 1
policy: .
cases:
- {name: a, tenant: ci, request: {command: [id], user: root, labels: {team: x}}, expect: {decision: deny, reason: no-root}}
- {name: b, tenant: ci, request: {command: [id], labels: {team: x}}, expect: {decision: allow}}
`)
	for _, path := range []string{dir, filepath.Join(dir, "tests.yaml")} {
		r, err := stage().Run(t.Context(), path)
		if err != nil || !slices.Equal(r.Untested, []string{"team", "unseen"}) || r.File != filepath.Join(dir, "tests.yaml") ||
			r.Policy != filepath.Join(dir, "policy.yaml") || !strings.HasPrefix(r.Version, "sha256:") || len(r.Results) != 2 {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

func TestMalformedFiles(t *testing.T) {
	one := func(tenant, request, expect string) string {
		return fmt.Sprintf("version: 1\npolicy: p\ncases:\n- name: a\n  tenant: %s\n  request: %s\n  expect: %s\n", tenant, request, expect)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":               {"", "one YAML document"},
		"no version":          {"policy: p\ncases: []", "version is missing"},
		"no policy":           {"version: 1\ncases: []", "policy is missing"},
		"no cases":            {"version: 1\npolicy: p\ncases: []", "no cases"},
		"unknown key":         {"version: 1\npolicys: p", "line 2, column 1: unknown key"},
		"alias":               {"version: 1\npolicy: &p p", "line 2, column 9: anchors"},
		"unknown key in case": {"version: 1\npolicy: p\ncases:\n- name: a\n  tenants: ci", "line 5, column 3: unknown key"},
		"case without name":   {"version: 1\npolicy: p\ncases:\n- tenant: ci\n  request: {}\n  expect: {}", "line 4, column "},
		"twice":               {one("ci", "{command: [a]}", "{decision: allow}") + "- {name: a, tenant: b, request: {command: [a]}, expect: {decision: allow}}", "the second at line 8"},
		"unknown field":       {one("ci", "{command: [a], memory: 1}", "{decision: allow}"), `line 6, column 27: there is no field "memory"`},
		"unknown inner field": {one("ci", "{command: [a], resources: {cpus: 1}}", "{decision: allow}"), `line 6, column 39: there is no field "cpus"`},
		"a number, not text":  {one("ci", "{command: [a], user: 0}", "{decision: allow}"), "line 6, column 27: user is not a string"},
		"text, not a number":  {one("ci", `{command: [a], resources: {vcpus: "1"}}`, "{decision: allow}"), "line 6, column 39: resources.vcpus is not a number"},
		"bad duration":        {one("ci", "{command: [a], max_duration: 1h}", "{decision: allow}"), "line 6, column 27: max_duration is not a duration"},
		"request no mapping":  {one("ci", "[a]", "{decision: allow}"), "line 6, column 12: the body is not an object"},
		"no decision":         {one("ci", "{command: [a]}", "{reason: x}"), "allow or deny"},
		"other decision":      {one("ci", "{command: [a]}", "{decision: maybe}"), "line 7, column 22: the decision"},
		"allow with reason":   {one("ci", "{command: [a]}", "{decision: allow, reason: x}"), "has no reason"},
		"deny without":        {one("ci", "{command: [a]}", "{decision: deny}"), "say the reason"},
		"resolved, unknown":   {one("ci", "{command: [a]}", "{decision: allow, resolved: {memory: 5}}"), `line 7, column 40: there is no field "memory"`},
		"resolved, digest":    {one("ci", "{command: [a]}", "{decision: allow, resolved: {template_digest: x}}"), "line 7, column 40: no digest"},
		"too large":           {strings.Repeat("#\n", 1<<20), "more than"},
	} {
		dir := files(t, policyText, c.text)
		_, err := stage().Run(t.Context(), dir)
		if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), dir) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

func TestWhatCannotBeTried(t *testing.T) {
	const good = "version: 1\npolicy: %s\ncases:\n- {name: a, tenant: ci, request: {command: [id]}, expect: {decision: allow}}\n"
	dir := files(t, "version: 1\ntenants: 5\n", fmt.Sprintf(good, "policy.yaml"))
	if _, err := stage().Run(t.Context(), dir); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), "policy.yaml: the policy is malformed: line 2, column 10") {
		t.Errorf("a broken policy: %v", err)
	}
	dir = files(t, policyText, fmt.Sprintf(good, "none.yaml"))
	if _, err := stage().Run(t.Context(), dir); !fault.Is(err, fault.NotFound) {
		t.Errorf("no policy: %v", err)
	}
	if _, err := stage().Run(t.Context(), t.TempDir()); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "tests.yaml") {
		t.Errorf("no tests: %v", err)
	}
	dir = files(t, policyText, fmt.Sprintf(good, filepath.Join(dir, "policy.yaml")))
	if _, err := stage().Run(t.Context(), dir); err != nil {
		t.Errorf("an absolute path: %v", err)
	}
}
