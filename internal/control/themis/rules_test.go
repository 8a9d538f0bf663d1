package themis_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/themistest"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// anyTemplate knows every template.
type anyTemplate struct{ themistest.Lookup }

func (anyTemplate) Template(_ context.Context, name string) (sandbox.Template, error) {
	return sandbox.Template{Name: name, Digest: themistest.Digest("aa")}, nil
}

func rule(t testing.TB, deny string) themis.Rule {
	t.Helper()
	return parse(t, head+"rules:\n- name: r\n  reason: because\n  deny: |-\n    "+deny+"\n").Rules()[0]
}

func TestRules(t *testing.T) {
	req := sandbox.Request{
		Template: "debian", Command: []string{"sh", "-c", "x"}, Name: "n", Env: map[string]string{"A": "v", "LD_PRELOAD": "x"}, User: "root",
		Stdin: []byte("abc"), Files: []sandbox.File{{Path: "/etc/x", Mode: 0o755, Data: []byte("12345")}},
		Resources: sandbox.Resources{VCPUs: 4, MemoryMiB: 300}, MaxDuration: time.Hour, Labels: map[string]string{"team": "ci"},
		NodeSelector: map[string]string{"zone": "a"},
		Network:      sandbox.NetworkContract{Allow: []sandbox.Grant{{Domain: "a.example", Ports: []int{443}}, {CIDR: "203.0.113.0/24", Protocol: "udp", Ports: []int{53}}}},
	}
	full, _, err := resolve(t, req)
	if err != nil {
		t.Fatal(err)
	}
	bare, _, err := resolve(t, themistest.Request())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		deny       string
		full, bare bool
	}{
		{`true`, true, true},
		{`false`, false, false},
		{`request.user in ["root", "0"]`, true, false},
		{`tenant == "local"`, true, true},
		{`tenant == "ci"`, false, false},
		{`"team" in labels && labels["team"] == "ci"`, true, false},
		{`request.labels == labels && labels.size() > 0`, true, false},
		{`request.template == "debian" && request.name == "n"`, true, false},
		{`request.command.exists(a, a == "-c")`, true, false},
		{`request.env.exists(e, e.startsWith("LD_"))`, true, false},
		{`request.working_dir == "/work"`, true, true},
		{`request.stdin_bytes == 3 && !request.stdin_open`, true, false},
		{`request.files.exists(f, f.path.startsWith("/etc/") && f.mode == 493 && f.bytes == 5)`, true, false},
		{`request.resources.memory_mib > 256 && request.resources.vcpus == 4`, true, false},
		{`request.resources.disk_mib == 256 && request.resources.processes == 256`, true, true},
		{`request.max_duration > duration("30m")`, true, false},
		{`request.network.allow.exists(g, g.cidr != "" && g.protocol == "udp" && 53 in g.ports)`, true, false},
		{`request.network.allow.exists(g, g.domain.endsWith(".example"))`, true, false},
		{`request.node_selector["zone"] == "a"`, true, true}, // the bare one cannot be evaluated: denied
	} {
		r := rule(t, c.deny)
		for name, x := range map[string]struct {
			res  sandbox.Resolved
			want bool
		}{"full": {full, c.full}, "bare": {bare, c.bare}} {
			if got, err := r.Denies("local", x.res); got != x.want {
				t.Errorf("%s on %s: %v, %v", c.deny, name, got, err)
			}
		}
	}
}

func TestRuleThatCannotBeEvaluatedDenies(t *testing.T) {
	req := themistest.Request()
	for range themis.MaxArgs - 1 {
		req.Command = append(req.Command, strings.Repeat("a", 100))
	}
	res, _, err := resolve(t, req)
	if err != nil {
		t.Fatal(err)
	}
	for name, deny := range map[string]string{
		"missing key": `labels["gone"] == "x"`,
		"division":    `1 / request.stdin_bytes == 1`,
		"index":       `request.files[0].path == "/x"`,
		"too costly":  `request.command.all(a, request.command.all(b, request.command.all(c, a != "" && b != "" && c != "")))`,
	} {
		begin := time.Now()
		denied, err := rule(t, deny).Denies("local", res)
		if !denied || err == nil {
			t.Errorf("%s: %v, %v", name, denied, err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
	// What fits the cost is looked at to its end.
	if denied, err := rule(t, `request.command.exists(a, a.contains("b"))`).Denies("local", res); denied || err != nil {
		t.Errorf("every argument searched: %v, %v", denied, err)
	}
}

func BenchmarkRule(b *testing.B) {
	res, _, err := resolve(b, themistest.Request())
	if err != nil {
		b.Fatal(err)
	}
	r := rule(b, `request.user in ["root", "0"] && request.resources.memory_mib > 256`)
	for b.Loop() {
		if denied, err := r.Denies("local", res); denied || err != nil {
			b.Fatal(denied, err)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	p := builtin(b)
	for i := 0; b.Loop(); i++ {
		req := sandbox.Request{Command: []string{"echo", fmt.Sprint(i)}, Env: map[string]string{"A": "b"}}
		if _, _, err := p.Resolve(b.Context(), local, req, themistest.Lookup{}); err != nil {
			b.Fatal(err)
		}
	}
}
