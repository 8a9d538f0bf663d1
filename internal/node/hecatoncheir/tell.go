package hecatoncheir

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// factsDelay is how long facts wait for a change of state to travel with:
// short runs end within it and need no message for them.
const factsDelay = 250 * time.Millisecond

// teller brings the progress of one sandbox to the control plane, in order.
// What it did not bring travels with the end.
type teller struct {
	a          *Agent
	assignment sandbox.Assignment
	kick       chan struct{} // there may be something new
	logger     *slog.Logger

	mu     sync.Mutex
	opened bool               // accepted: before that nothing may be told
	refuse bool               // the control plane wants no more
	facts  sandbox.Progress   // all there are; no State
	fresh  bool               // facts hold something untold
	states []sandbox.Progress // changes of state, untold
	begun  bool               // Running was among them
}

func newTeller(a *Agent, as sandbox.Assignment, facts sandbox.Progress, logger *slog.Logger) *teller {
	return &teller{a: a, assignment: as, facts: facts, logger: logger, kick: make(chan struct{}, 1)}
}

func (t *teller) change(f func()) {
	t.mu.Lock()
	f()
	t.mu.Unlock()
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

func (t *teller) open() { t.change(func() { t.opened = true }) }

func (t *teller) vmReady(at time.Time, start string, i sandbox.Isolation) {
	t.change(func() {
		t.facts.VMReady, t.facts.Runtime.Start, t.facts.Isolation, t.fresh = at.UTC(), start, i, true
	})
}

// firstOutput counts once.
func (t *teller) firstOutput(at time.Time) {
	t.mu.Lock()
	known := !t.facts.FirstOutput.IsZero()
	t.mu.Unlock()
	if !known {
		t.change(func() { t.facts.FirstOutput, t.fresh = at.UTC(), true })
	}
}

// state tells a change of state. A stop before the control plane knows of the
// sandbox at all is told by its end.
func (t *teller) state(p sandbox.Progress) {
	t.change(func() {
		if t.opened {
			t.states = append(t.states, p)
			t.begun = t.begun || p.State == sandbox.Running
		}
	})
}

// ran reports whether the order to execute left.
func (t *teller) ran() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.begun
}

// untold is what the end has to tell besides itself. run must have returned.
func (t *teller) untold() sandbox.Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.facts
	if len(t.states) > 0 && t.states[0].State == sandbox.Running {
		p.State, p.At = sandbox.Running, t.states[0].At
	}
	return p
}

// run tells what comes up until ctx ends.
func (t *teller) run(ctx context.Context) {
	for {
		p, state, wait := t.next()
		if p == nil {
			var due <-chan time.Time
			var timer *time.Timer
			if wait {
				timer = time.NewTimer(factsDelay)
				due = timer.C
			}
			select {
			case <-ctx.Done():
				if timer != nil {
					timer.Stop()
				}
				return
			case <-t.kick:
				if timer != nil {
					timer.Stop()
				}
				continue
			case <-due:
				p = t.onlyFacts()
			}
		}
		if !t.bring(ctx, *p) {
			return
		}
		if state {
			t.told()
		}
	}
}

// next is what to tell now; or, with wait, there are facts to tell later.
func (t *teller) next() (p *sandbox.Progress, state, wait bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.opened || t.refuse {
		return nil, false, false
	}
	if len(t.states) == 0 {
		return nil, false, t.fresh
	}
	out := t.facts
	out.State, out.At, out.Cause = t.states[0].State, t.states[0].At, t.states[0].Cause
	t.fresh = false
	return &out, true, false
}

func (t *teller) onlyFacts() *sandbox.Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh = false
	out := t.facts
	return &out
}

func (t *teller) told() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.states = t.states[1:]
}

// bring tries until the control plane has it; false when it never will.
func (t *teller) bring(ctx context.Context, p sandbox.Progress) bool {
	b, err := nodewire.EncodeProgress(p)
	if err != nil {
		t.logger.Error("progress cannot be told", "error", err)
		return false
	}
	req := &nodev1.ReportRequest{Assignment: nodewire.EncodeAssignment(t.assignment), Progress: b}
	try := func() (struct{}, error) {
		err := t.a.reportCall(ctx, req)
		if err != nil && definite(err) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}
	if _, err := backoff.Retry(ctx, try, backoff.WithBackOff(pauses()), backoff.WithMaxElapsedTime(0)); err != nil {
		if ctx.Err() == nil {
			t.logger.Info("the control plane takes no progress", "error", err)
		}
		return false
	}
	return true
}
