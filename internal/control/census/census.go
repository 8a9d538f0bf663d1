// Package census is the counting of the control plane: what happens to
// sandboxes, as the ledger tells it, and what there is, read of the ledger
// whenever metrics are asked for.
package census

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/metrics"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// Config is what a Census is made of.
type Config struct {
	Metrics prometheus.Registerer // nil: none
	Tracer  *tracing.Tracer       // nil: no traces
	Logger  *slog.Logger          // nil: none
}

// Census counts. It is the observer of the ledger, so that each thing is
// counted once, by the process that did it, when it is durable.
type Census struct {
	cfg Config

	ended         *metrics.Counter
	requeued      *metrics.Counter
	stages        *metrics.Histogram
	commits       *metrics.Histogram
	steps         *metrics.Histogram
	commitsFailed *metrics.Counter
	readsFailed   *metrics.Counter
	auditFailed   *metrics.Counter
}

var _ ledger.Observer = (*Census)(nil)

// New makes a Census, for the ledger to tell.
func New(cfg Config) (*Census, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Census{cfg: cfg}
	var errs []error
	for _, m := range []struct {
		to   **metrics.Counter
		name metrics.Name
	}{
		{&c.ended, metrics.Ended}, {&c.requeued, metrics.Requeued}, {&c.commitsFailed, metrics.CommitFailures},
		{&c.readsFailed, metrics.ReadFailures}, {&c.auditFailed, metrics.AuditFailures},
	} {
		var err error
		*m.to, err = metrics.NewCounter(cfg.Metrics, m.name)
		errs = append(errs, err)
	}
	for _, m := range []struct {
		to   **metrics.Histogram
		name metrics.Name
	}{{&c.stages, metrics.StageSeconds}, {&c.commits, metrics.CommitSeconds}, {&c.steps, metrics.CommitSteps}} {
		var err error
		*m.to, err = metrics.NewHistogram(cfg.Metrics, m.name)
		errs = append(errs, err)
	}
	for _, cause := range sandbox.Causes() { // so that each is there from the beginning
		c.ended.Add(0, string(sandbox.Failed), string(cause.Cause))
	}
	c.ended.Add(0, string(sandbox.Succeeded), string(sandbox.Exited))
	return c, errors.Join(errs...)
}

// Committed implements ledger.Observer.
func (c *Census) Committed(steps int, took time.Duration, err error) {
	if err != nil {
		c.commitsFailed.Inc()
		return
	}
	c.commits.Observe(took.Seconds())
	c.steps.Observe(float64(steps))
}

// Changed implements ledger.Observer.
func (c *Census) Changed(rec sandbox.Record, events []sandbox.Event) {
	for _, ev := range events {
		for _, s := range stages(rec, ev) {
			c.stages.Observe(s.took.Seconds(), s.name)
		}
		switch {
		case ev.State == sandbox.Queued && ev.Seq > 1:
			c.requeued.Inc()
		case ev.State == sandbox.Assigned:
			c.tracePlacing(rec)
		case ev.State.Live():
		case ev.State == sandbox.Refused:
			c.cfg.Tracer.Run(rec)
		default:
			c.ended.Inc(string(ev.State), string(ev.Cause))
			c.cfg.Tracer.Run(rec)
		}
	}
}

// stage is how long a stage took by itself.
type stage struct {
	name string
	took time.Duration
}

// stages are those that ev ended, out of the record's timings, which count from
// its creation. A sandbox is queued once here: what it waits for another try is
// in the total.
func stages(rec sandbox.Record, ev sandbox.Event) []stage {
	t := rec.Timings
	from := func(name string, begin, end float64) []stage {
		if end <= 0 {
			return nil // it never got there
		}
		return []stage{{name, ms(max(0, end-begin))}}
	}
	switch {
	case ev.Seq == 1:
		return []stage{{metrics.StageJudged, ms(t.Judged)}}
	case ev.State == sandbox.Assigned:
		placed := []stage{{metrics.StagePlaced, ms(max(0, t.Placed-t.Queued))}}
		if rec.Runtime.Attempt > 1 {
			return placed
		}
		return append(placed, stage{metrics.StageQueued, ms(max(0, t.Queued-t.Judged))})
	case ev.State == sandbox.Running:
		return from(metrics.StageVMReady, t.Placed, t.VMReady)
	case !ev.State.Live():
		return append(from(metrics.StageFirstOutput, t.VMReady, t.FirstOutput), stage{metrics.StageTotal, ms(t.Total)})
	}
	return nil
}

