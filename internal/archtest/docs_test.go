package archtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/metrics"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const made = "Made from the code's own table by `go test ./internal/archtest -run Tables`; do not edit.\n\n"

// TestTables holds the pages that repeat tables of the code to those tables.
func TestTables(t *testing.T) {
	for file, want := range map[string]string{
		"states.md":  statesPage(),
		"errors.md":  errorsPage(),
		"metrics.md": "# Metrics\n\n" + made + metrics.Page(),
	} {
		file = filepath.Join(root(t), "docs", file)
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Errorf("%s is not what the table says (%v); run: UPDATE=1 go test ./internal/archtest -run Tables", file, err)
		}
	}
}

func statesPage() string {
	var b strings.Builder
	b.WriteString("# States and causes\n\n" + made + "## States\n\nA client treats a state it does not know as live unless `ended_at` is set.\n\n| state | meaning | what may follow |\n|---|---|---|\n")
	for _, s := range sandbox.States() {
		next := make([]string, len(s.Next))
		for i, n := range s.Next {
			next[i] = "`" + string(n) + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.State, s.Meaning, strings.Join(next, " "))
	}
	b.WriteString("\n## Causes\n\nThe cause says what ended it; the first one stays. What the host saw beats what the guest says.\n\n| cause | whose word | meaning |\n|---|---|---|\n")
	for _, c := range sandbox.Causes() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", c.Cause, c.Source, c.Meaning)
	}
	return b.String()
}

func errorsPage() string {
	var b strings.Builder
	b.WriteString("# Errors\n\n" + made + "| code | HTTP | gRPC | exit | meaning |\n|---|---|---|---|---|\n")
	for _, r := range fault.Table() {
		fmt.Fprintf(&b, "| `%s` | %d | %d | %d | %s |\n", r.Code, r.HTTP, r.GRPC, r.Exit, r.Meaning)
	}
	b.WriteString("\nThe exit code is that of `run` and `wait`, whose other exit codes are the command's own (`tartarus help exit-codes`); other commands exit with 1.\n")
	return b.String()
}
