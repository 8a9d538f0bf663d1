package cgroup

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

func lockThreadAs(uid int) {
	runtime.LockOSThread()
	_, _, _ = unix.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid))
	_, _, _ = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
}

// fake is a hierarchy of version 2 in a plain folder, where making a folder
// gives it the files that the kernel would.
type fake struct {
	t     *testing.T
	mount string
	files map[string]string // of each group
}

func newFake(t *testing.T, handedDown string) *fake {
	f := &fake{t: t, mount: t.TempDir(), files: map[string]string{
		"cgroup.procs": "", "cgroup.kill": "", "cgroup.subtree_control": handedDown, "memory.max": "", "memory.swap.max": "",
		"memory.current": "4096", "memory.peak": "8192", "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n", "cpu.max": "",
		"cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "pids.max": "",
	}}
	f.fill(f.mount)
	f.write(f.mount, "cgroup.controllers", "cpu memory pids")
	return f
}

func (f *fake) write(dir, file, text string) {
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) fill(dir string) {
	for n, s := range f.files {
		f.write(dir, n, s)
	}
}

// tree is an unsettled tree on the fake.
func (f *fake) tree() *Tree {
	t := &Tree{version: 2, parents: map[string]string{}, why: map[string]string{}, made: map[string]bool{}}
	t.mkdir = func(p string) error {
		err := os.Mkdir(p, 0o700)
		if err == nil {
			f.fill(p)
		}
		return err
	}
	t.rmdir = func(p string) error {
		entries, err := os.ReadDir(p)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(entries, os.DirEntry.IsDir) {
			return unix.EBUSY
		}
		return os.RemoveAll(p)
	}
	return t
}

// settled is what Detect makes of it.
func (f *fake) settled() *Tree {
	t := f.tree()
	if err := t.settle([]mount{{point: f.mount, root: "/"}}, "", map[string]string{"": "/"}); err != nil {
		f.t.Fatal(err)
	}
	return t
}

func TestVersion2(t *testing.T) {
	f := newFake(t, "cpu memory pids")
	tree := f.settled()
	g, err := tree.Create("sb-1", Limits{MemoryMiB: 128, CPUs: 1.5, Pids: 64})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(f.mount, ownFolder, "sb-1")
	for file, want := range map[string]string{"memory.max": "134217728", "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "64"} {
		if have, err := get(dir, file); err != nil || have != want {
			t.Errorf("%s: %q, %v, want %q", file, have, err, want)
		}
	}
	if want := []string{LayerSwapOff, LayerMemory, LayerCPU, LayerPids}; !slices.Equal(g.On(), want) || len(g.Missing()) != 0 {
		t.Errorf("on %v, missing %v", g.On(), g.Missing())
	}
	if s, err := g.Stat(); err != nil || s != (Stat{CPUSeconds: 2.5, MemoryBytes: 4096, MemoryPeakBytes: 8192, OOMKills: 1}) {
		t.Errorf("%+v, %v", s, err)
	}
	j, err := g.Join()
	if err != nil || j.Dir == nil || len(j.Procs) != 0 {
		t.Fatalf("%+v, %v", j, err)
	}
	_ = j.Dir.Close()
	if err := os.Remove(filepath.Join(dir, "memory.peak")); err != nil {
		t.Fatal(err)
	}
	if s, err := g.Stat(); err != nil || s.MemoryPeakBytes != 0 {
		t.Errorf("on a kernel without memory.peak: %+v, %v", s, err)
	}
	if err := g.Remove(bounded(t)); err != nil {
		t.Error(err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(f.mount, ownFolder)); !os.IsNotExist(err) {
		t.Errorf("the parent is left: %v", err)
	}
}

// A parent that was there before stays; one that was made for the tree goes.
func TestVersion2NamedParent(t *testing.T) {
	for _, given := range []bool{false, true} {
		f := newFake(t, "cpu memory pids")
		dir := filepath.Join(f.mount, "vms")
		if given {
			if err := f.tree().mkdir(dir); err != nil {
				t.Fatal(err)
			}
		}
		tree := f.tree()
		if err := tree.settle([]mount{{point: f.mount, root: "/"}}, "vms", map[string]string{"": "/"}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); err != nil {
			t.Fatal(err)
		}
		if err := tree.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); (err == nil) != given {
			t.Errorf("given %v: after Close its folder: %v", given, err)
		}
	}
}