func ms(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }

// tracePlacing makes the spans of a sandbox that was just bound to a node. When
// a later attempt's wait began is not known here, so it has no span of it.
func (c *Census) tracePlacing(rec sandbox.Record) {
	at := func(timing float64) time.Time { return rec.CreatedAt.Add(ms(timing)) }
	t, attempt := rec.Timings, rec.Runtime.Attempt
	if attempt == 1 {
		c.cfg.Tracer.Stage(tracing.Span{Sandbox: rec.ID, Attempt: attempt, Name: "queue", Begin: at(t.Judged), End: at(t.Queued)})
	}
	c.cfg.Tracer.Stage(tracing.Span{Sandbox: rec.ID, Attempt: attempt, Name: "place", Begin: at(t.Queued), End: at(t.Placed)})
}

// Ledger is what is read of the ledger.
type Ledger interface {
	Live(ctx context.Context) (map[sandbox.State]int, error)
}

// Queue counts what waits (acheron).
type Queue interface {
	Depth(ctx context.Context) (acheron.Depth, error)
}

// Nodes knows the nodes (hades).
type Nodes interface {
	Nodes(ctx context.Context) ([]sandbox.Node, error)
	Fresh() time.Duration
}

// Sources are what a Census reads.
type Sources struct {
	Ledger Ledger
	Queue  Queue
	Nodes  Nodes
}

// Read registers what is read of s whenever metrics are asked for. It costs
// what is live, however much has ended.
func (c *Census) Read(s Sources) error {
	return metrics.Reading{
		Names: []metrics.Name{
			metrics.QueueDepth, metrics.QueueOldest, metrics.QueueLimited, metrics.Sandboxes,
			metrics.Nodes, metrics.NodesVCPUs, metrics.NodesMemory, metrics.NodesDisk,
		},
		Read: s.read,
		Failed: func(err error) {
			c.readsFailed.Inc()
			c.cfg.Logger.Warn("metrics could not be read of the ledger", "error", err)
		},
	}.Register(c.cfg.Metrics)
}

func (s Sources) read(ctx context.Context, set func(metrics.Name, float64, ...string)) error {
	live, err := s.Ledger.Live(ctx)
	if err != nil {
		return err
	}
	for state, n := range live {
		set(metrics.Sandboxes, float64(n), string(state))
	}
	d, err := s.Queue.Depth(ctx)
	if err != nil {
		return err
	}
	set(metrics.QueueDepth, float64(d.Ready), metrics.QueueReady)
	set(metrics.QueueDepth, float64(d.Waiting), metrics.QueueWaiting)
	set(metrics.QueueDepth, float64(d.Claimed), metrics.QueueClaimed)
	set(metrics.QueueOldest, d.Oldest.Seconds())
	set(metrics.QueueLimited, float64(d.Limited))
	nodes, err := s.Nodes.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, state := range []string{metrics.NodeReady, metrics.NodeSilent, metrics.NodeDraining} {
		set(metrics.Nodes, 0, state)
	}
	room(set, metrics.KindCapacity, sandbox.Capacity{})
	for _, n := range nodes {
		state := s.stateOf(n)
		set(metrics.Nodes, 1, state)
		if state == metrics.NodeReady {
			room(set, metrics.KindCapacity, n.Capacity)
		}
		room(set, metrics.KindInUse, n.InUse)
	}
	return nil
}

func (s Sources) stateOf(n sandbox.Node) string {
	switch {
	case n.SeenAt.IsZero() || time.Since(n.SeenAt) > s.Nodes.Fresh():
		return metrics.NodeSilent
	case n.Draining:
		return metrics.NodeDraining
	}
	return metrics.NodeReady
}

func room(set func(metrics.Name, float64, ...string), kind string, c sandbox.Capacity) {
	set(metrics.NodesVCPUs, float64(c.VCPUs), kind)
	set(metrics.NodesMemory, float64(c.MemoryMiB<<20), kind)
	set(metrics.NodesDisk, float64(c.DiskMiB<<20), kind)
}
