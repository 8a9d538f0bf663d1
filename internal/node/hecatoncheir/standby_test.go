package hecatoncheir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// newWaitingRoom is a world whose node keeps standby VMs.
func newWaitingRoom(t *testing.T, atMost int, script func(n int, s tartarus.Spec) fakevm.Script) *world {
	t.Helper()
	a := newAlbum(t, "a fake VM, generation 1\n")
	return newWorld(t, options{snapshots: true, script: script, config: func(c *Config) {
		c.Snapshots, c.Standby = a, atMost
	}})
}

// started runs a command and returns how its VM started.
func (w *world) started() string {
	w.t.Helper()
	got := w.c.awaitEnd(w.t, w.assign(job{command: []string{"true"}}))
	if got.end.Exit.State() != sandbox.Succeeded {
		w.t.Errorf("exit %+v", got.end.Exit)
	}
	return got.end.Progress.Runtime.Start
}

// waiting returns the VMs that wait once they are n.
func (w *world) waiting(n int) []*standby {
	w.t.Helper()
	deadline := time.Now().Add(patient)
	for {
		w.a.pool.mu.Lock()
		var all []*standby
		for _, s := range w.a.pool.ready {
			all = append(all, s...)
		}
		w.a.pool.mu.Unlock()
		if len(all) == n {
			return all
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d VMs wait, not %d", len(all), n)
		}
		time.Sleep(time.Millisecond) // nobody tells of it but by what it does
	}
}

// noneWaits stops the agent, and looks for what it may have left.
func (w *world) noneWaits() {
	w.t.Helper()
	w.stop()
	w.nothingLeft()
	if left, err := os.ReadDir(w.a.standbysDir()); len(left) > 0 || err != nil {
		w.t.Errorf("left of standby VMs: %v (%v)", left, err)
	}
}

// TestStandby: the first run brings VMs to wait for the next ones, which start
// in them, each in one of its own, and as many wait again.
func TestStandby(t *testing.T) {
	w := newWaitingRoom(t, 2, nil)
	if got := w.started(); got != startRestored {
		t.Errorf("the first was started %s", got)
	}
	first := w.waiting(1)[0]
	if got := w.started(); got != startStandby {
		t.Errorf("the second was started %s", got)
	}
	for _, s := range w.waiting(2) {
		if s.id == first.id {
			t.Error("a VM waits again after it has served")
		}
	}
	w.noneWaits()
}

// TestStandbyServesOnce: the guest of a standby obeys its sandbox alone, and
// what it did before is not counted.
func TestStandbyServesOnce(t *testing.T) {
	w := newWaitingRoom(t, 1, nil)
	w.started()
	id := w.waiting(1)[0].id
	as := w.assign(job{command: []string{"echo", "mine"}, secrets: sandbox.Secrets{Files: []sandbox.File{{Path: "/a", Data: []byte("x")}}}})
	got := w.c.awaitEnd(t, as)
	if log := w.log(got.end); log != "stdout:mine\n" {
		t.Errorf("it says %q", log)
	}
	// Warmed, then the command.
	if n := w.executed.count(id); n != 2 {
		t.Errorf("the VM executed %d commands", n)
	}
	if u := got.end.Exit.Usage; u.CPUSeconds < 0 || u.DiskWrittenBytes < 0 {
		t.Errorf("usage %+v", u)
	}
	w.noneWaits()
}

// TestStandbyKilledFromOutside: whoever waits and ends is replaced, and no run
// meets it.
func TestStandbyKilledFromOutside(t *testing.T) {
	w := newWaitingRoom(t, 1, nil)
	w.started()
	dead := w.waiting(1)[0]
	dead.vm.(*fakevm.VM).Crash()
	for w.waiting(1)[0].id == dead.id {
		time.Sleep(time.Millisecond)
	}
	if got := w.started(); got != startStandby {
		t.Errorf("the next was started %s", got)
	}
	if n := w.executed.count(dead.id); n != 1 {
		t.Errorf("the dead one executed %d commands", n)
	}
	w.noneWaits()
}

// TestStandbyNotForAll: who needs another shape, or a network card, gets a VM
// of its own.
func TestStandbyNotForAll(t *testing.T) {
	w := newWaitingRoom(t, 1, nil)
	w.started()
	w.waiting(1)
	for name, change := range map[string]func(*sandbox.Resolved){
		"card": withGrants, "memory": func(r *sandbox.Resolved) { r.Resources.MemoryMiB = 256 },
	} {
		got := w.c.awaitEnd(t, w.assign(job{command: []string{"true"}, change: change}))
		if s := got.end.Progress.Runtime.Start; s == startStandby || got.end.Exit.State() != sandbox.Succeeded {
			t.Errorf("%s: started %s, exit %+v", name, s, got.end.Exit)
		}
	}
	w.noneWaits()
}

// TestStandbyFails: where none can be made, runs start as they would without.
func TestStandbyFails(t *testing.T) {
	for name, script := range map[string]fakevm.Script{
		"start": {StartErr: errors.New("no")},
		"setup": {SetupErr: "no"},
		"ends":  {NeverBoots: true, EndAfter: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			var w *world
			w = newWaitingRoom(t, 1, func(_ int, s tartarus.Spec) fakevm.Script {
				if w != nil && filepath.Dir(filepath.Dir(s.Dir)) == w.a.standbysDir() {
					return script
				}
				return fakevm.Script{}
			})
			for range 3 {
				w.started()
			}
			w.noneWaits()
		})
	}
}

// TestStandbyMemory: those that wait take a part of the node's memory at most.
func TestStandbyMemory(t *testing.T) {
	a := newAlbum(t, "a fake VM, generation 1\n")
	each := int64(128 + sandbox.VMOverheadMiB)
	w := newWorld(t, options{snapshots: true, config: func(c *Config) {
		c.Snapshots, c.Standby = a, 10
		c.Capacity.MemoryMiB = standbyShare * (2*each + each/2)
	}})
	for range 6 {
		w.started()
	}
	w.waiting(2)
	w.noneWaits()
	if w.driver.Most() > 6 {
		t.Errorf("%d VMs lived at once", w.driver.Most())
	}
}

// TestStandbyCrash: the next agent removes what waited and what served.
func TestStandbyCrash(t *testing.T) {
	w := newWaitingRoom(t, 1, nil)
	w.started()
	w.waiting(1)
	as := w.assign(job{command: []string{"sleep", "forever"}})
	w.c.awaitState(t, as, sandbox.Running)
	w.waiting(1)
	w.crash()
	got := w.c.awaitEnd(t, as)
	if got.end.Exit.Cause != sandbox.NodeLost || got.end.Progress.Runtime.Start != startStandby {
		t.Errorf("exit %+v of one that was started %q", got.end.Exit, got.end.Progress.Runtime.Start)
	}
	if left, err := os.ReadDir(w.a.standbysDir()); len(left) > 0 || err != nil {
		t.Errorf("left of standby VMs: %v (%v)", left, err)
	}
	w.noneWaits()
}
