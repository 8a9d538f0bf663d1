package drivertest

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// EmptySnapshot is where a VM can be saved to: files in dir.
func EmptySnapshot(t *testing.T, dir string) *tartarus.SnapshotFiles {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	return &tartarus.SnapshotFiles{Memory: open("memory"), State: open("state")}
}

// Stored is a snapshot for one VM that goes on from it, as a store of blobs has
// its files.
func Stored(t *testing.T, of *tartarus.SnapshotFiles) *tartarus.SnapshotFiles {
	t.Helper()
	open := func(f *os.File) *os.File {
		if err := f.Chmod(0o444); err != nil {
			t.Fatal(err)
		}
		r, err := os.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	return &tartarus.SnapshotFiles{Memory: open(of.Memory), State: open(of.State)}
}

// save boots a VM to where its guest waits for orders, and saves it.
func (k *kit) save(t *testing.T, dir string) *tartarus.SnapshotFiles {
	t.Helper()
	s := k.spec(t)
	s.Save = EmptySnapshot(t, dir)
	vm, _, err := tartarus.Boot(k.ctx(t), k.driver, s, func(ctx context.Context, vm tartarus.VM) error {
		return guestdial.Hello(ctx, guestdial.Config{Dial: vm.Dial})
	}, tartarus.BootPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := vm.Save(k.ctx(t)); err != nil {
		t.Error(err)
	}
	t.Logf("saved in %v", time.Since(began))
	k.kill(t, vm)
	return s.Save
}

// resume starts a VM from a snapshot and sets its guest up, at that time of
// its day.
func (k *kit) resume(t *testing.T, from *tartarus.SnapshotFiles, clock time.Time) (tartarus.VM, *guestdial.Session) {
	t.Helper()
	s := k.spec(t)
	s.Restore = Stored(t, from)
	began := time.Now()
	vm, err := k.driver.Start(k.ctx(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.kill(t, vm) })
	started := time.Since(began)
	session, err := guestdial.Open(k.ctx(t), guestdial.Config{Dial: vm.Dial})
	if err != nil {
		var b bytes.Buffer
		_ = vm.Console(&b)
		t.Fatalf("%v; console: %q; %s", err, b.Bytes(), vm.Exit())
	}
	t.Cleanup(func() { _ = session.Close() })
	answered := time.Since(began)
	setup := k.setup
	setup.Hostname, setup.Entropy, setup.WallClock = string(s.ID), bytes.Repeat([]byte(s.ID), 2), clock.UnixNano()
	if err := session.Setup(k.ctx(t), setup); err != nil {
		t.Fatal(err)
	}
	t.Logf("started after %v, answered after %v, set up after %v", started, answered, time.Since(began))
	return vm, session
}

// snapshots: VMs go on from one, side by side and one after the other, and
// know nothing of each other.
func snapshots(t *testing.T, k *kit) {
	if !k.driver.Info().CanSnapshot {
		s := k.spec(t)
		s.Save = EmptySnapshot(t, t.TempDir())
		if vm, err := k.driver.Start(k.ctx(t), s); err == nil {
			k.kill(t, vm)
			t.Error("a driver that makes no snapshots began one")
		}
		return
	}
	from := k.save(t, t.TempDir())
	before := contents(t, from.Memory)
	began := time.Now()
	one, first := k.resume(t, from, began)
	two, second := k.resume(t, from, began.Add(-setBack))
	resumed := time.Now()
	for i, s := range []*guestdial.Session{first, second} {
		if got := k.command(t, s, 1, append(append([]string{}, k.h.Echo...), "hello")); got != "hello\n" {
			t.Errorf("clone %d says %q", i, got)
		}
	}
	t.Logf("two commands took %v", time.Since(resumed))
	found := k.lookAt(t, first, began, began)
	sampleSane(t, one, tartarus.Spec{})
	k.kill(t, one)
	redial(t, k, two, second)
	k.differ(t, found, k.lookAt(t, second, began, began.Add(-setBack)))
	if got := k.command(t, second, 4, append(append([]string{}, k.h.Echo...), "still here")); got != "still here\n" {
		t.Errorf("the other clone says %q", got)
	}
	k.kill(t, two)
	if !bytes.Equal(before, contents(t, from.Memory)) {
		t.Error("a clone wrote to the memory of all")
	}
	damagedSnapshot(t, k, from)
}

func contents(t *testing.T, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// damagedSnapshot: a VM that cannot go on ends, at once or when it is spoken
// to; it never waits for ever, and nothing is left of it.
func damagedSnapshot(t *testing.T, k *kit, from *tartarus.SnapshotFiles) {
	state := contents(t, from.State)
	size := k.spec(t).MemoryMiB << 20
	for name, c := range map[string]struct {
		state  []byte
		memory int64
	}{
		"empty": {[]byte{}, size}, "noise": {bytes.Repeat([]byte{0x5a}, len(state)), size}, "half": {state[:len(state)/2], size},
		"short memory": {state, size / 2}, "no memory": {state, 0},
	} {
		t.Run(name, func(t *testing.T) {
			files := EmptySnapshot(t, t.TempDir())
			if _, err := files.State.Write(c.state); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(files.Memory, Stored(t, from).Memory, c.memory); err != nil {
				t.Fatal(err)
			}
			s := k.spec(t)
			s.Restore = Stored(t, files)
			vm, err := k.driver.Start(k.ctx(t), s)
			if err != nil {
				t.Log(err)
				return
			}
			defer k.kill(t, vm)
			if err := guestdial.Hello(k.ctx(t), guestdial.Config{Dial: vm.Dial}); err == nil {
				t.Error("a guest answers out of a damaged snapshot")
			}
			if k.ctx(t).Err() != nil {
				t.Error("it waited for ever")
			}
		})
	}
}
