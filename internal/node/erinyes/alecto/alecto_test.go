package alecto

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestJudge(t *testing.T) {
	t0 := time.Now()
	terms := Terms{StartTimeout: time.Minute, MaxDuration: time.Second}
	for _, c := range []struct {
		name  string
		terms Terms
		times Times
		after time.Duration // since t0
		cause sandbox.Cause
		left  time.Duration
	}{
		{"just placed", terms, Times{Placed: t0}, 0, "", time.Minute},
		{"a moment before", terms, Times{Placed: t0}, time.Minute - 1, "", 1},
		{"not started in time", terms, Times{Placed: t0}, time.Minute, sandbox.StartTimeout, 0},
		{"started: the start no longer counts", terms, Times{Placed: t0.Add(-time.Hour), Started: t0}, 0, "", time.Second},
		{"ran to the end of its time", terms, Times{Placed: t0, Started: t0.Add(time.Second)}, 2 * time.Second, sandbox.MaxDuration, 0},
		{"no bounds", Terms{}, Times{Placed: t0, Started: t0}, 1e9 * time.Second, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, left := Judge(c.terms, c.times, t0.Add(c.after))
			if v.Cause != c.cause || left != c.left {
				t.Errorf("got %+v, %v; want %q, %v", v, left, c.cause, c.left)
			}
			if v.Guilty() && v.Message == "" {
				t.Error("a verdict without a message")
			}
		})
	}
}

// TestWaitingIsEnough: whoever waits for as long as Judge says gets a verdict,
// and not a moment before.
func TestWaitingIsEnough(t *testing.T) {
	t0 := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		d := func(name string) time.Duration { return time.Duration(rapid.Int64Range(1, 1e15).Draw(t, name)) }
		terms := Terms{StartTimeout: d("start timeout"), MaxDuration: d("max duration")}
		times := Times{Placed: t0}
		if rapid.Bool().Draw(t, "started") {
			times.Started = t0.Add(d("start"))
		}
		now := t0.Add(d("now"))
		v, left := Judge(terms, times, now)
		if v.Guilty() {
			return
		}
		if v, _ := Judge(terms, times, now.Add(left-1)); v.Guilty() {
			t.Fatalf("too early: %+v", v)
		}
		if v, _ := Judge(terms, times, now.Add(left)); !v.Guilty() {
			t.Fatal("too late")
		}
	})
}

func TestWait(t *testing.T) {
	terms := Terms{StartTimeout: 30 * time.Second, MaxDuration: 10 * time.Minute}
	t.Run("never started", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			v := New(terms, begin).Wait(t.Context())
			if v.Cause != sandbox.StartTimeout || time.Since(begin) != 30*time.Second {
				t.Errorf("%+v after %v", v, time.Since(begin))
			}
		})
	})
	t.Run("started", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			c := New(terms, begin)
			time.AfterFunc(20*time.Second, func() {
				c.Started(time.Now())
				c.Started(time.Now().Add(time.Hour)) // does not count
			})
			v := c.Wait(t.Context())
			if v.Cause != sandbox.MaxDuration || time.Since(begin) != 10*time.Minute+20*time.Second {
				t.Errorf("%+v after %v", v, time.Since(begin))
			}
		})
	})
	t.Run("ended before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if v := New(terms, time.Now()).Wait(ctx); v.Guilty() {
				t.Errorf("%+v", v)
			}
		})
	})
}
