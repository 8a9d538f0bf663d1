package bench

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// contender is who starts VMs, or what goes for one elsewhere.
type contender struct {
	name     string
	includes string

	// worker makes one of those who start, one after the other; n tells them
	// apart.
	worker func(ctx context.Context, n int) (do func() started, end func())

	// rest, if not nil, returns once what a turn left to do in the background
	// is done, and how long that took: it counts as part of the turn.
	rest func(ctx context.Context) (time.Duration, error)
}

// The names of contenders that others are compared with.
const (
	ofTartarus = "tartarus"
	ofFloor    = "floor"
	ofGVisor   = "runsc"
)

// started is what became of one start.
type started struct {
	ms  float64 // until the first byte of output
	how string  // cold, restored or standby; "" where there is no such thing

	stages map[string]float64 // ms from the request, by the record; nil without
	err    error
}

// series are the starts of one contender at one concurrency.
type series struct {
	contender
	starts []started
	took   time.Duration // of all its turns
	cpu    time.Duration // of this process in them
}

// rate is how many a second came to their end.
func (s series) rate() float64 {
	ok := 0
	for _, x := range s.starts {
		if x.err == nil {
			ok++
		}
	}
	return float64(ok) / s.took.Seconds()
}

// maxTurns bounds in how many turns a concurrent series is taken.
const maxTurns = 5

// inTurn has each contender start n times or a little more, so many at once, in
// small turns. Each round begins with another one, so that what grows in the
// course of it favours none.
func inTurn(ctx context.Context, all []contender, n, atOnce int) ([]series, error) {
	turns := n
	if atOnce > 1 {
		turns = min(maxTurns, max(1, n/(2*atOnce)))
	}
	each := max((n+turns-1)/turns, atOnce)
	out := make([]series, len(all))
	for t := range turns {
		for i := range all {
			k := (t + i) % len(all)
			out[k].contender = all[k]
			before := ownCPU()
			starts, took := together(ctx, all[k], each, atOnce)
			out[k].cpu += ownCPU() - before // looking on, as rest does, is not part of it
			if rest := all[k].rest; rest != nil {
				more, err := rest(ctx)
				if err != nil {
					return nil, err
				}
				took += more
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			out[k].starts = append(out[k].starts, starts...)
			out[k].took += took
		}
	}
	return out, nil
}

// together has one contender start n times, so many at once.
func together(ctx context.Context, c contender, n, atOnce int) ([]started, time.Duration) {
	out := make([]started, n)
	var all sync.WaitGroup
	began := time.Now()
	for w := range atOnce {
		all.Go(func() {
			do, end := c.worker(ctx, w)
			defer end()
			for i := w; i < n && ctx.Err() == nil; i += atOnce {
				out[i] = do()
			}
		})
	}
	all.Wait()
	return out, time.Since(began)
}

// ownCPU is what this process has used, without the VMMs.
func ownCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil { // never, for oneself
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
