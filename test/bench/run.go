package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tartarus-vm/tartarus/internal/bench"
	"github.com/tartarus-vm/tartarus/internal/measure"
)

const (
	runsARound = 50
	noJob      = `{"command": ["true"]}`

	// commitsOfARun are those that one has to wait for, one after the other:
	// admit, claim, place, accept, end.
	commitsOfARun = 5
)

// perRun is what one run costs where its VM costs nothing.
func perRun(ctx context.Context, b *run) (_ []measure.Row, err error) {
	u, err := b.startUp(filepath.Join(b.dir, "run"), policy(1000))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	floor, err := bench.OpenBare(b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, floor.Close()) }()
	c, err := u.api.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var cpu []measure.Pair
	pairs, err := measure.Alternate(ctx, b.rounds,
		func(context.Context) (float64, error) {
			before, err := u.look()
			if err != nil {
				return 0, err
			}
			each, err := eachOf(func() error {
				_, err := c.Call(http.MethodPost, "/sandbox/run?wait=60s", noJob, http.StatusOK)
				return err
			})
			if err != nil {
				return 0, err
			}
			after, err := u.look()
			cpu = append(cpu, measure.Pair{Value: float64((after.CPU - before.CPU).Microseconds()) / 1000 / runsARound})
			return each, err
		},
		func(context.Context) (float64, error) {
			return eachOf(func() error {
				var errs []error
				for range commitsOfARun {
					errs = append(errs, floor.Commit())
				}
				return errors.Join(errs...)
			})
		})
	return []measure.Row{
		measure.Of(measure.Row{
			Name: "a run's time in Tartarus", Unit: "ms", Goals: []measure.Goal{measure.AtMost(15)},
			Includes: "POST /sandbox/run?wait of `true` on a fake VM that costs nothing, from the request to the ended record: one after the other, everything but the VM, all of it durable",
			FloorOf:  fmt.Sprintf("%d bare durable SQLite commits one after the other, as many as a run waits for", commitsOfARun),
		}, pairs),
		measure.Of(measure.Row{
			Name: "a run's CPU in Tartarus", Unit: "ms", Goals: []measure.Goal{measure.AtMost(10)},
			Includes: "the same runs, of the server without its client",
		}, cpu[len(cpu)-len(pairs):]),
	}, err
}

// eachOf is how many ms one of a round's calls of f takes.
func eachOf(f func() error) (float64, error) {
	began := time.Now()
	for range runsARound {
		if err := f(); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(began)) / float64(time.Millisecond) / runsARound, nil
}

const queued = 1000

// memory is what an up holds at rest, and with many requests queued.
func memory(ctx context.Context, b *run) ([]measure.Row, error) {
	var rest, full []measure.Pair
	for n := range b.rounds {
		r, f, err := b.memoryOnce(ctx, fmt.Sprintf("memory-%d", n))
		if err != nil {
			return nil, err
		}
		rest, full = append(rest, r), append(full, f)
	}
	const floor = "the same program when it does nothing"
	return []measure.Row{
		measure.Of(measure.Row{Name: "memory at rest", Unit: "MB", Includes: "RSS of an up that answers, before its first request", FloorOf: floor}, rest),
		measure.Of(measure.Row{Name: "memory with 1000 queued", Unit: "MB", Includes: "RSS after 1,000 admissions of 64 clients, all of them queued; what Go's collector has not given back is in it", FloorOf: floor}, full),
	}, nil
}

func (b *run) memoryOnce(ctx context.Context, name string) (rest, full measure.Pair, err error) {
	floor, err := idleRSS(b.exe)
	if err != nil {
		return rest, full, err
	}
	u, err := b.startUp(filepath.Join(b.dir, name), policy(1))
	if err != nil {
		return rest, full, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	p, err := u.look()
	if err != nil {
		return rest, full, err
	}
	rest = measure.Pair{Value: megabytes(p.RSS), Floor: floor}
	if err := u.api.Fill(ctx); err != nil {
		return rest, full, err
	}
	if _, err := u.api.Post(ctx, queued, bench.Job); err != nil {
		return rest, full, err
	}
	p, err = u.look()
	return rest, measure.Pair{Value: megabytes(p.RSS), Floor: floor}, err
}

// idleRSS is the memory of this program when it does nothing.
func idleRSS(exe string) (mb float64, err error) {
	cmd := exec.Command(exe, upRole, idleRole)
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, in.Close(), cmd.Wait()) }()
	if _, err := out.Read(make([]byte, 1)); err != nil { // it is there
		return 0, err
	}
	p, err := bench.Look(cmd.Process.Pid)
	return megabytes(p.RSS), err
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }
