package faults_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestKillsUnderLoad kills a server again and again, at random moments, while
// callers ask for sandboxes and end some. What they were promised holds after
// the last kill: none lost, none doubled.
func TestKillsUnderLoad(t *testing.T) {
	t.Parallel()
	learn(t)
	c := &cell{row: fmt.Sprintf("%d kills under load", *kills), column: once, deadly: true}
	c.random = c.dice()
	defer func() {
		c.must(c.close())
		table.enter(c.row, c.column, c.faults)
		for _, f := range c.faults {
			t.Errorf("%s (again: -seed %d)", f, *seed)
		}
	}()
	if c.must(c.open()); len(c.faults) > 0 {
		return
	}
	for n := range *kills {
		s, err := start(c.plan())
		if err != nil {
			c.fault("%v", err)
			return
		}
		life := time.Duration(50+c.random.IntN(700)) * time.Millisecond
		if n%4 == 3 { // long enough for what is done about an earlier server's sandboxes
			life += 2 * time.Second
		}
		c.must(c.loadUntil(s, life))
		if s.isGone() {
			c.fault("the server ended by itself: %s", s.log.last())
		}
		s.kill()
		if len(c.faults) > 0 {
			return
		}
	}
	c.settle()
	s := c.sum()
	t.Logf("seed %d: %d kills, %d sandboxes admitted, %d ordered to execute, %d of them killed with their server; lost: %d, executed twice: %d",
		*seed, *kills, len(c.jobs), s.executed, s.cut, s.lost, s.doubled)
	if s.cut < *kills/10 {
		t.Errorf("hardly a kill met a sandbox that ran: this shows nothing")
	}
}

// loadUntil lets callers ask until the moment; who got no answer asks again,
// perhaps the next server.
func (c *cell) loadUntil(s *server, d time.Duration) error {
	for i := range c.jobs {
		c.jobs[i].answered = false
	}
	const callers = 3
	moment := time.Now().Add(d)
	var wg sync.WaitGroup
	errs := make([]error, callers)
	for n := range callers {
		r := rand.New(rand.NewPCG(c.random.Uint64(), 0))
		own := make([]*job, 0, 8) // of the jobs that are asked for now
		wg.Go(func() {
			for time.Now().Before(moment) && errs[n] == nil {
				if len(own) == 0 || !slices.ContainsFunc(own, func(j *job) bool { return j.id == "" && !j.settled }) {
					own = append(own, c.more(r))
				}
				errs[n] = c.ask(s, own)
				time.Sleep(2 * tick) // a crowd, and not a flood
			}
		})
	}
	wg.Wait()
	return firstOf(errs)
}

func firstOf(errs []error) error {
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return nil
	}
	return errs[i]
}

var moreMu sync.Mutex

// more is one more job, of any kind.
func (c *cell) more(r *rand.Rand) *job {
	kinds := load(r, c.real)
	j := kinds[0]
	for j.refused { // which are not counted
		j = kinds[1]
	}
	moreMu.Lock()
	defer moreMu.Unlock()
	j.key = fmt.Sprintf("key-%d", len(c.jobs))
	c.jobs = append(c.jobs, j)
	return j
}

// ask asks for what one caller wants, and ends what runs and is to be ended.
func (c *cell) ask(s *server, own []*job) error {
	for _, j := range own {
		switch {
		case j.id == "" && !j.settled:
			if err := s.post(j); err != nil {
				return err
			}
		case (j.kill || j.recall) && !j.answered:
			s.end(j)
		}
	}
	return nil
}

// sums are of all sandboxes that were admitted.
type sums struct{ executed, cut, lost, doubled int }

func (c *cell) sum() (s sums) {
	orders, err := c.orders()
	c.must(err)
	for _, j := range c.jobs {
		if !j.rec.ended() {
			s.lost++
		}
		if orders[j.id] > 0 {
			s.executed++
			if j.rec.Exit.Cause == "node_lost" {
				s.cut++
			}
		}
		if orders[j.id] > 1 {
			s.doubled++
		}
	}
	return s
}
