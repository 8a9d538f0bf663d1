package hermes

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Use is what a node's sandboxes use together, as sampled last.
type Use struct {
	Sandboxes   int
	MemoryBytes int64 // of the host, VMMs included
}

// Metrics are a node's figures. No label ever holds a sandbox or a tenant. A
// nil *Metrics counts nothing.
type Metrics struct {
	starts   prometheus.Histogram
	ends     *prometheus.CounterVec
	cpu      prometheus.Counter
	logBytes prometheus.Counter
	cut      prometheus.Counter
}

// NewMetrics makes the figures and registers them. use is asked whenever they
// are read.
func NewMetrics(reg prometheus.Registerer, use func() Use) (*Metrics, error) {
	m := &Metrics{
		starts: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tartarus_node_start_seconds", Help: "From the assignment to the order to execute.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14),
		}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tartarus_node_sandboxes_ended_total", Help: "Sandboxes that ended on this node, by cause.",
		}, []string{"cause"}),
		cpu: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tartarus_node_cpu_seconds_total", Help: "CPU time of ended sandboxes.",
		}),
		logBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tartarus_node_log_bytes_total", Help: "Output of ended sandboxes that was kept.",
		}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tartarus_node_logs_truncated_total", Help: "Logs that were full.",
		}),
	}
	for _, c := range sandbox.Causes() { // so that each is there from the beginning, at 0
		m.ends.WithLabelValues(string(c.Cause))
	}
	sandboxes := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tartarus_node_sandboxes", Help: "Sandboxes on this node.",
	}, func() float64 { return float64(use().Sandboxes) })
	memory := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tartarus_node_memory_bytes", Help: "Memory of the host that the sandboxes' VMs take.",
	}, func() float64 { return float64(use().MemoryBytes) })
	for _, c := range []prometheus.Collector{m.starts, m.ends, m.cpu, m.logBytes, m.cut, sandboxes, memory} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

// Started counts a sandbox whose order to execute left, after that long.
func (m *Metrics) Started(after time.Duration) {
	if m != nil {
		m.starts.Observe(after.Seconds())
	}
}

// Ended counts the end of a sandbox.
func (m *Metrics) Ended(e sandbox.ExitRecord) {
	if m == nil || !e.Cause.Valid() {
		return
	}
	m.ends.WithLabelValues(string(e.Cause)).Inc()
	m.cpu.Add(max(0, e.Usage.CPUSeconds))
	m.logBytes.Add(float64(max(0, e.Usage.LogBytes)))
	if e.Usage.LogTruncated {
		m.cut.Inc()
	}
}
