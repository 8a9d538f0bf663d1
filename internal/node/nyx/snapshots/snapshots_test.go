package snapshots_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/snapshots"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// images are a store whose VMs are made of files that nobody reads.
type images struct {
	*nyx.Store
	dir string
}

func (i images) RootDisk(context.Context, sandbox.Digest) (string, error) { return i.file("root") }

func (i images) Bundle(_ context.Context, d sandbox.Digest) (nyx.Bundle, error) {
	kernel, err := i.file("kernel")
	initrd, ierr := i.file("initrd")
	return nyx.Bundle{Digest: d, Kernel: kernel, Initrd: initrd}, errors.Join(err, ierr)
}

func (i images) file(name string) (string, error) {
	path := filepath.Join(i.dir, name)
	return path, os.WriteFile(path, nil, 0o600)
}

type scratches struct{}

func (scratches) Create(_ context.Context, path string, mib int64) error {
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, mib<<20))
}

func (scratches) Wipe(_ context.Context, path string) error { return os.Remove(path) }

type world struct {
	dir    string // of the maker
	store  *nyx.Store
	driver *fakevm.Driver
	maker  *snapshots.Maker
}

func newWorld(t *testing.T, script func(n int, s tartarus.Spec) fakevm.Script) *world {
	t.Helper()
	dir := t.TempDir()
	blobs, err := dirblobs.Open(dirblobs.Config{Dir: filepath.Join(dir, "blobs")})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: filepath.Join(dir, "saves"), driver: fakevm.New(fakevm.Config{Snapshots: true, Script: script})}
	if w.store, err = nyx.Open(nyx.Config{Dir: filepath.Join(dir, "nyx"), Blobs: blobs}); err != nil {
		t.Fatal(err)
	}
	w.maker, err = snapshots.New(snapshots.Config{
		Driver: w.driver, Images: images{w.store, t.TempDir()}, Scratch: scratches{}, Dir: w.dir,
		Boot:   tartarus.BootPolicy{Attempts: 1, Timeout: 10 * time.Second},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) shape(mib int64) nyx.Shape {
	return w.maker.Shape(sandbox.Digest("sha256:"+strings.Repeat("a", 64)), sandbox.Digest("sha256:"+strings.Repeat("b", 64)),
		sandbox.Resources{VCPUs: 1, MemoryMiB: mib, DiskMiB: 16})
}

// nothingLeft: no VM lives, and none has left a file.
func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	if left, err := os.ReadDir(w.dir); len(left) > 0 || err != nil || w.driver.Live() > 0 {
		t.Errorf("%d VMs and %v are left (%v)", w.driver.Live(), left, err)
	}
}

// start runs the maker until the test ends.
func (w *world) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.maker.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.nothingLeft(t)
	})
}

// await opens the snapshot of a shape once it is there.
func (w *world) await(t *testing.T, s nyx.Shape) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// It waits for whoever makes it.
	for {
		if got := w.maker.Open(ctx, s); got != nil {
			if err := got.Close(); err != nil {
				t.Error(err)
			}
			return
		}
		err := w.store.MakeSnapshot(ctx, s, func(ctx context.Context, _, _ *os.File) error {
			return errors.New("the maker has not begun yet")
		})
		if err != nil && ctx.Err() != nil {
			t.Fatal("nobody makes what was asked for")
		}
	}
}

// TestAsked: what somebody asked for is there later, once.
func TestAsked(t *testing.T) {
	w := newWorld(t, nil)
	if w.maker.Open(t.Context(), w.shape(128)) != nil {
		t.Fatal("there is one before it is made")
	}
	for range 10 {
		w.maker.Open(t.Context(), w.shape(128))
		w.maker.Open(t.Context(), w.shape(256))
	}
	w.start(t)
	w.await(t, w.shape(128))
	w.await(t, w.shape(256))
	if n := w.driver.Started(); n != 2 {
		t.Errorf("%d VMs were started for 2 snapshots", n)
	}
	w.maker.Forget(w.shape(128))
	w.await(t, w.shape(128))
}

// A guest that is saved should have a clock that need not be mended; where
// none can be had, any is good enough.
func TestExactClock(t *testing.T) {
	var exact, others atomic.Int32
	w := newWorld(t, func(_ int, s tartarus.Spec) fakevm.Script {
		if strings.HasSuffix(s.Cmdline, " "+guestwire.WordExactClock) {
			exact.Add(1)
			return fakevm.Script{NeverBoots: true, EndAfter: time.Millisecond}
		}
		others.Add(1)
		return fakevm.Script{}
	})
	w.maker.Open(t.Context(), w.shape(128))
	w.start(t)
	w.await(t, w.shape(128))
	if exact.Load() != 3 || others.Load() != 1 {
		t.Errorf("%d boots were to be exact, %d not", exact.Load(), others.Load())
	}
}

// TestFails: a shape that cannot be made is left alone, and others are made.
func TestFails(t *testing.T) {
	var tried atomic.Int32
	w := newWorld(t, func(_ int, s tartarus.Spec) fakevm.Script {
		if s.MemoryMiB == 128 {
			tried.Add(1)
			return fakevm.Script{SaveErr: errors.New("no room")}
		}
		return fakevm.Script{}
	})
	w.maker.Open(t.Context(), w.shape(128))
	w.maker.Open(t.Context(), w.shape(256))
	w.start(t)
	w.await(t, w.shape(256))
	w.maker.Open(t.Context(), w.shape(128))
	w.maker.Open(t.Context(), w.shape(512))
	w.await(t, w.shape(512))
	if tried.Load() != 1 {
		t.Errorf("what failed was tried %d times", tried.Load())
	}
}

// TestEnds: a maker that is told to end while a guest does not come up leaves
// nothing.
func TestEnds(t *testing.T) {
	born := make(chan struct{}, 1)
	w := newWorld(t, func(int, tartarus.Spec) fakevm.Script {
		born <- struct{}{}
		return fakevm.Script{NeverBoots: true}
	})
	ctx, cancel := context.WithCancel(t.Context())
	w.maker.Open(ctx, w.shape(128))
	done := make(chan error, 1)
	go func() { done <- w.maker.Run(ctx) }()
	<-born
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.nothingLeft(t)
}

// TestSweep: what a killed process left of a VM goes before anything is made.
func TestSweep(t *testing.T) {
	w := newWorld(t, nil)
	vm := filepath.Join(w.dir, "sb-dead", "vm")
	if err := errors.Join(os.MkdirAll(vm, 0o700), os.WriteFile(filepath.Join(vm, "fakevm"), nil, 0o600),
		os.WriteFile(filepath.Join(w.dir, "sb-dead", "scratch"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := w.maker.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	w.nothingLeft(t)
}
