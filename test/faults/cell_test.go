package faults_test

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cell is one try: what befalls a server, and what is true afterwards.
type cell struct {
	row, column string
	needs       need
	blow        blow
	outcome     stage    // of the sandbox that the blow falls on
	deadly      bool     // a server dies in it
	also        []string // further causes that are true of any sandbox in it
	logless     bool     // logs may be lost in it
	real        bool
	learns      bool // it has no fault: what is there afterwards is the baseline

	// during is what happens to the server under load instead of a blow;
	// between, after it has ended and before the next. nil: nothing.
	during  func(c *cell, s *server) error
	between func(c *cell) error

	holds  bool // what is to be killed is not yet
	slot   int  // no other cell has it at the same time
	random *rand.Rand
	dir    string
	state  string
	jobs   []*job
	faults []string
}

func (c *cell) name() string { return c.row + ", " + c.column }

func (c *cell) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

func (c *cell) must(err error) {
	if err != nil {
		c.fault("%v", err)
	}
}

// patience is for what must happen at all: fakes take seconds, real VMs that
// boot on a busy machine minutes.
func (c *cell) patience() time.Duration {
	if c.real {
		return 5 * time.Minute
	}
	return 90 * time.Second
}

// firstUID is the first of a range that nobody else has: the cells' VMMs run
// with IDs out of it.
const firstUID = 1_960_000

// plan is that of a server without a blow.
func (c *cell) plan() plan {
	return plan{
		State: c.state, Policy: filepath.Join(c.dir, "policy.yaml"), Orders: c.ordersFile(), Passed: c.passedFile(),
		Real: c.real, Refuse: c.needs == aRefusal, UIDs: fmt.Sprintf("%d-%d", firstUID+1000*c.slot, firstUID+1000*c.slot+999),
	}
}

func (c *cell) ordersFile() string { return filepath.Join(c.dir, "orders") }
func (c *cell) passedFile() string { return filepath.Join(c.dir, "passed") }

// run runs the cell and enters its end into the table.
func (c *cell) run() []string {
	c.random = c.dice()
	c.jobs = load(c.random, c.real)
	if err := c.open(); err != nil {
		c.fault("%v", err)
	} else {
		c.strike()
		c.settle()
	}
	c.must(c.close())
	table.enter(c.row, c.column, c.faults)
	return c.faults
}

// dice are the cell's own, so that it can be run again alone.
func (c *cell) dice() *rand.Rand {
	h := fnv.New64()
	h.Write([]byte(c.name()))
	return rand.New(rand.NewPCG(*seed, h.Sum64()))
}

// strike has the blow fall, or what happens instead.
func (c *cell) strike() {
	if c.needs == aCrash {
		c.crash()
	}
	if c.blow.Step == "" && c.during == nil && !c.learns {
		return // what happens is between
	}
	p := c.plan()
	p.Blow = c.blow
	s, err := start(p)
	if s == nil {
		c.fault("%v", err)
		return
	}
	if err == nil && c.during != nil {
		c.must(c.during(c, s))
		if !s.isGone() {
			c.must(c.drive(s))
			c.must(s.stop())
		}
		return
	}
	if err == nil {
		c.misuse(s)
		c.must(c.drive(s))
		if c.needs == aStandby {
			c.must(c.awaitStandby(s))
		}
		if !s.isGone() {
			err = s.stop()
		}
	}
	_, fell, perr := c.passed()
	c.must(perr)
	switch {
	case !fell && c.blow.Step != "":
		c.fault("the step was never passed for the %d. time: %v; the log: %s", c.blow.Nth, err, s.log.last())
	case fell && c.blow.Errno == 0 && !s.died():
		c.fault("the server was to die at the step, and ended with %v", s.err)
	case c.blow.Errno != 0 && err != nil && s.url != "":
		c.fault("after a step that failed: %v", err)
	case c.blow.Errno != 0 && err != nil && !strings.Contains(s.log.last(), c.blow.Step+" failed") && !strings.Contains(s.log.last(), c.blow.Errno.Error()):
		c.fault("a step failed at the start, and what is said is %q", s.log.last())
	}
}

// crash kills a server that has sandboxes on its node.
func (c *cell) crash() {
	s, err := start(c.plan())
	if err == nil {
		err = c.untilRunning(s)
	}
	c.must(err)
	if s != nil {
		s.kill()
	}
}

// misuse asks for what the audit and the tokens' steps are for.
func (c *cell) misuse(s *server) {
	bad := *s
	bad.token = "tart_nobody"
	_, _, _ = bad.call("GET", "/sandbox", "") // whatever is answered
	_, b, err := s.call("POST", "/tokens", `{"scopes": ["read"]}`)
	if err != nil {
		return
	}
	var made struct {
		Info struct{ ID string }
	}
	if jsonErr := decode(b, &made); jsonErr == nil && made.Info.ID != "" {
		_, _, _ = s.call("DELETE", "/tokens/"+made.Info.ID, "")
	}
}

// tick is how often records are looked at.
const tick = 20 * time.Millisecond

// drive asks for all jobs and follows them until they have ended or the server
// has.
func (c *cell) drive(s *server) error {
	for end := time.Now().Add(c.patience()); ; time.Sleep(tick) {
		if err := c.step(s); err != nil {
			return err
		}
		if s.isGone() || !slices.ContainsFunc(c.jobs, (*job).open) {
			return nil
		}
		if time.Now().After(end) {
			var open []string
			for _, j := range c.jobs {
				if j.open() {
					open = append(open, fmt.Sprintf("%s (%s, %s)", j.name, j.id, j.rec.State))
				}
			}
			return fmt.Errorf("not ended after %v: %s", c.patience(), strings.Join(open, ", "))
		}
	}
}

