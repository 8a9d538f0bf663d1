package hecatoncheir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// TestARestartAtEachPhase starts an agent on what one that was killed left.
func TestARestartAtEachPhase(t *testing.T) {
	at := time.Now().UTC().Add(-time.Minute).Round(time.Microsecond)
	code := 0
	known := sandbox.End{
		At:       at.Add(2 * time.Second),
		Exit:     sandbox.ExitRecord{Cause: sandbox.Exited, Source: sandbox.FromGuest, Code: &code},
		Progress: sandbox.Progress{State: sandbox.Running, At: at},
	}
	for _, c := range []struct {
		name  string
		entry func(*journal.Entry)
		log   bool
		cause sandbox.Cause // "" for no end
		ran   bool
	}{
		{"assigned", func(*journal.Entry) {}, true, "", false},
		{"booting", func(e *journal.Entry) { e.VM = tartarus.Handle{Driver: fakevm.Name, Pid: 1 << 30} }, true, "", false},
		{"accepted", func(e *journal.Entry) { e.AcceptedAt = at }, true, sandbox.NodeLost, false},
		{"started", func(e *journal.Entry) { e.AcceptedAt, e.StartedAt = at, at }, true, sandbox.NodeLost, true},
		{"started, its log lost", func(e *journal.Entry) { e.AcceptedAt, e.StartedAt = at, at }, false, sandbox.NodeLost, true},
		{"ended", func(e *journal.Entry) { e.AcceptedAt, e.StartedAt, e.End = at, at, &known }, false, sandbox.Exited, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, options{})
			w.stop()
			as := sandbox.Assignment{Sandbox: "sb-01jdzzzzzzzzzzzzzzzzzzzzzz", Attempt: 1, Node: nodeID, Epoch: 1}
			e := journal.Entry{Assignment: as, Expires: time.Now().Add(time.Hour), AssignedAt: at}
			c.entry(&e)
			w.leave(e, c.log)
			w.start(nil)
			if c.cause != "" {
				got := w.c.awaitEnd(t, as)
				if got.end.Exit.Cause != c.cause || got.started.Equal(at) != c.ran {
					t.Errorf("%+v, started %v", got.end.Exit, got.started)
				}
				if c.log && c.ran {
					if log := w.log(got.end); log != "stdout:so far" {
						t.Errorf("log %q", log)
					}
				}
			}
			w.awaitEmptyJournal()
			w.nothingLeft()
			if got := w.c.told[as]; c.cause == "" && got != nil && got.end != nil {
				t.Errorf("an end of what never ran: %+v", got.end)
			}
		})
	}
}

// leave leaves what a killed agent would.
func (w *world) leave(e journal.Entry, withLog bool) {
	w.t.Helper()
	j, _, err := journal.Open(filepath.Join(w.dir, "journal"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	dir := filepath.Join(w.dir, "sandboxes", string(e.Assignment.Sandbox))
	if err := errors.Join(j.Assign(e), j.Close(), os.MkdirAll(filepath.Join(dir, "vm"), 0o700)); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "scratch"), []byte("data"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if !withLog {
		return
	}
	l, err := hermes.Create(filepath.Join(dir, "log"), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := l.Append(hermes.Stdout, time.Now(), []byte("so far")); err != nil {
		w.t.Fatal(err)
	}
	b, err := os.ReadFile(l.Path()) // without an end
	if err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(l.Finish(), os.WriteFile(l.Path(), append(b, 1, 2, 3), 0o600)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) awaitEmptyJournal() {
	w.t.Helper()
	deadline := time.Now().Add(patient)
	for len(w.a.journal.Entries()) > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
}

// TestCrashes kills agents with sandboxes in all phases.
func TestCrashes(t *testing.T) {
	w := newWorld(t, options{script: func(n int, _ tartarus.Spec) fakevm.Script {
		return fakevm.Script{BootDelay: time.Duration(n%3) * 20 * time.Millisecond}
	}})
	var all []sandbox.Assignment
	for i := range 30 {
		all = append(all, w.assign(job{command: [][]string{{"sleep", "forever"}, {"true"}, {"sleep", "0.02"}}[i%3]}))
		if i%10 == 9 {
			w.c.await(t, all[i-9], "not accepted", func(s told) bool { return s.accepted })
			w.crash()
			w.awaitEmptyJournal()
			w.nothingLeft()
		}
	}
	for _, as := range all {
		w.c.mu.Lock()
		got := *w.c.of(as)
		w.c.mu.Unlock()
		if n := w.executed.count(as.Sandbox); n > 1 {
			t.Errorf("%s was executed %d times", as.Sandbox, n)
		}
		if len(got.states) > 0 && got.end == nil {
			t.Errorf("%s was told to run, and no end of it", as.Sandbox)
		}
	}
}

func TestFoldersThatNobodyKnowsAreRemoved(t *testing.T) {
	w := newWorld(t, options{})
	w.stop()
	dir := filepath.Join(w.dir, "sandboxes", "sb-01jdzzzzzzzzzzzzzzzzzzzzzz")
	if err := os.MkdirAll(filepath.Join(dir, "vm"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.start(nil)
	w.nothingLeft()
}

func TestAnAgentThatCannotJoinLeavesNothing(t *testing.T) {
	w := newWorld(t, options{})
	w.stop()
	w.c.setDumb(true)
	a, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := a.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
