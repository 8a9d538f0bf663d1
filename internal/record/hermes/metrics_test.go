package hermes

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// value is the sum of a metric over its labels.
func value(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		sum := 0.0
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		return sum
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg, func() Use { return Use{Sandboxes: 3, MemoryBytes: 5, LargestBytes: 4} })
	if err != nil {
		t.Fatal(err)
	}
	m.Started(time.Second)
	m.Ended(sandbox.ExitRecord{Cause: sandbox.Memory, Usage: sandbox.Usage{CPUSeconds: 2, LogBytes: 7, LogTruncated: true}}, 20<<20)
	m.Ended(sandbox.ExitRecord{Cause: sandbox.Exited, Usage: sandbox.Usage{CPUSeconds: -1}}, 0)
	m.Ended(sandbox.ExitRecord{Cause: "sb-01jd0000000000000000000000"}, 0) // never a label
	m.Prepared("vm", time.Second)
	m.Prepared("sb-01jd0000000000000000000000", time.Second)
	m.UndoFailed("scratch")
	m.BootGivenUp()
	m.LogLost()
	for name, want := range map[string]float64{
		"tartarus_node_sandboxes": 3, "tartarus_vmm_memory_bytes": 5, "tartarus_vmm_memory_largest_bytes": 4, "tartarus_node_start_seconds": 1,
		"tartarus_node_sandboxes_ended_total": 3, "tartarus_node_cpu_seconds_total": 2, "tartarus_vmm_memory_peak_bytes": 1,
		"tartarus_node_log_bytes_total": 7, "tartarus_node_logs_truncated_total": 1, "tartarus_node_step_seconds": 2,
		"tartarus_node_undo_failures_total": 1, "tartarus_node_boots_given_up_total": 1, "tartarus_node_logs_lost_total": 1,
	} {
		if got := value(t, reg, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	families, _ := reg.Gather()
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			for _, l := range metric.GetLabel() {
				if strings.HasPrefix(l.GetValue(), "sb-") {
					t.Errorf("%s has a sandbox as a label", f.GetName())
				}
			}
		}
	}
	var none *Metrics
	none.Started(time.Second)
	none.Ended(sandbox.ExitRecord{Cause: sandbox.Exited}, 1)
	none.Prepared("vm", 1)
	none.UndoFailed("vm")
	none.BootGivenUp()
	none.LogLost()
	if _, err := NewMetrics(reg, nil); err == nil {
		t.Error("registered twice")
	}
}
