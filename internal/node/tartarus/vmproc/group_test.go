package vmproc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kind is that of VMs with groups of this test's own.
func kind(t *testing.T) Kind {
	t.Helper()
	tree, err := cgroup.Detect(cgroup.Config{})
	if err != nil {
		if os.Geteuid() == 0 {
			t.Fatalf("this host runs as root and has no usable cgroups: %v", err)
		}
		t.Skipf("an ordinary user has no cgroups here: %v", err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return Kind{Driver: "test", Cgroups: tree, OverheadMiB: 1, Threads: 8}
}

// madeGroup is a group that was made for the VM in dir.
func madeGroup(t *testing.T, k Kind, dir string) *cgroup.Group {
	t.Helper()
	g, err := k.Group(dir, fmt.Sprintf("vmproc-%d-%s", os.Getpid(), t.Name()), 64, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(bounded(t)); err != nil {
			t.Error(err)
		}
	})
	return g
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func noted(t *testing.T, dir string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(dir, groupFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// busy keeps a group from being removed until the result is called.
func busy(t *testing.T, g *cgroup.Group) func() {
	t.Helper()
	j, err := g.Join()
	if err != nil {
		t.Fatal(err)
	}
	dir := ""
	for _, f := range j.Procs { // version 1
		dir = filepath.Dir(f.Name())
		_ = f.Close()
	}
	if j.Dir != nil {
		dir = j.Dir.Name()
		_ = j.Dir.Close()
	}
	child := filepath.Join(dir, "child")
	if err := os.Mkdir(child, 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(child); err != nil {
			t.Error(err)
		}
	}
}

// TestGroupIsFound: a group that could not be removed is found by its note, or
// by the handle alone.
func TestGroupIsFound(t *testing.T) {
	k, dir := kind(t), t.TempDir()
	for _, byHandle := range []bool{false, true} {
		g := madeGroup(t, k, dir)
		if !noted(t, dir) {
			t.Error("the group is not noted")
		}
		free := busy(t, g)
		ctx, cancel := context.WithCancel(bounded(t))
		cancel()
		if err := DropGroup(ctx, dir, g); err == nil {
			t.Error("a busy group was removed")
		}
		if !noted(t, dir) {
			t.Error("the note went before the group")
		}
		free()
		var h tartarus.Handle
		if byHandle {
			h.Cgroup = g.Name()
			forgetGroup(dir)
		}
		if err := k.Reap(bounded(t), dir, h); err != nil {
			t.Error(err)
		}
		if k.Cgroups.Open(g.Name()) != nil || noted(t, dir) {
			t.Error("the group is left")
		}
	}
}

// TestDropGroup: it goes with its note, once and again.
func TestDropGroup(t *testing.T) {
	k, dir := kind(t), t.TempDir()
	g := madeGroup(t, k, dir)
	for range 2 {
		if err := DropGroup(bounded(t), dir, g); err != nil {
			t.Error(err)
		}
		if k.Cgroups.Open(g.Name()) != nil || noted(t, dir) {
			t.Error("the group is left")
		}
	}
}

// TestGroupless: without cgroups nothing is made, and it is said why.
func TestGroupless(t *testing.T) {
	dir := t.TempDir()
	for why, want := range map[string]string{"": "no cgroups were asked for", "none here": "none here"} {
		k := Kind{NoCgroups: why}
		g, err := k.Group(dir, "x", 64, 1)
		if g != nil || err != nil || noted(t, dir) {
			t.Errorf("%v, %v", g, err)
		}
		if got := k.Groupless(); got != want {
			t.Errorf("%q: %q", why, got)
		}
		if err := errors.Join(DropGroup(bounded(t), dir, nil), k.Reap(bounded(t), dir, tartarus.Handle{Cgroup: "x"})); err != nil {
			t.Error(err)
		}
	}
}
