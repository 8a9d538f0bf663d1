package themis_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/themistest"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func parse(t testing.TB, text string) *themis.Policy {
	t.Helper()
	p, err := themis.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestBuiltinPolicy(t *testing.T) {
	p := builtin(t)
	if got := p.Tenants(); !slices.Equal(got, []string{"local"}) {
		t.Errorf("tenants %v", got)
	}
	l, ok := p.Tenant("local")
	if !ok || l.Quota.Limits.Running < 1 || l.Quota.RatePerMinute < 1 || l.Templates != nil || len(l.Network) != 0 {
		t.Errorf("tenant local: %+v", l)
	}
	if again := parse(t, p.Text()); again.Version() != p.Version() || !sandbox.Digest(p.Version()).Valid() {
		t.Errorf("version %s, read again %s", p.Version(), again.Version())
	}
	if other := parse(t, p.Text()+"\n"); other.Version() == p.Version() {
		t.Error("another text has the same version")
	}
}

func TestFileOverBuiltin(t *testing.T) {
	p := parse(t, `
version: 1
tenants:
  local:
  ci:
    quota: {running: 8, rate_per_minute: 0}
    maxima:
      resources: {vcpus: 2}
    templates: [debian]
    network:
      allow:
        - {cidr: 10.1.0.0/16, ports: [5432, 443, 443]}
        - domain: "*.Example.com"
          protocol: udp
defaults:
  template: debian
  resources: {memory_mib: 256}
  max_duration: 90s
maxima:
  max_duration: 2m
templates: [debian, base]
isolation_floor: {accelerator: kvm, confinement: [seccomp, no_new_privs]}
`)
	base := builtin(t)
	builtinLocal, _ := base.Tenant("local")
	l, _ := p.Tenant("local")
	if l.Quota != builtinLocal.Quota || l.Maxima.MaxDuration != 2*time.Minute || !slices.Equal(l.Templates, []string{"debian", "base"}) {
		t.Errorf("local: %+v", l)
	}
	ci, _ := p.Tenant("ci")
	want := builtinLocal.Quota
	want.Limits.Running, want.RatePerMinute = 8, 0
	if ci.Quota != want || ci.Maxima.Resources.VCPUs != 2 || ci.Maxima.MaxDuration != 2*time.Minute ||
		ci.Maxima.Resources.DiskMiB != builtinLocal.Maxima.Resources.DiskMiB || !slices.Equal(ci.Templates, []string{"debian"}) {
		t.Errorf("ci: %+v", ci)
	}
	if got := fmt.Sprintf("%v", ci.Network); got != "[{ 10.1.0.0/16 tcp [443 5432]} {*.example.com  udp []}]" {
		t.Errorf("network %s", got)
	}
	res, _, err := p.Resolve(t.Context(), sandbox.Principal{Tenant: "ci"}, themistest.Request(), themistest.Lookup{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Template != "debian" || res.Resources.MemoryMiB != 256 || res.Resources.VCPUs != 1 || res.MaxDuration != 90*time.Second ||
		res.Isolation.Accelerator != "kvm" || len(res.Isolation.Confinement) != 2 {
		t.Errorf("resolved %+v", res)
	}
}

const head = "version: 1\ntenants: {local: }\n"

func TestMalformedPolicies(t *testing.T) {
	rule := func(deny string) string {
		return head + "rules:\n- name: r\n  reason: because\n  deny: |-\n    " + strings.ReplaceAll(deny, "\n", "\n    ") + "\n"
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", "one YAML document"},
		"only a comment":     {"# x", "one YAML document"},
		"a list":             {"- a", "line 1, column 1: a mapping"},
		"no UTF-8":           {"a: \xff", "no UTF-8"},
		"too large":          {head + strings.Repeat("# x\n", themis.MaxPolicyBytes/4), "more than"},
		"no version":         {"tenants: {local: }", "version is missing"},
		"no tenants":         {"version: 1", "tenants is missing"},
		"version 2":          {"version: 2\ntenants: {local: }", "line 1, column 10: out of bounds"},
		"version in quotes":  {"version: \"1\"\ntenants: {local: }", "line 1, column 10: an integer"},
		"unknown key":        {head + "defaulst: {}", "line 3, column 1: unknown key"},
		"unknown inner key":  {head + "defaults:\n  resources:\n    cpu: 1", "line 5, column 5: unknown key"},
		"other case":         {head + "Defaults: {}", "line 3, column 1: unknown key"},
		"repeated key":       {head + "version: 1", "line 3, column 1: "},
		"alias":              {head + "defaults: &a {}\nmaxima: *a", "line 3, column 11: anchors"},
		"merge key":          {head + "<<: {rules: []}", "line 3, column 1: anchors"},
		"tag":                {head + "rules: !!seq []", "line 3, column 8: tags"},
		"two documents":      {head + "---\nversion: 1", "line 3, column 1: document markers"},
		"tab":                {head + "defaults:\n\tuser: x", "line 4, column 1: "},
		"a fraction":         {head + "defaults: {resources: {vcpus: 1.5}}", "line 3, column 31: an integer"},
		"octal":              {head + "defaults: {resources: {vcpus: 010}}", "line 3, column 31: a plain decimal"},
		"hexadecimal":        {head + "defaults: {resources: {vcpus: 0x1}}", "line 3, column 31: a plain decimal"},
		"huge":               {head + "defaults: {log_bytes: 99999999999999999999}", "line 3, column 23: an integer"},
		"negative":           {head + "tenants: {local: {quota: {live: -1}}}", "line 3, column 1: "},
		"negative quota":     {"version: 1\ntenants: {local: {quota: {live: -1}}}", "line 2, column 33: out of bounds"},
		"a number as string": {head + "defaults: {user: 5}", "line 3, column 18: a string"},
		"null":               {head + "defaults: ", "a mapping"},
		"null in a list":     {head + "templates: [base, ]\nrules: [~]", "line 4, column 9: a mapping"},
		"bad duration":       {head + "defaults: {max_duration: 5 fortnights}", "line 3, column 26: a duration"},
		"short duration":     {head + "defaults: {max_duration: 1ms}", "line 3, column 26: out of bounds"},
		"no memory class":    {head + "maxima: {resources: {memory_mib: 1000}}", "line 3, column 34: memory comes in classes"},
		"default beyond max": {head + "maxima: {max_duration: 30s}", "a default is larger"},
		"default unlisted":   {head + "templates: [debian]", "default template"},
		"bad tenant":         {"version: 1\ntenants: {Local: }", "line 2, column 11: a tenant's name"},
		"bad user":           {head + "defaults: {user: \"a b\"}", "line 3, column 18: not what"},
		"bad dir":            {head + "defaults: {working_dir: work}", "line 3, column 25: not what"},
		"bad floor":          {head + "isolation_floor: {accelerator: hope}", "line 3, column 32: kvm"},
		"grant of nothing":   {head + "network: {allow: [{ports: [1]}]}", "line 3, column 1"},
		"grant, wild":        {head + "network: {allow: [{domain: \"*\"}]}", "no valid grant"},
		"grant, no ports":    {head + "network: {allow: [{domain: a.example, ports: []}]}", "list of no ports"},
		"grant, host bits":   {head + "network: {allow: [{cidr: 10.1.1.1/8}]}", "no valid grant"},
		"deep flow":          {head + "rules: " + strings.Repeat("[", 100000), "nested too deeply"},
		"deep list":          {head + "rules:\n" + strings.Repeat("- ", 100000), "nested too deeply"},
		"deep indentation":   {deepBlocks(100), "indented too far"},
		"deep list by lines": {head + "rules:\n" + strings.ReplaceAll(deepBlocks(100), "a:", "-"), "indented too far"},
		"rule, no name":      {head + "rules: [{deny: \"true\", reason: x}]", "a rule has name"},
		"rule, no reason":    {head + "rules: [{deny: \"true\", name: x, reason: \" \"}]", "a rule has name"},
		"rules of one name":  {head + "rules: [{deny: \"true\", name: x, reason: x}, {deny: \"true\", name: x, reason: x}]", "two rules of one name"},
		"rule, syntax":       {rule("request.user ==="), "line 6, column 9: the expression does not hold at its line 1, column 16: a mistake of syntax"},
		"rule, second line":  {rule("true &&\n  requets.user == 'x'"), "at its line 2, column 3: a name"},
		"rule, field":        {rule("request.usr == 'x'"), "at its line 1, column 8: a field"},
		"rule, types":        {rule("request.user > 5"), "an operator or function on the wrong types"},
		"rule, not a bool":   {rule("request.user"), "must be true or false"},
		"rule, too long":     {rule("request.user == '" + strings.Repeat("x", 5000) + "'"), "more than"},
		"rule, deep":         {rule(strings.Repeat("(", 1500) + "true" + strings.Repeat(")", 1500)), "the expression does not hold"},
	} {
		begin := time.Now()
		_, err := themis.Parse([]byte(c.text))
		if !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
}

func deepBlocks(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// A policy file may turn out to be another file.
func TestErrorsQuoteNothing(t *testing.T) {
	for _, text := range []string{
		"root:x:0:0:MARKER:/root:/bin/sh\n", "MARKER", "MARKER: MARKER", "version: MARKER", head + "MARKER: 1", head + "defaults: {user: \"MARKER!\"}",
		head + "defaults: {MARKER: 1}", head + "maxima: MARKER", "- MARKER", "MARKER: [", "MARKER: 1\nMARKER: 2", "\"MARKER", "!MARKER x", "version: 1\ntenants: {MARKER: }",
		head + "rules: [{name: MARKER!, deny: x, reason: x}]", head + "rules: [{name: r, deny: MARKER, reason: x}]",
		head + "rules: [{name: r, deny: \"'MARKER' + 1\", reason: x}]", head + "network: {allow: [{cidr: MARKER}]}",
		head + "defaults: {max_duration: MARKER}", "-----BEGIN MARKER-----\nMARKER\n-----END MARKER-----\n", "%MARKER\n---\na: b",
	} {
		_, err := themis.Parse([]byte(text))
		if err == nil {
			t.Errorf("%q was taken", text)
		} else if strings.Contains(fmt.Sprintf("%+v", err), "MARKER") {
			t.Errorf("%q: the error quotes it: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(head))
	f.Add([]byte(head + "rules: [{name: r, deny: \"request.user == 'root'\", reason: x}]\nnetwork: {allow: [{domain: '*.a.example', ports: [1]}]}"))
	f.Add([]byte("version: 1\ntenants:\n  a:\n    quota: {live: 1}\n    maxima: {resources: {memory_mib: 256}}\n"))
	f.Add([]byte("? a\n: b\n- c: |\n   d\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := themis.Parse(text)
		if err != nil {
			if !fault.Is(err, fault.InvalidArgument) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		for _, name := range p.Tenants() {
			res, _, err := p.Resolve(t.Context(), sandbox.Principal{Tenant: name}, sandbox.Request{Command: []string{"x"}}, anyTemplate{})
			if err != nil {
				t.Fatalf("%q: the smallest request of tenant %s: %v", text, name, err)
			}
			for _, r := range p.Rules() {
				if denied, err := r.Denies(name, res); err != nil && !denied {
					t.Errorf("%q: rule %s cannot be evaluated, and allows", text, r.Name)
				}
			}
		}
	})
}
