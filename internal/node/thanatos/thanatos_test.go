package thanatos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// command is a command that ends on some signals, and writes down what
// happened to it and when.
type command struct {
	obeys  map[int]time.Duration // signal → how long it takes to end on it
	deaf   bool                  // the guest does not answer
	begin  time.Time
	ended  chan struct{}
	killed int // of the VM, calls
	fail   int // how many calls fail

	mu  sync.Mutex
	log []string
}

func newCommand(obeys map[int]time.Duration) *command {
	return &command{obeys: obeys, begin: time.Now(), ended: make(chan struct{})}
}

func (c *command) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, fmt.Sprintf("%s@%v", what, time.Since(c.begin)))
}

func (c *command) body() Body {
	return Body{
		Signal: func(ctx context.Context, sig int) error {
			if c.deaf {
				<-ctx.Done()
				return ctx.Err()
			}
			c.note(fmt.Sprint("sig", sig))
			if after, ok := c.obeys[sig]; ok {
				time.AfterFunc(after, func() { close(c.ended) })
			}
			return nil
		},
		Ended: c.ended,
		Last:  func(context.Context) { c.note("last") },
		Kill: func(context.Context) error {
			c.note("cut")
			c.killed++
			if c.killed <= c.fail {
				return errors.New("still there")
			}
			return nil
		},
	}
}

func TestAskTellCut(t *testing.T) {
	for _, c := range []struct {
		name  string
		obeys map[int]time.Duration
		deaf  bool
		grace time.Duration
		want  string
	}{
		{"ends when asked", map[int]time.Duration{15: time.Second}, false, 5 * time.Second, "sig15@0s last@1s cut@1s"},
		{"ends when told", map[int]time.Duration{9: 0}, false, 5 * time.Second, "sig15@0s sig9@5s last@5s cut@5s"},
		{"never ends", nil, false, 5 * time.Second, "sig15@0s sig9@5s last@7s cut@7s"},
		{"no grace", map[int]time.Duration{9: time.Second}, false, 0, "sig9@0s last@1s cut@1s"},
		{"a guest that is deaf", nil, true, 5 * time.Second, "last@4s cut@4s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cmd := newCommand(c.obeys)
				cmd.deaf = c.deaf
				d := New(Config{})
				d.Take(Order{Cause: sandbox.Killed, Grace: c.grace})
				if err := d.Carry(t.Context(), cmd.body()); err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(cmd.log, " "); got != c.want {
					t.Errorf("got %s\nwant %s", got, c.want)
				}
			})
		})
	}
}

func TestTheFirstCauseStays(t *testing.T) {
	d := New(Config{})
	if _, _, ok := d.First(); ok || closed(d.Taken()) {
		t.Fatal("a cause before there was one")
	}
	causes := sandbox.Causes()
	var wg sync.WaitGroup
	firsts := make(chan sandbox.Cause, len(causes))
	for _, c := range causes {
		wg.Go(func() {
			if d.Take(Order{Cause: c.Cause, Grace: time.Second}) {
				firsts <- c.Cause
			}
		})
	}
	wg.Wait()
	close(firsts)
	o, _, ok := d.First()
	if first := <-firsts; !ok || o.Cause != first || !closed(d.Taken()) {
		t.Errorf("the first was %q, kept is %q", first, o.Cause)
	}
	if more, ok := <-firsts; ok {
		t.Errorf("%q was the first too", more)
	}
}

func TestALaterCauseOnlyShortensTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := newCommand(map[int]time.Duration{9: 0})
		d := New(Config{})
		d.Take(Order{Cause: sandbox.Killed, Grace: time.Minute})
		time.AfterFunc(time.Second, func() { d.Take(Order{Cause: sandbox.MaxDuration, Grace: time.Hour}) })
		time.AfterFunc(3*time.Second, func() { d.Take(Order{Cause: sandbox.NodeLost}) })
		if err := d.Carry(t.Context(), cmd.body()); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(cmd.log, " "), "sig15@0s sig9@3s last@3s cut@3s"; got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
		if o, _, _ := d.First(); o.Cause != sandbox.Killed {
			t.Errorf("the cause became %q", o.Cause)
		}
	})
}

func TestTwoCarriesCutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := newCommand(map[int]time.Duration{15: 2 * time.Second})
		d := New(Config{})
		d.Take(Order{Cause: sandbox.Killed, Grace: 5 * time.Second})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := d.Carry(t.Context(), cmd.body()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got, want := strings.Join(cmd.log, " "), "sig15@0s last@2s cut@2s"; got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	})
}

func TestAFailedCutIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := newCommand(nil)
		cmd.fail = 1
		close(cmd.ended)
		d := New(Config{})
		d.Take(Order{Cause: sandbox.Exited})
		if err := d.Carry(t.Context(), cmd.body()); err == nil {
			t.Fatal("a VM that is still there is no error")
		}
		if err := d.Carry(t.Context(), cmd.body()); err != nil || cmd.killed != 2 {
			t.Errorf("%v after %d cuts", err, cmd.killed)
		}
	})
}

func TestTheEndOfTheContextSkipsToTheCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := newCommand(nil)
		d := New(Config{})
		d.Take(Order{Cause: sandbox.Killed, Grace: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Carry(ctx, cmd.body()); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(cmd.log, " "), "sig15@0s last@1s cut@1s"; got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	})
}

func TestOfNothingNothingIsCut(t *testing.T) {
	d := New(Config{})
	d.Take(Order{Cause: sandbox.StartFailed})
	if err := d.Carry(t.Context(), Body{}); err != nil {
		t.Error(err)
	}
}
