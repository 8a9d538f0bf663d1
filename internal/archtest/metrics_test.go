package archtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/metrics"
)

// dashboard is what the test reads of a Grafana dashboard.
type dashboard struct {
	UID    string
	Panels []struct {
		ID      int
		Type    string
		Title   string
		Targets []struct{ Expr string }
	}
}

var (
	aMetric   = regexp.MustCompile(`\b((?:tartarus|go|process)_[a-z_]+)(?:\{([^}]*)\})?`)
	aName     = regexp.MustCompile(`\btartarus_[a-z_]+[a-z]\b`)
	aMatcher  = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	aGrouping = regexp.MustCompile(`by \(([^)]*)\)`)
	inRate    = regexp.MustCompile(`(?:rate|increase)\($`)
	inMax     = regexp.MustCompile(`max(?: by \([^)]*\))? ?\($`)
)

// rowFor is the row of a series' name, which for a histogram has an ending.
func rowFor(name string) (metrics.Row, bool) {
	for _, r := range metrics.Table() {
		if r.Kind != metrics.HistogramKind && string(r.Name) == name {
			return r, true
		}
		for _, end := range []string{"_bucket", "_sum", "_count"} {
			if r.Kind == metrics.HistogramKind && string(r.Name)+end == name {
				return r, true
			}
		}
	}
	return metrics.Row{}, false
}

// TestDashboard holds the dashboard to the table of metrics: it asks for
// nothing that is not there, as what it is, and leaves nothing out.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "deploy", "grafana", "tartarus.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	used, ids := map[metrics.Name]bool{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("panel %d, %q, is there twice, or is empty", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			for _, row := range checkQuery(t, p.Title, target.Expr) {
				used[row.Name] = true
			}
		}
	}
	for _, m := range aName.FindAllString(string(b), -1) { // variables, too
		known := slices.ContainsFunc(metrics.Table(), func(r metrics.Row) bool { return string(r.Name) == m })
		if _, series := rowFor(m); !known && !series {
			t.Errorf("the dashboard speaks of %s, which there is not", m)
		}
	}
	for _, r := range metrics.Table() {
		if !used[r.Name] {
			t.Errorf("the dashboard does not show %s", r.Name)
		}
	}
}

// checkQuery checks one query, and returns the rows that it asks for.
func checkQuery(t *testing.T, title, expr string) (rows []metrics.Row) {
	t.Helper()
	labels := []string{"job", "instance", "le"}
	for _, m := range aMetric.FindAllStringSubmatchIndex(expr, -1) {
		name, before := expr[m[2]:m[3]], expr[:m[0]]
		if !strings.HasPrefix(name, "tartarus_") {
			continue // the client library's own
		}
		row, ok := rowFor(name)
		if !ok {
			t.Errorf("%s: there is no %s", title, name)
			continue
		}
		rows = append(rows, row)
		if row.Kind != metrics.GaugeKind && !inRate.MatchString(before) {
			t.Errorf("%s: %s only ever grows; take its rate", title, name)
		}
		if row.Ledger && !inMax.MatchString(before) {
			t.Errorf("%s: every server tells the same %s; take the max", title, name)
		}
		for _, l := range row.Labels {
			labels = append(labels, l.Name)
		}
		if m[4] < 0 || !strings.Contains(expr[m[4]:m[5]], `job=~"$job"`) {
			t.Errorf("%s: %s is not that of the chosen job", title, name)
			continue
		}
		for _, c := range aMatcher.FindAllStringSubmatch(expr[m[4]:m[5]], -1) {
			i := slices.IndexFunc(row.Labels, func(l metrics.Label) bool { return l.Name == c[1] })
			if c[1] == "job" {
				continue
			}
			if i < 0 || (row.Labels[i].Values != nil && !strings.HasSuffix(c[2], "~") && !slices.Contains(row.Labels[i].Values, c[3])) {
				t.Errorf("%s: %s has no %s", title, name, c[0])
			}
		}
	}
	for _, g := range aGrouping.FindAllStringSubmatch(expr, -1) {
		for l := range strings.SplitSeq(g[1], ",") {
			if !slices.Contains(labels, strings.TrimSpace(l)) {
				t.Errorf("%s: nothing has a label %s", title, l)
			}
		}
	}
	return rows
}

// TestMetricsInDocs insists that every metric that the pages name is there.
func TestMetricsInDocs(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root(t), "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, page := range append(pages, filepath.Join(root(t), "README.md")) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range aName.FindAllString(string(b), -1) {
			seen++
			known := slices.ContainsFunc(metrics.Table(), func(r metrics.Row) bool { return string(r.Name) == m })
			if _, series := rowFor(m); !known && !series {
				t.Errorf("%s speaks of %s, which there is not", filepath.Base(page), m)
			}
		}
	}
	if seen <= len(metrics.Table()) {
		t.Errorf("only %d metrics were seen: the test is blind", seen)
	}
}
