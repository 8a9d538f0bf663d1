package metrics_test

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var form = regexp.MustCompile(`^tartarus_[a-z]+(_[a-z]+)*$`)

// The table reads as the conventions of Prometheus and this project want it.
func TestTable(t *testing.T) {
	seen := map[metrics.Name]bool{}
	for _, r := range metrics.Table() {
		base := strings.TrimSuffix(string(r.Name), "_total")
		switch {
		case seen[r.Name]:
			t.Errorf("%s is there twice", r.Name)
		case !form.MatchString(string(r.Name)):
			t.Errorf("%s is no name", r.Name)
		case (base != string(r.Name)) != (r.Kind == metrics.CounterKind):
			t.Errorf("%s: counters end in _total, and nothing else does", r.Name)
		case r.Unit != "" && !strings.HasSuffix(base, "_"+r.Unit):
			t.Errorf("%s does not end in its unit %s", r.Name, r.Unit)
		case r.Unit == "" && (strings.HasSuffix(base, "_seconds") || strings.HasSuffix(base, "_bytes")):
			t.Errorf("%s has a unit in its name alone", r.Name)
		case (len(r.Buckets) > 0) != (r.Kind == metrics.HistogramKind) || !slices.IsSorted(r.Buckets):
			t.Errorf("%s: buckets %v", r.Name, r.Buckets)
		case !strings.HasSuffix(r.Help, "."):
			t.Errorf("%s: its meaning is no sentence", r.Name)
		case r.Ledger && r.Kind != metrics.GaugeKind:
			t.Errorf("%s is read of the ledger, and no gauge", r.Name)
		}
		seen[r.Name] = true
		for _, l := range r.Labels {
			if (l.Values == nil) == (l.Of == "") {
				t.Errorf("%s: label %s has values or says what they are of", r.Name, l.Name)
			}
		}
	}
	for _, myth := range []string{"olympus", "acheron", "hades", "moirai", "minos", "rhadamanthus", "hermes", "styx", "lethe", "nyx", "thanatos", "cocytus"} {
		if strings.Contains(metrics.Page(), myth) {
			t.Errorf("the page speaks of %s", myth)
		}
	}
}

const anID = "sb-01jd0000000000000000000000"

// Whatever an instrument is given, its labels stay few, and never hold a
// sandbox.
func TestLabelsAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reg := prometheus.NewRegistry()
		open, err := metrics.NewCounter(reg, metrics.Refusals)
		if err != nil {
			t.Fatal(err)
		}
		closed, err := metrics.NewHistogram(reg, metrics.StageSeconds)
		if err != nil {
			t.Fatal(err)
		}
		values := rapid.OneOf(rapid.String(), rapid.Just(anID), rapid.StringMatching(`[a-z]{1,3}`), rapid.SampledFrom([]string{"policy_denied", "judged"}))
		for range rapid.IntRange(1, 600).Draw(t, "n") {
			labels := rapid.SliceOfN(values, 0, 3).Draw(t, "labels")
			open.Inc(labels...)
			closed.Observe(1, labels...)
		}
		for _, f := range gather(t, reg) {
			if n := len(f.GetMetric()); f.GetName() == string(metrics.Refusals) && n > 12*201 || f.GetName() == string(metrics.StageSeconds) && n > 7 {
				t.Fatalf("%s has %d series", f.GetName(), n)
			}
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if strings.HasPrefix(l.GetValue(), "sb-") {
						t.Fatalf("%s has a sandbox as a label", f.GetName())
					}
				}
			}
		}
	})
}

// A label whose values are not known here takes only so many.
func TestOneTooMany(t *testing.T) {
	reg := prometheus.NewRegistry()
	c, err := metrics.NewCounter(reg, metrics.Refusals)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		c.Inc("policy_denied", strings.Repeat("x", 1+i%50)+string(rune('a'+i%26)))
	}
	for _, v := range []string{"", "with space", "ünïcode", strings.Repeat("x", 65), anID} {
		c.Inc("policy_denied", v)
	}
	series := gather(t, reg)[0].GetMetric()
	if len(series) != 201 {
		t.Errorf("%d series", len(series))
	}
	var other, sum float64
	for _, m := range series {
		sum += m.GetCounter().GetValue()
		for _, l := range m.GetLabel() {
			if l.GetValue() == metrics.Other {
				other += m.GetCounter().GetValue()
			}
		}
	}
	if sum != 1005 || other < 5 {
		t.Errorf("%v in all, %v of them %s", sum, other, metrics.Other)
	}
}

func TestReading(t *testing.T) {
	reg := prometheus.NewRegistry()
	var told []error
	fails := false
	r := metrics.Reading{
		Names: []metrics.Name{metrics.Nodes, metrics.QueueOldest},
		Read: func(_ context.Context, set func(metrics.Name, float64, ...string)) error {
			set(metrics.Nodes, 1, metrics.NodeReady)
			set(metrics.Nodes, 2, "who knows")
			set(metrics.Nodes, 3, anID)
			set(metrics.Sandboxes, 7, "running") // not this reading's
			if fails {
				return errors.New("no ledger")
			}
			return nil
		},
		Failed: func(err error) { told = append(told, err) },
	}
	if err := r.Register(reg); err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range gather(t, reg) {
		for _, m := range f.GetMetric() {
			got[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	if len(got) != 2 || got["tartarus_nodes ready"] != 1 || got["tartarus_nodes other"] != 5 {
		t.Errorf("got %v", got)
	}
	fails = true
	if families := gather(t, reg); len(families) != 0 || len(told) != 1 {
		t.Errorf("after a failure: %v, told %v", families, told)
	}
	if err := r.Register(reg); err == nil {
		t.Error("registered twice")
	}
}

func TestMistakes(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := metrics.NewCounter(reg, "tartarus_unheard_of_total"); err == nil {
		t.Error("a name without a row was taken")
	}
	if _, err := metrics.NewHistogram(reg, metrics.Nodes); err == nil {
		t.Error("a gauge was made a histogram")
	}
	c, err := metrics.NewCounter(nil, metrics.Requeued) // without a registerer nothing is counted
	if err != nil || c != nil {
		t.Errorf("%v, %v", c, err)
	}
	c.Inc()
	(*metrics.Histogram)(nil).Observe(1)
	(*metrics.Gauge)(nil).Add(1)
}

func gather(t interface{ Fatal(...any) }, reg *prometheus.Registry) []*dto.MetricFamily {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}
