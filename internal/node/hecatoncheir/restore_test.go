package hecatoncheir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// album holds one snapshot for all shapes.
type album struct {
	dir string

	mu     sync.Mutex
	forgot int // guarded by mu
}

// newAlbum writes the state of a fake VM, or what else is said.
func newAlbum(t *testing.T, state string) *album {
	t.Helper()
	a := &album{dir: t.TempDir()}
	memory := filepath.Join(a.dir, "memory")
	if err := errors.Join(os.WriteFile(memory, nil, 0o600), os.Truncate(memory, 128<<20),
		os.WriteFile(filepath.Join(a.dir, "state"), []byte(state), 0o600)); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *album) Shape(_, _ sandbox.Digest, r sandbox.Resources) nyx.Shape {
	return nyx.Shape{MemoryMiB: r.MemoryMiB}
}

func (a *album) Open(context.Context, nyx.Shape) *nyx.Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.forgot > 0 {
		return nil
	}
	memory, err := os.Open(filepath.Join(a.dir, "memory"))
	state, serr := os.Open(filepath.Join(a.dir, "state"))
	if errors.Join(err, serr) != nil {
		return nil
	}
	return &nyx.Snapshot{Memory: memory, State: state}
}

func (a *album) Forget(nyx.Shape) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgot++
}

// TestGoesOn: a VM goes on from the snapshot of its shape; one that cannot
// boots, and the snapshot is used no more. The command runs once either way.
func TestGoesOn(t *testing.T) {
	const good = "a fake VM, generation 1\n"
	restored := func(s fakevm.Script) func(int, tartarus.Spec) fakevm.Script {
		return func(_ int, spec tartarus.Spec) fakevm.Script {
			if spec.Restore != nil {
				return s
			}
			return fakevm.Script{}
		}
	}
	for _, c := range []struct {
		name   string
		state  string
		script fakevm.Script // of the restored VM
		card   bool
		start  string
		forgot int
	}{
		{name: "good", state: good, start: startRestored},
		{name: "damaged", state: "noise", start: startCold, forgot: 1},
		{name: "refused", state: good, script: fakevm.Script{StartErr: errors.New("no")}, start: startCold, forgot: 1},
		{name: "ends at once", state: good, script: fakevm.Script{NeverBoots: true, EndAfter: time.Millisecond}, start: startCold, forgot: 1},
		{name: "with a card", state: good, card: true, start: startCold},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAlbum(t, c.state)
			w := newWorld(t, options{snapshots: true, script: restored(c.script), config: func(cfg *Config) { cfg.Snapshots = a }})
			for range 2 {
				j := job{command: []string{"true"}}
				if c.card {
					j.change = withGrants
				}
				as := w.assign(j)
				got := w.c.awaitEnd(t, as)
				if got.end.Exit.State() != sandbox.Succeeded || w.executed.count(as.Sandbox) != 1 {
					t.Errorf("exit %+v, executed %d times", got.end.Exit, w.executed.count(as.Sandbox))
				}
				if s := got.end.Progress.Runtime.Start; s != c.start {
					t.Errorf("it is told as started %q", s)
				}
			}
			if a.forgot != c.forgot {
				t.Errorf("the snapshot was forgotten %d times", a.forgot)
			}
			w.nothingLeft()
		})
	}
}

// TestGoesOnKilled: a cause to die while a VM is restored is not taken for a
// damaged snapshot.
func TestGoesOnKilled(t *testing.T) {
	a := newAlbum(t, "a fake VM, generation 1\n")
	born := make(chan struct{})
	w := newWorld(t, options{snapshots: true, config: func(cfg *Config) { cfg.Snapshots = a }, script: func(int, tartarus.Spec) fakevm.Script {
		close(born)
		return fakevm.Script{NeverBoots: true}
	}})
	req, as := w.request(job{command: []string{"true"}})
	if _, err := w.a.Assign(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	<-born
	if err := w.kill(req, as, 0); err != nil {
		t.Fatal(err)
	}
	if got := w.c.awaitEnd(t, as); got.end.Exit.Cause != sandbox.Killed {
		t.Errorf("exit %+v", got.end.Exit)
	}
	if a.forgot != 0 || w.driver.Started() != 1 {
		t.Errorf("the snapshot was forgotten %d times, %d VMs were started", a.forgot, w.driver.Started())
	}
	w.nothingLeft()
}
