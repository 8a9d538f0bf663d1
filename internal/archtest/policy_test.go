package archtest

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
)

// TestPolicyTables holds the parts of docs/policy.md that repeat the code to
// it.
func TestPolicyTables(t *testing.T) {
	builtin, err := themis.Default()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root(t), "docs", "policy.md")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for name, text := range map[string]string{
		"default.yaml": "```yaml\n" + builtin.Text() + "```\n",
		"rules":        "| | type |\n|---|---|\n" + ruleFields("request", reflect.TypeFor[themis.RuleRequest]()),
		"bounds":       boundsTable(),
	} {
		begin, end := "<!-- made: "+name+" -->\n", "<!-- end -->"
		before, rest, found := strings.Cut(page, begin)
		_, after, ends := strings.Cut(rest, end)
		if !found || !ends {
			t.Fatalf("docs/policy.md has no place for %s", name)
		}
		page = before + begin + "\n" + text + "\n" + end + after
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if page != string(b) {
		t.Error("docs/policy.md is not what the code says; run: UPDATE=1 go test ./internal/archtest -run Tables")
	}
}

// ruleFields are the rows of what rules see.
func ruleFields(prefix string, typ reflect.Type) string {
	var b strings.Builder
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, of := prefix+"."+f.Tag.Get("cel"), f.Type
		if of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.Struct {
			name, of = name+"[]", of.Elem()
		}
		if of.Kind() == reflect.Struct {
			b.WriteString(ruleFields(name, of))
			continue
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", name, celType(of))
	}
	return b.String()
}

func celType(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t.Kind() == reflect.Slice:
		return "list of " + celType(t.Elem())
	case t.Kind() == reflect.Map:
		return "map of strings"
	case t.Kind() == reflect.Int64:
		return "int"
	}
	return t.Kind().String()
}

func boundsTable() string {
	var b strings.Builder
	b.WriteString("| | at most |\n|---|---|\n")
	for _, r := range []struct {
		what  string
		bound any
	}{
		{"arguments in `command`", themis.MaxArgs},
		{"bytes of `command`", themis.MaxCommandBytes},
		{"variables in `env`", themis.MaxEnvVars},
		{"bytes of `env`", themis.MaxEnvBytes},
		{"`files`", themis.MaxFiles},
		{"bytes of `stdin` and `files` together", themis.MaxInputBytes},
		{"bytes of a path", themis.MaxPathBytes},
		{"bytes of `name`", themis.MaxNameBytes},
		{"`labels`", themis.MaxLabels},
		{"`node_selector`", themis.MaxSelectors},
		{"bytes of a label's value", themis.MaxLabelValue},
		{"entries of `network.allow`", themis.MaxGrants},
		{"ports of one", themis.MaxPorts},
		{"`vcpus`", themis.MaxVCPUs},
		{"`memory_mib`", themis.MaxMemoryMiB},
		{"`disk_mib`", fmt.Sprintf("%d; at least %d", themis.MaxDiskMiB, themis.MinDiskMiB)},
		{"`processes`", themis.MaxProcesses},
		{"`max_duration`", fmt.Sprintf("%v; at least %v", themis.MaxDuration, themis.MinDuration)},
	} {
		fmt.Fprintf(&b, "| %s | %v |\n", r.what, r.bound)
	}
	return b.String()
}
