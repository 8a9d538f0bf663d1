package faults_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/hostlock"
)

// together is how many cells are run at once: most of a cell is waiting.
const together = 8

// sampled is how many cells of steps are tried where not all are.
const sampled = 28

// TestCells deals each blow at each step.
func TestCells(t *testing.T) {
	t.Parallel()
	learn(t)
	for name := range baseline.passings {
		if _, ok := stepOf(regexp.MustCompile(`!$`).ReplaceAllString(name, "")); !ok {
			t.Errorf("step %q is passed, and is not in the table of faults", name)
		}
	}
	all := cellsOfSteps()
	chosen := choose(t, all, sampled)
	t.Logf("seed %d: %d of %d cells", *seed, len(chosen), len(all))
	runAll(t, chosen)
}

// baseline is what a run without a fault leaves, and does.
var baseline struct {
	left        []string
	descriptors []string
	passings    map[string]int // of each side of each step: "step" before, "step!" after
}

var learnt = sync.OnceValue(func() []string {
	return (&cell{row: "nothing", column: once, learns: true}).run()
})

// learn makes sure that the baseline is known.
func learn(t *testing.T) {
	t.Helper()
	if faults := learnt(); len(faults) > 0 {
		t.Fatalf("without a fault: %q", faults)
	}
}

// runAll runs cells, some at a time.
func runAll(t *testing.T, cells []*cell) {
	var wg sync.WaitGroup
	for _, c := range cells {
		c.slot = <-slots()
		wg.Go(func() {
			defer func() { slots() <- c.slot }()
			began := time.Now()
			faults := c.run()
			t.Logf("%s: %v", c.name(), time.Since(began).Round(time.Millisecond))
			for _, f := range faults {
				t.Errorf("%s: %s (again: -seed %d -cell '%s')", c.name(), f, *seed, regexp.QuoteMeta(c.name()))
			}
		})
	}
	wg.Wait()
}

// slots are the turns of all tests' cells.
var slots = sync.OnceValue(func() chan int {
	n := together
	if os.Getenv(labVar) != "" {
		n = 1 // it is slow, and its clock is all cells'
	}
	c := make(chan int, n)
	for i := range n {
		c <- i
	}
	return c
})

// noLocks fails when a lock of user IDs is left, once all cells have ended.
func noLocks() error {
	if locks, err := os.ReadDir(hostlock.Dir); err == nil && len(locks) > 0 && os.Geteuid() == 0 {
		return fmt.Errorf("locks of user IDs are left: %v", locks)
	}
	return nil
}

// cellsOfSteps are all cells of the table of steps.
func cellsOfSteps() []*cell {
	var out []*cell
	for _, s := range steps {
		for i, column := range blows {
			o := s.outcome(column)
			if o == none {
				continue
			}
			c := &cell{row: s.name, column: column, needs: s.needs, outcome: o, blow: blow{Step: s.name, Done: i%2 == 1}}
			r := c.dice()
			side := s.name
			if c.blow.Done {
				side += "!"
			}
			c.blow.Nth = 1
			if n := baseline.passings[side]; n > 3 && s.needs != aStandby {
				c.blow.Nth += r.IntN(min(n/3, 5))
			}
			if i >= 2 {
				c.blow.Errno = errnos[r.IntN(len(errnos))]
			}
			c.deadly = i < 2 || s.needs == aCrash
			out = append(out, c)
		}
	}
	return out
}

// choose takes a sample, or all.
func choose(t *testing.T, all []*cell, n int) []*cell {
	if *full {
		n = len(all)
	}
	return sample(t, all, n)
}

// sample takes n cells, by the seed, or what -cell names.
func sample(t *testing.T, all []*cell, n int) []*cell {
	if *only != "" {
		form, err := regexp.Compile(*only)
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(all, func(c *cell) bool { return !form.MatchString(c.name()) })
	}
	if len(all) <= n {
		return all
	}
	r := rand.New(rand.NewPCG(*seed, 0))
	r.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	return all[:n]
}