// open says that something is still to happen to j.
func (j *job) open() bool {
	if j.refused {
		return !j.settled
	}
	return !j.rec.ended()
}

// step asks once for what is to be asked.
func (c *cell) step(s *server) error {
	for _, j := range c.jobs {
		switch {
		case !j.open():
		case j.id == "":
			if err := s.post(j); err != nil {
				return err
			}
			if j.recall && j.id != "" {
				s.end(j)
			}
		default:
			if err := s.look(j); err != nil {
				return err
			}
			if j.kill && !j.answered && !c.holds && j.rec.State == "running" || j.recall && !j.answered {
				s.end(j)
			}
		}
		if s.isGone() {
			return nil
		}
	}
	return nil
}

// settle starts a server on what the one before left, and checks that all that
// must hold does.
func (c *cell) settle() {
	if c.between != nil {
		c.must(c.between(c))
	}
	for _, j := range c.jobs {
		j.answered = false // what was answered may have died with who answered
	}
	s, err := start(c.plan())
	if err != nil {
		c.fault("afterwards: %v", err)
		return
	}
	c.must(c.drive(s))
	c.judge(s)
	c.must(c.noDescriptors(s))
	c.must(s.stop())
	c.must(c.audited())
	c.must(c.nothingLeft())
	if c.learns {
		c.must(c.count())
	}
}

// judge checks each sandbox: one, one end, one order at most, a true cause.
func (c *cell) judge(s *server) {
	struck, _, err := c.passed()
	c.must(err)
	orders, err := c.orders()
	c.must(err)
	want := 0
	for _, j := range c.jobs {
		if j.refused || j.id == "" {
			continue
		}
		want++
		cause := j.rec.Exit.Cause
		if truths := c.truths(j, struck); !slices.Contains(truths, cause) {
			c.fault("%s (%s) ended as %s (%s), and true is only %v", j.name, j.id, cause, j.rec.Exit.Message, truths)
		}
		c.judgeOrders(j, orders[j.id])
		states, err := s.states(j.id)
		c.must(err)
		ends := 0
		for _, st := range states {
			if st == "succeeded" || st == "failed" {
				ends++
			}
		}
		if ends != 1 || !slices.Contains(states, "starting") && cause == "node_lost" {
			c.fault("%s (%s) ended as %s and went through %v", j.name, j.id, cause, states)
		}
		if cause == "exited" && j.log != "" && !c.logless {
			if text, err := s.output(j.id); err != nil || text != j.log {
				c.fault("the log of %s (%s) is %q: %v", j.name, j.id, text, err)
			}
		}
	}
	if n, err := s.count(); err != nil || n != want {
		c.fault("there are %d sandboxes, and %d were asked for: %v", n, want, err)
	}
}

// judgeOrders checks how often the order to execute j left.
func (c *cell) judgeOrders(j *job, n int) {
	least := 0
	switch j.rec.Exit.Cause {
	case "exited", "max_duration", "guest_lost":
		least = 1
	case "no_capacity", "queue_timeout":
		if n > 0 {
			c.fault("%s (%s) ended as %s, and had been ordered to execute", j.name, j.id, j.rec.Exit.Cause)
		}
	}
	if n > 1 || n < least {
		c.fault("%s (%s), which ended as %s, was ordered to execute %d times", j.name, j.id, j.rec.Exit.Cause, n)
	}
}

// orders counts the orders to execute, by sandbox.
func (c *cell) orders() (map[string]int, error) {
	b, err := os.ReadFile(c.ordersFile())
	count := map[string]int{}
	for id := range strings.FieldsSeq(string(b)) {
		count[id]++
	}
	return count, err
}

// awaitStandby waits until a VM waits, or the blow fell: what comes after the
// sandboxes have ended is nobody's hurry.
func (c *cell) awaitStandby(s *server) error {
	for end := time.Now().Add(c.patience()); !s.isGone(); time.Sleep(tick) {
		lines, err := passings(c.passedFile())
		if err != nil {
			return err
		}
		if slices.ContainsFunc(lines, func(l passing) bool { return l.Struck || l.Step == "standby make" && l.Done }) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("no VM waits after %v", c.patience())
		}
	}
	return nil
}

// passed says whether the blow fell, and on which sandbox.
func (c *cell) passed() (struck string, fell bool, err error) {
	lines, err := passings(c.passedFile())
	for _, l := range lines {
		if l.Struck {
			return l.Of, true, err
		}
	}
	return "", false, err
}

// count learns how often each step is passed.
func (c *cell) count() error {
	baseline.passings = map[string]int{}
	lines, err := passings(c.passedFile())
	for _, l := range lines {
		if l.Done {
			l.Step += "!"
		}
		baseline.passings[l.Step]++
	}
	return err
}

func passings(file string) ([]passing, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []passing
	for line := range strings.Lines(string(b)) {
		var p passing
		if err := decode([]byte(line), &p); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// errnos are what steps fail with.
var errnos = []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EMFILE, syscall.EROFS, syscall.EAGAIN, syscall.ENOMEM}
