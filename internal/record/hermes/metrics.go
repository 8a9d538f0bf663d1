package hermes

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/metrics"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Use is what a node's sandboxes use together, as sampled last.
type Use struct {
	Sandboxes    int
	MemoryBytes  int64 // of the host, VMMs included
	LargestBytes int64 // of it, the most of one VMM
}

// Metrics are a node's figures. A nil *Metrics counts nothing.
type Metrics struct {
	starts   *metrics.Histogram
	steps    *metrics.Histogram
	ends     *metrics.Counter
	givenUp  *metrics.Counter
	undos    *metrics.Counter
	peak     *metrics.Histogram
	cpu      *metrics.Counter
	logBytes *metrics.Counter
	cut      *metrics.Counter
	lost     *metrics.Counter
}

// NewMetrics makes the figures and registers them. use is asked whenever they
// are read.
func NewMetrics(reg prometheus.Registerer, use func() Use) (*Metrics, error) {
	m := &Metrics{}
	var errs []error
	for _, c := range []struct {
		to   **metrics.Counter
		name metrics.Name
	}{
		{&m.ends, metrics.NodeEnded}, {&m.givenUp, metrics.NodeBootsGivenUp}, {&m.undos, metrics.NodeUndoFailures},
		{&m.cpu, metrics.NodeCPUSeconds}, {&m.logBytes, metrics.NodeLogBytes}, {&m.cut, metrics.NodeLogsTruncated},
		{&m.lost, metrics.NodeLogsLost},
	} {
		var err error
		*c.to, err = metrics.NewCounter(reg, c.name)
		errs = append(errs, err)
	}
	for _, h := range []struct {
		to   **metrics.Histogram
		name metrics.Name
	}{{&m.starts, metrics.NodeStartSeconds}, {&m.steps, metrics.NodeStepSeconds}, {&m.peak, metrics.VMMMemoryPeak}} {
		var err error
		*h.to, err = metrics.NewHistogram(reg, h.name)
		errs = append(errs, err)
	}
	errs = append(errs, metrics.Reading{
		Names: []metrics.Name{metrics.NodeSandboxes, metrics.VMMMemory, metrics.VMMMemoryLargest},
		Read: func(_ context.Context, set func(metrics.Name, float64, ...string)) error {
			u := use()
			set(metrics.NodeSandboxes, float64(u.Sandboxes))
			set(metrics.VMMMemory, float64(u.MemoryBytes))
			set(metrics.VMMMemoryLargest, float64(u.LargestBytes))
			return nil
		},
	}.Register(reg))
	return m, errors.Join(errs...)
}

// Started counts a sandbox whose order to execute left, after that long.
func (m *Metrics) Started(after time.Duration) {
	if m != nil {
		m.starts.Observe(after.Seconds())
	}
}

// Prepared counts a step of preparing a sandbox, done or failed.
func (m *Metrics) Prepared(step string, took time.Duration) {
	if m != nil {
		m.steps.Observe(took.Seconds(), step)
	}
}

// BootGivenUp counts a VM that was ended because its guest did not come up.
func (m *Metrics) BootGivenUp() {
	if m != nil {
		m.givenUp.Inc()
	}
}

// UndoFailed counts a step that could not be undone.
func (m *Metrics) UndoFailed(step string) {
	if m != nil {
		m.undos.Inc(step)
	}
}

// LogLost counts a log that could not be stored.
func (m *Metrics) LogLost() {
	if m != nil {
		m.lost.Inc()
	}
}

// Ended counts the end of a sandbox. peak is the most that its VMM took, as
// the host saw it; 0 if it did not.
func (m *Metrics) Ended(e sandbox.ExitRecord, peak int64) {
	if m == nil {
		return
	}
	m.ends.Inc(string(e.Cause))
	m.cpu.Add(e.Usage.CPUSeconds)
	m.logBytes.Add(float64(e.Usage.LogBytes))
	if e.Usage.LogTruncated {
		m.cut.Inc()
	}
	if peak > 0 {
		m.peak.Observe(float64(peak))
	}
}
