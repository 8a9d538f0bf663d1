package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcapi"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcget"
)

// unsupported asserts an error of New that a person can do something with.
func unsupported(t *testing.T, cfg Config, words ...string) {
	t.Helper()
	_, err := New(t.Context(), cfg)
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.Unsupported || f.Hint == "" {
		t.Errorf("%v (%+v)", err, f)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error()+" "+f.Hint, w) {
			t.Errorf("%q is not in %q, hint %q", w, err, f.Hint)
		}
	}
}

// TestPrograms: what is no Firecracker to be run here is refused by name.
func TestPrograms(t *testing.T) {
	write := func(content string, mode os.FileMode) Config {
		path := filepath.Join(t.TempDir(), "firecracker")
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return Config{Binary: path, device: os.DevNull}
	}
	unsupported(t, Config{Binary: "/nonexistent/firecracker", device: os.DevNull}, "there is no firecracker", "setup firecracker")
	unsupported(t, write("#!/bin/sh\n", 0o644), "cannot be executed", "chmod")
	foreign := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\xf3\x00" + strings.Repeat("\x00", 100) // RISC-V
	unsupported(t, write(foreign, 0o755), "no program for this machine")
	unsupported(t, write("#!/bin/sh\nexit 7\n", 0o755), "does not tell its version")
	unsupported(t, write("#!/bin/sh\necho Jailer v1.17.0\n", 0o755), "is not Firecracker")
	unsupported(t, write("#!/bin/sh\necho Firecracker v1.17.0-dev\n", 0o755), "no released version")
	good := scripted(t, "good")
	good.InsecureTestVMM = false
	unsupported(t, good, "1.12.1 must not run", "CVE-2026-1386", "--insecure-test-vmm")
	if os.Getuid() == 0 {
		unsupported(t, scripted(t, "jail-1.17.0"), "jailer is version 1.17.0 and Firecracker is 1.12.1")
		gone := scripted(t, "good")
		gone.Jailer = "/nonexistent/jailer"
		unsupported(t, gone, "there is no jailer")
	}
}

// TestVersions: every version that is refused is refused for its own reason,
// and one that nobody knows too.
func TestVersions(t *testing.T) {
	for v, want := range map[string]string{
		"1.17.0": "", "1.12.1": "CVE-2026-1386", "1.13.0": "CVE-2026-5747", "1.14.3": "CVE-2026-5747", "1.15.0": "CVE-2026-5747",
		"1.16.0": "restore", "1.16.1": "pause", "1.11.0": "CVE-2026-1386", "1.14.4": "not among", "1.18.0": "not among", "2.0.0": "not among",
	} {
		parsed, err := fcapi.ParseVersion(v)
		if err != nil {
			t.Fatal(err)
		}
		got := judge(parsed, false)
		if want == "" {
			if got != nil {
				t.Errorf("%s: %v", v, got)
			}
			continue
		}
		if got == nil || !strings.Contains(got.Error(), want) || !strings.Contains(got.Error(), v) {
			t.Errorf("%s: %v", v, got)
		}
		if err := judge(parsed, true); (err == nil) != (v == "1.12.1") {
			t.Errorf("insecure %s: %v", v, err)
		}
	}
}

// TestDevice: KVM that is missing or not permitted is told apart.
func TestDevice(t *testing.T) {
	cfg := scripted(t, "good")
	cfg.device = "/nonexistent/kvm"
	unsupported(t, cfg, "there is no KVM")
	if os.Getuid() != 0 {
		cfg.device = filepath.Join(t.TempDir(), "kvm")
		if err := os.WriteFile(cfg.device, nil, 0); err != nil {
			t.Fatal(err)
		}
		unsupported(t, cfg, "may not use it", "group kvm")
	}
}

// callsToBoot is how many calls a start makes after it asked for the version.
const callsToBoot = 8

// TestEachCall: whatever happens at whichever call, the error says so and
// nothing is left.
func TestEachCall(t *testing.T) {
	for _, what := range []string{"fail", "die", "mute", "garbage"} {
		for n := 1; n <= callsToBoot+1; n++ {
			t.Run(fmt.Sprintf("%s-%d", what, n), func(t *testing.T) {
				t.Parallel()
				eachCall(t, what, n)
			})
		}
	}
}

func eachCall(t *testing.T, what string, n int) {
	cfg := scripted(t, fmt.Sprintf("%s-%d", what, n))
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if what == "mute" && n <= callsToBoot {
		d.cfg.StartTimeout = 300 * time.Millisecond
	}
	s := newSpec(t)
	fillDummy(t, &s)
	v, err := d.Start(t.Context(), s)
	if n > callsToBoot {
		if err != nil {
			t.Fatalf("a start makes more than %d calls: %v", callsToBoot, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := v.Pause(ctx); err == nil {
			t.Error("a call that failed is told as a success")
		}
		if err := v.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	} else {
		want := map[string]string{"fail": "the script says no", "die": "the script says die", "mute": "did not answer in", "garbage": "malformed"}[what]
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), string(s.ID)) {
			t.Errorf("%v does not tell %q", err, want)
		}
	}
	clean(t, s)
}

// clean: nothing is left of a VM but plain files in its folder, and its disk
// serves again.
func clean(t *testing.T, s tartarus.Spec) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			t.Errorf("%s is left: %s", e.Name(), e.Type())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), string(s.ID)) {
		t.Errorf("a mount is left (%v)", err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), string(s.ID)) {
			t.Errorf("%s is left: %q", p, b)
		}
	}
	// A child that another test has forked and that has not executed its
	// program yet holds a copy of all that this process has open.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.OpenFile(s.Scratch, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // nothing was written
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the scratch disk is still locked: %v", err)
	}
}

