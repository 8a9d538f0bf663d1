package metrics

import (
	"fmt"
	"strings"
)

// Library are the beginnings of the names that the Prometheus client library
// gives to what it tells of the process and of Go.
func Library() []string { return []string{"go_", "process_"} }

// Page is docs/metrics.md without its heading.
func Page() string {
	var b strings.Builder
	b.WriteString("`GET /metrics` answers in Prometheus' text form (a token with scope `read`).\n\n" +
		"Counters and histograms begin at 0 with their process. Gauges marked *ledger* are read of the ledger when they are asked for: every\n" +
		"server of the same ledger says the same, so take their `max`, never their `sum`.\n\n" +
		"No label ever holds a sandbox, a tenant, a node's name, or text that a tenant wrote: whoever has scope `read` may read this page, and\n" +
		"labels must be few. What one tenant has in use is in the API (`GET /sandbox`, `GET /nodes`). A value that the table does not know is `" + Other + "`.\n")
	for _, part := range []struct {
		title string
		rows  []Row
	}{{"The API server", apiRows()}, {"Queue, sandboxes and nodes", controlRows()}, {"One node", nodeRows()}} {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | | labels | meaning |\n|---|---|---|---|\n", part.title)
		for _, r := range part.rows {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.Name, r.what(), r.labels(), r.Help)
		}
	}
	b.WriteString("\n## The process\n\n`go_*` and `process_*` are the Prometheus client library's own, of the process that answers: goroutines, memory, CPU time, open files.\n")
	return b.String()
}

func (r Row) what() string {
	out := string(r.Kind)
	if r.Unit != "" {
		out += ", " + r.Unit
	}
	if r.Ledger {
		out += ", *ledger*"
	}
	if n := len(r.Buckets); n > 0 {
		out += fmt.Sprintf(", %d bounds from %g to %g", n, r.Buckets[0], r.Buckets[n-1])
	}
	return out
}

func (r Row) labels() string {
	var parts []string
	for _, l := range r.Labels {
		of := l.Of
		if l.Values != nil {
			of = "`" + strings.Join(l.Values, "` `") + "`"
		}
		parts = append(parts, "`"+l.Name+"`: "+of)
	}
	return strings.Join(parts, "; ")
}
