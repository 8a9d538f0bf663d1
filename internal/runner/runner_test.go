package runner_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-vm/tartarus/internal/runner"
)

// diary notes what happened, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, s)
}

func (d *diary) service(name string, startErr error) runner.Service {
	return runner.Service{
		Name:  name,
		Start: func(context.Context) error { d.note("start " + name); return startErr },
		Run:   func(ctx context.Context) error { <-ctx.Done(); d.note("end " + name); return nil },
		Stop:  func(context.Context) error { d.note("stop " + name); return nil },
	}
}

func TestStartsInOrderStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithCancel(t.Context())
		if err := runner.Run(ctx, func() { d.note("ready"); cancel() }, d.service("a", nil), d.service("b", nil)); err != nil {
			t.Fatal(err)
		}
		pos := func(s string) int { return slices.Index(d.lines, s) }
		want := []string{"start a", "start b", "ready", "stop b", "stop a"}
		for i, s := range want {
			if pos(s) < 0 || i > 0 && pos(s) < pos(want[i-1]) {
				t.Errorf("%q is missing or too early in %q", s, d.lines)
			}
		}
		if pos("end b") > pos("stop a") {
			t.Errorf("a stopped before b had ended: %q", d.lines)
		}
	})
}

func TestStartFailureStopsWhatIsUp(t *testing.T) {
	var d diary
	boom := errors.New("boom")
	err := runner.Run(t.Context(), func() { t.Error("ready") }, d.service("a", nil), d.service("b", boom), d.service("c", nil))
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "starting b") {
		t.Errorf("got %v", err)
	}
	if slices.Contains(d.lines, "start c") || slices.Contains(d.lines, "stop b") || !slices.Contains(d.lines, "stop a") {
		t.Errorf("got %q", d.lines)
	}
}

func TestOneFailureEndsAll(t *testing.T) {
	var d diary
	boom := errors.New("boom")
	bad := runner.Service{Name: "bad", Run: func(context.Context) error { return boom }}
	err := runner.Run(t.Context(), nil, d.service("a", nil), bad)
	if !errors.Is(err, boom) || !slices.Contains(d.lines, "stop a") {
		t.Errorf("got %v, %q", err, d.lines)
	}
}

func TestAServiceThatHangsIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		stuck := runner.Service{Name: "stuck", StopTimeout: time.Second, Run: func(context.Context) error { <-release; return nil }}
		ctx, cancel := context.WithCancel(t.Context())
		err := runner.Run(ctx, cancel, stuck)
		if err == nil || !strings.Contains(err.Error(), "stopping stuck: still busy") {
			t.Errorf("got %v", err)
		}
		close(release)
	})
}