// TestLies: a VMM that is not the one that was tried is ended.
func TestLies(t *testing.T) {
	if _, err := New(t.Context(), scripted(t, "lies-1.17.0")); err == nil || !strings.Contains(err.Error(), "1.17.0 runs where 1.12.1") {
		t.Errorf("%v", err)
	}
	cfg := scripted(t, "mute-0")
	cfg.StartTimeout = 200 * time.Millisecond
	if _, err := New(t.Context(), cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a VMM that never answers: %v", err)
	}
}

// TestSwap: a VMM that was taken over reaches no socket of the host, nor leads
// the host anywhere by links in the place of its own sockets and pipe.
func TestSwap(t *testing.T) {
	cfg := scripted(t, "swap")
	canary := filepath.Join(filepath.Dir(filepath.Dir(cfg.Binary)), "canary")
	if err := os.Mkdir(canary, 0o755); err != nil {
		t.Fatal(err)
	}
	var touched atomic.Int32
	for _, name := range []string{filepath.Join(canary, apiSocket), filepath.Join(canary, vsockSocket), "@" + canary} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // of the test
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				touched.Add(1)
				_ = c.Close()
			}
		}()
	}
	secret := filepath.Join(canary, metricsPipe)
	if err := unix.Mkfifo(secret, 0o666); err != nil {
		t.Fatal(err)
	}
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := newSpec(t)
	fillDummy(t, &s)
	v := started(t, d, s)
	swapped := os.Getuid() == 0 // Landlock keeps the other from making links
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := v.Pause(ctx); (err == nil) == swapped || swapped && !strings.Contains(err.Error(), "is not what it should be") {
		t.Errorf("pausing: %v", err)
	}
	if err := v.Resume(ctx); (err == nil) == swapped {
		t.Errorf("resuming: %v", err)
	}
	conn, err := v.Dial(ctx)
	if (err == nil) == swapped || swapped && !strings.Contains(err.Error(), "is not what it should be") {
		t.Errorf("dialling: %v", err)
	}
	if err == nil {
		_ = conn.Close()
	}
	if _, err := v.Metrics(ctx); (err == nil) == swapped {
		t.Errorf("metrics: %v", err)
	}
	if err := v.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	clean(t, s)
	var console bytes.Buffer
	if err := v.Console(&console); err != nil || strings.Count(console.String(), "reach:") != 2 {
		t.Errorf("it did not try: %q, %v", console.String(), err)
	}
	if touched.Load() != 0 {
		t.Error("the canary was connected to")
	}
}

// TestFolder: only what should be there is opened, whatever bears its name.
func TestFolder(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	l, err := net.Listen("unix", outside)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // of the test
	if err := errors.Join(
		os.Symlink(outside, filepath.Join(dir, "link")),
		os.Symlink(filepath.Dir(outside), filepath.Join(dir, "folder")),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
		unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
		os.Link(outside, filepath.Join(dir, "socket"))); err != nil {
		t.Fatal(err)
	}
	d, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for _, name := range []string{"link", "folder/outside", "../" + filepath.Base(filepath.Dir(outside)) + "/outside", outside, "file", "pipe", "none", "/proc/self/root" + outside} {
		if c, err := d.connect(t.Context(), name); err == nil {
			_ = c.Close()
			t.Errorf("connected through %s", name)
		}
	}
	c, err := d.connect(t.Context(), "socket")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// TestRequire: a layer that cannot be had keeps the VM from starting.
func TestRequire(t *testing.T) {
	cfg := scripted(t, "good")
	cfg.Require = []string{"cgroup_memory"}
	_, err := New(t.Context(), cfg)
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "cgroup_memory") {
		t.Errorf("%v", err)
	}
}

// TestUnreadable: shared files that the VMM's user could not read are refused
// before anything is made, and never changed.
func TestUnreadable(t *testing.T) {
	if os.Getuid() != 0 {
		return // it has the agent's own user
	}
	d, err := New(t.Context(), scripted(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	s := newSpec(t)
	fillDummy(t, &s)
	if err := os.Chmod(s.Root, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = d.Start(t.Context(), s)
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.InvalidArgument || f.Field != "root" || f.Hint == "" {
		t.Errorf("%v", err)
	}
	if st, err := os.Stat(s.Root); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("it was changed: %v, %v", st.Mode(), err)
	}
}

// TestSmallRooms: a VM's folder on a full disk is an error that leaves nothing;
// one on a disk that allows no programs and devices serves.
func TestSmallRooms(t *testing.T) {
	if os.Getuid() != 0 {
		return // it takes a mount
	}
	d, err := New(t.Context(), scripted(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	for options, works := range map[string]bool{"size=4k,nr_inodes=2": false, "size=1m,nr_inodes=64": true} {
		s := newSpec(t)
		fillDummy(t, &s)
		if err := unix.Mount("test", s.Dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
			t.Fatal(err)
		}
		v, err := d.Start(t.Context(), s)
		if (err == nil) != works || !works && !errors.Is(err, unix.ENOSPC) && !strings.Contains(err.Error(), "no space left") {
			t.Errorf("%s: %v", options, err)
		}
		if err == nil {
			if err := v.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if err := unix.Unmount(s.Dir, 0); err != nil {
			t.Errorf("something holds the folder: %v", err)
		}
		clean(t, s)
	}
}

// TestPinned: what setup installs is what runs.
func TestPinned(t *testing.T) {
	r, err := fcget.Pinned()
	if err != nil || r.Version != Pinned.String() {
		t.Errorf("setup installs %q, and %v is pinned (%v)", r.Version, Pinned, err)
	}
}
