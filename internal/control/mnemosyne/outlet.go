package mnemosyne

import (
	"context"
	"log/slog"
	"time"

	"github.com/tartarus-vm/tartarus/internal/metrics"
)

const (
	maxQueue  = 64 // checkpoints that wait for a sink; a later one covers what an earlier one does
	firstWait = time.Second
	maxWait   = time.Minute
)

// outlet is a sink with the checkpoints that wait for it. Each has a goroutine
// of its own, so that a sink that fails or hangs holds up nobody.
type outlet struct {
	sink   Sink
	lines  chan []byte // closed by finish
	ending chan struct{}
	counts *metrics.Counter
	log    *slog.Logger
}

func newOutlet(s Sink, counts *metrics.Counter, log *slog.Logger) *outlet {
	return &outlet{sink: s, lines: make(chan []byte, maxQueue), ending: make(chan struct{}), counts: counts, log: log.With("sink", s.Name())}
}

func (o *outlet) count(outcome string) { o.counts.Inc(o.sink.Kind(), outcome) }

// put queues a line without waiting; if there is no room, the oldest is lost.
// Only one goroutine may call it.
func (o *outlet) put(line []byte) {
	for {
		select {
		case o.lines <- line:
			return
		default:
		}
		select {
		case <-o.lines:
			o.count(metrics.CheckpointLost)
		default: // run has just made room
		}
	}
}

// finish says that no line follows: run tries those that wait once more.
func (o *outlet) finish() {
	close(o.ending)
	close(o.lines)
}

// run writes lines until finish, or until ctx ends.
func (o *outlet) run(ctx context.Context) {
	for line := range o.lines {
		if !o.keep(ctx, line) {
			o.count(metrics.CheckpointLost)
			o.log.Error("a checkpoint of the audit log was not kept", "checkpoint", string(line))
		}
	}
}

// keep writes one line, again and again until it is written or run ends.
func (o *outlet) keep(ctx context.Context, line []byte) bool {
	failed, ended := false, false
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		err := o.sink.Write(ctx, line)
		if err == nil {
			o.count(metrics.CheckpointKept)
			if failed {
				o.log.Info("the audit sink takes checkpoints again")
			}
			return true
		}
		failed = true
		o.count(metrics.CheckpointFailed)
		o.log.Warn("the audit sink does not take checkpoints", "error", err)
		if ended {
			return false
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-o.ending:
			ended = true
		case <-ctx.Done():
			ended = true
		}
		t.Stop()
	}
}