func TestVersion2ControllerNotHandedDown(t *testing.T) {
	f := newFake(t, "memory")
	delete(f.files, "memory.swap.max") // no swap accounting either
	tree := f.tree()
	tree.place2(mount{point: f.mount, root: "/"}, "", "/")
	if err := tree.mkdir(filepath.Join(f.mount, ownFolder)); err != nil {
		t.Fatal(err)
	}
	tree.checkEnabled()
	g, err := tree.Create("x", Limits{MemoryMiB: 1, CPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(g.On(), []string{LayerMemory}) {
		t.Errorf("on: %v", g.On())
	}
	var names []string
	for _, m := range g.Missing() {
		names = append(names, m[0])
		if m[1] == "" {
			t.Errorf("%s is missing without a reason", m[0])
		}
	}
	if want := []string{LayerSwapOff, LayerCPU, LayerPids}; !slices.Equal(names, want) {
		t.Errorf("missing: %v", g.Missing())
	}
}

// A limit that does not hold is an error, and leaves nothing.
func TestLimitThatDoesNotHold(t *testing.T) {
	f := newFake(t, "cpu memory pids")
	tree := f.settled()
	mkdir := tree.mkdir
	tree.mkdir = func(p string) error {
		if err := mkdir(p); err != nil || filepath.Base(p) == ownFolder {
			return err
		}
		return errors.Join(os.Remove(filepath.Join(p, "pids.max")), os.Symlink("/dev/null", filepath.Join(p, "pids.max")))
	}
	if _, err := tree.Create("x", Limits{Pids: 5}); err == nil {
		t.Error("a limit that reads back as nothing was taken for one")
	}
	if tree.Open("x") != nil {
		t.Error("the group is left")
	}
}

func TestNames(t *testing.T) {
	tree := &Tree{version: 2, parents: map[string]string{}, why: map[string]string{}}
	for _, n := range []string{"", ".", "..", "a/b", "../x", "-x", "a b", strings.Repeat("a", 200), "a\x00"} {
		if _, err := tree.Create(n, Limits{}); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: %v", n, err)
		}
		if tree.Open(n) != nil {
			t.Errorf("%q was opened", n)
		}
	}
	for _, l := range []Limits{{MemoryMiB: -1}, {MemoryMiB: 1 << 40}, {CPUs: 0.001}, {CPUs: -1}, {Pids: -1}} {
		if _, err := tree.Create("x", l); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestParse(t *testing.T) {
	mounts := parseMounts(`31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/c\040group rw,relatime - cgroup2 cgroup2 rw
broken line
`)
	if len(mounts) != 2 || mounts[1].point != "/sys/fs/c group" || mounts[1].controllers != nil || !slices.Contains(mounts[0].controllers, "cpuacct") {
		t.Fatalf("%+v", mounts)
	}
	for own, want := range map[string]string{"/docker/abc": "/sys/fs/cgroup/cpu,cpuacct", "/docker/abc/x": "/sys/fs/cgroup/cpu,cpuacct/x", "/docker": "", "/docker/abcd": ""} {
		if have := mounts[0].below(own); have != want {
			t.Errorf("the folder of %s is %q, want %q", own, have, want)
		}
	}
	self := parseSelf("4:memory:/a:b\n3:cpu,cpuacct:/c\n0::/d\nbroken\n")
	if want := map[string]string{"memory": "/a:b", "cpu": "/c", "cpuacct": "/c", "": "/d"}; !maps.Equal(self, want) {
		t.Errorf("%v", self)
	}
}

// Where the agent's own group is "agent", the groups are its neighbours.
func TestDelegated(t *testing.T) {
	f := newFake(t, "cpu memory pids")
	unit := filepath.Join(f.mount, "unit.service")
	if err := os.Mkdir(unit, 0o700); err != nil {
		t.Fatal(err)
	}
	f.fill(unit)
	tree := &Tree{version: 2, parents: map[string]string{}, why: map[string]string{}}
	tree.place2(mount{point: f.mount, root: "/"}, "", "/unit.service/agent")
	if have := tree.parents["memory"]; have != unit {
		t.Errorf("groups go to %s, want %s", have, unit)
	}
	tree.place2(mount{point: f.mount, root: "/"}, "../../etc", "/")
	if have := tree.parents["memory"]; have != filepath.Join(f.mount, "etc") {
		t.Errorf("groups go to %s", have)
	}
}

func TestParsersTakeAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "text")
		for _, m := range parseMounts(s) {
			_ = m.below(s)
		}
		_ = parseSelf(s)
	})
}
