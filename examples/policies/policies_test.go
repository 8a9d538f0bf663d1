// Package policies_test holds the example policies to their tests, and the
// tests to their use: whatever rule is broken, one of them fails.
package policies_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/cli"
)

func try(t *testing.T, dir string) cli.PolicyReport {
	t.Helper()
	r, err := assembly.Inside().TestPolicy(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// examples are the folders that have policies.
func examples(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("*/policy.yaml")
	if err != nil || len(found) < 3 {
		t.Fatalf("the examples are %v, %v", found, err)
	}
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found
}

func TestExamples(t *testing.T) {
	for _, dir := range examples(t) {
		r := try(t, dir)
		for _, c := range r.Cases {
			if !c.OK {
				t.Errorf("%s:%d: %s: expected %s, got %s", r.File, c.Line, c.Name, c.Expected, c.Got)
			}
		}
		if len(r.Cases) == 0 || len(r.Untested) > 0 {
			t.Errorf("%s: %d cases, and none sees these rules deny: %v", dir, len(r.Cases), r.Untested)
		}
	}
}

// broken says whether a case fails when the policy in dir has another text.
func broken(t *testing.T, dir, text string) bool {
	t.Helper()
	tests, err := os.ReadFile(filepath.Join(dir, "tests.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	for name, b := range map[string][]byte{"policy.yaml": []byte(text), "tests.yaml": tests} {
		if err := os.WriteFile(filepath.Join(out, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range try(t, out).Cases {
		if !c.OK {
			return true
		}
	}
	return false
}

// deny is the expression of a rule, on its line or below it.
var deny = regexp.MustCompile(`    deny: (\|-\n(      .*\n)+|.*\n)`)

// A rule that never denies, or always, or is gone, makes a case fail.
func TestABrokenRuleIsFound(t *testing.T) {
	for _, dir := range examples(t) {
		b, err := os.ReadFile(filepath.Join(dir, "policy.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		rules := deny.FindAllStringIndex(text, -1)
		if len(rules) != strings.Count(text, "    reason: ") || len(rules) == 0 {
			t.Fatalf("%s: %d rules are seen", dir, len(rules))
		}
		if broken(t, dir, text) {
			t.Errorf("%s: whole, it is broken", dir)
		}
		for _, at := range rules {
			for _, other := range []string{`"false"`, `"true"`, "labels['nothing'] == 'x'"} {
				if !broken(t, dir, text[:at[0]]+"    deny: "+other+"\n"+text[at[1]:]) {
					t.Errorf("%s: no case fails with %q for %q", dir, other, strings.TrimSpace(text[at[0]:at[1]]))
				}
			}
		}
	}
}

// So does a limit that is not what it was.
func TestABrokenLimitIsFound(t *testing.T) {
	for _, c := range []struct{ dir, from, to string }{
		{"solo-laptop", "max_duration: 8h", "max_duration: 24h"},
		{"solo-laptop", "max_duration: 8h", "max_duration: 4h"},
		{"solo-laptop", "{vcpus: 4, memory_mib: 4096,", "{vcpus: 4, memory_mib: 8192,"},
		{"solo-laptop", "{cidr: 0.0.0.0/0, ports: [443]}", "{cidr: 0.0.0.0/0}"},
		{"ci-farm", "    network: {allow: []}\n", ""},
		{"ci-farm", "    templates: [debian]\n", ""},
		{"ci-farm", "resources: {vcpus: 2, memory_mib: 2048, disk_mib: 8192, processes: 1024}\n      max_duration: 30m", "max_duration: 30m"},
		{"ci-farm", "    - {cidr: 10.20.0.0/24, ports: [443]}\n\n", "    - {cidr: 10.20.0.0/16, ports: [443]}\n\n"},
		{"agent-platform", "{cidr: 10.80.0.20/32, ports: [3128]}", "{cidr: 10.80.0.20/32}"},
		{"agent-platform", "    network: {allow: []}\n", ""},
		{"agent-platform", "  max_duration: 5m", "  max_duration: 1h"},
	} {
		b, err := os.ReadFile(filepath.Join(c.dir, "policy.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(b), c.from) != 1 {
			t.Errorf("%s has %q %d times", c.dir, c.from, strings.Count(string(b), c.from))
			continue
		}
		if !broken(t, c.dir, strings.Replace(string(b), c.from, c.to, 1)) {
			t.Errorf("%s: no case fails with %q for %q", c.dir, c.to, c.from)
		}
	}
}
