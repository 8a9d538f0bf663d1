// Package alecto is the watch over time: start_timeout until the command
// runs, max_duration from then on.
//
// Times are those of time.Now, whose monotonic clock decides: setting the
// host's clock moves no deadline.
package alecto

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/erinyes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Terms are the time that a sandbox has. Zero means no bound.
type Terms struct {
	StartTimeout time.Duration // from its placement to the order to execute
	MaxDuration  time.Duration // from the order to execute on
}

// Times are what has happened so far.
type Times struct {
	Placed  time.Time
	Started time.Time // zero until the order to execute has left
}

// Judge says whether the time is up at now, and if not, in how long it will
// be; 0 for never.
func Judge(terms Terms, times Times, now time.Time) (erinyes.Verdict, time.Duration) {
	limit, from, cause, what := terms.StartTimeout, times.Placed, sandbox.StartTimeout, "did not start within start_timeout"
	if !times.Started.IsZero() {
		limit, from, cause, what = terms.MaxDuration, times.Started, sandbox.MaxDuration, "ran for max_duration"
	}
	if limit <= 0 {
		return erinyes.Verdict{}, 0
	}
	if left := limit - now.Sub(from); left > 0 {
		return erinyes.Verdict{}, left
	}
	return erinyes.Verdict{Cause: cause, Message: fmt.Sprintf("it %s (%v)", what, limit)}, 0
}

// Clock watches one sandbox.
type Clock struct {
	terms   Terms
	started chan struct{} // closed by Started

	mu    sync.Mutex
	times Times
}

// New makes the watch of a sandbox that was placed at placed.
func New(terms Terms, placed time.Time) *Clock {
	return &Clock{terms: terms, times: Times{Placed: placed}, started: make(chan struct{})}
}

// Started tells that the order to execute left at at. Only the first call
// counts.
func (c *Clock) Started(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.times.Started.IsZero() {
		c.times.Started = at
		close(c.started)
	}
}

// Wait returns the verdict when the time is up, and the zero one when ctx
// ends before.
func (c *Clock) Wait(ctx context.Context) erinyes.Verdict {
	started := c.started
	for {
		c.mu.Lock()
		times := c.times
		c.mu.Unlock()
		v, left := Judge(c.terms, times, time.Now())
		if v.Guilty() {
			return v
		}
		var due <-chan time.Time
		if left > 0 {
			t := time.NewTimer(left)
			defer t.Stop() // two at most
			due = t.C
		}
		select {
		case <-due:
		case <-started:
			started = nil
		case <-ctx.Done():
			return erinyes.Verdict{}
		}
	}
}
