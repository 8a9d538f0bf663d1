package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
)

func TestStartFails(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := folder(t, os.Geteuid())
	for name, c := range map[string]struct {
		spec Spec
		kind fault.Kind
		text string
	}{
		"no program":      {Spec{Dir: dir}, fault.InvalidArgument, "absolute"},
		"relative":        {Spec{Dir: dir, Argv: []string{"qemu"}}, fault.InvalidArgument, "absolute"},
		"missing":         {Spec{Dir: dir, Argv: []string{"/nowhere/qemu"}}, fault.Unsupported, "/nowhere/qemu"},
		"not executable":  {Spec{Dir: dir, Argv: []string{"/etc/passwd"}}, fault.Unsupported, "executed"},
		"not a program":   {Spec{Dir: dir, Argv: []string{text}}, fault.Unsupported, "executed"},
		"no folder":       {Spec{Dir: "/nowhere", Argv: []string{programs.probe}}, fault.InvalidArgument, "/nowhere"},
		"root to read":    {Spec{Dir: dir, Argv: []string{programs.probe}, ReadOnly: []string{"/"}}, fault.InvalidArgument, "shown"},
		"dots to read":    {Spec{Dir: dir, Argv: []string{programs.probe}, ReadOnly: []string{"/usr/../etc"}}, fault.InvalidArgument, "shown"},
		"missing to read": {Spec{Dir: dir, Argv: []string{programs.probe}, ReadOnly: []string{"/nowhere/kernel"}}, fault.Unsupported, "/nowhere/kernel"},
		"zero byte":       {Spec{Dir: dir, Argv: []string{programs.probe, "a\x00b"}}, fault.InvalidArgument, "zero"},
		"nil file":        {Spec{Dir: dir, Argv: []string{programs.probe}, Files: []*os.File{nil}}, fault.InvalidArgument, "nil"},
		"socket":          {Spec{Dir: dir, Argv: []string{programs.probe}, Syscalls: []string{"read", "socket"}}, fault.InvalidArgument, "socket"},
		"ptrace":          {Spec{Dir: dir, Argv: []string{programs.probe}, Syscalls: []string{"ptrace"}}, fault.InvalidArgument, "ptrace"},
	} {
		t.Run(name, func(t *testing.T) {
			fds := descriptorsOpen(t)
			c.spec.UID, c.spec.GID = me(), me()
			p, err := Start(t.Context(), c.spec)
			if err == nil {
				_ = p.Kill(t.Context())
				t.Fatal("it started")
			}
			var f *fault.Error
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || !errors.As(err, &f) || f.Hint == "" {
				t.Errorf("%v (%v)", err, fault.KindOf(err))
			}
			if s := strays(t, dir); len(s) != 0 {
				t.Errorf("left: %v", s)
			}
			if have := descriptorsOpen(t); have != fds {
				t.Errorf("%d descriptors are open, %d before", have, fds)
			}
		})
	}
}

func TestStderrIsBounded(t *testing.T) {
	const lines = 40_000 // some 400 KiB
	dir := folder(t, os.Geteuid())
	out := here(t, job{Dir: dir, Program: programs.probe, Attempts: []string{fmt.Sprintf("stderr=%d", lines)}, UID: me()})
	if out.Exit.Code != 7 {
		t.Errorf("it ended with %+v", out.Exit)
	}
	if len(out.Stderr) != StderrBytes || !strings.HasSuffix(out.Stderr, fmt.Sprintf("line %d\n", lines-1)) {
		t.Errorf("%d bytes are kept, ending with %q", len(out.Stderr), out.Stderr[max(0, len(out.Stderr)-40):])
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			size += fi.Size()
		}
	}
	if size > 2*StderrBytes+4096 {
		t.Errorf("the folder has grown to %d bytes", size)
	}
}

// What is shown to the VMM can be read, and not written.
func TestReadOnlyAndDevices(t *testing.T) {
	dir := folder(t, os.Geteuid())
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, "deep", "er")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(deep, "kernel")
	hidden := filepath.Join(dir, "deep", "hidden")
	for _, p := range []string{kernel, hidden} {
		if err := os.WriteFile(p, []byte("x"), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := filepath.Join(folder(t, os.Geteuid()), "firmware") // out of the user's reach, but for the launcher
	if err := os.WriteFile(elsewhere, []byte("x"), 0o444); err != nil {
		t.Fatal(err)
	}
	s := Spec{ReadOnly: []string{kernel, deep, elsewhere, "/sys/kernel"}, Devices: []string{"/dev/null"}}
	v := waiting(t, s, "read="+kernel, "read_home="+elsewhere, "list=/sys/kernel", "list_tmp="+deep, "write=/dev/null")
	v.end()
	j := job{Dir: folder(t, os.Geteuid()), Program: programs.probe, UID: me(), More: &s}
	j.Attempts = []string{"write=" + kernel, "read=" + hidden, "write_new=" + deep + "/new", "read_mounts=/proc/self/mountinfo", "mkdir=/dev/x", "unlink=" + kernel, "list=/etc"}
	out := here(t, j)
	if len(out.Results) != len(j.Attempts) {
		t.Errorf("tried %d of %d: %+v", len(out.Results), len(j.Attempts), out.Exit)
	}
	for _, r := range out.Results {
		if r.Error == "" {
			t.Errorf("%s succeeded", r.Attempt)
		}
	}
}

// A device that only a group may open is opened by a VMM with a user of its
// own, which has no groups otherwise.
func TestDeviceOfAGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("device nodes are made by root")
	}
	node := filepath.Join(folder(t, 0), "kvm")
	if err := unix.Mknod(node, unix.S_IFCHR|0o660, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(node, 0, 4242), os.Chmod(node, 0o660)); err != nil {
		t.Fatal(err)
	}
	v := waiting(t, Spec{Devices: []string{node}}, "write="+node)
	if have := strings.TrimSpace(status(t, v.p.VMM().Pid)["Groups"]); have != "4242" {
		t.Errorf("its groups: %q", have)
	}
}

func TestBornInItsCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("groups are made by root")
	}
	tree, err := cgroup.Detect(cgroup.Config{})
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test-%d", os.Getpid())
	g, err := tree.Create(name, cgroup.Limits{MemoryMiB: 256, Pids: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.Remove(ctx), tree.Close()); err != nil {
			t.Error(err)
		}
	})
	v := waiting(t, Spec{Cgroup: g})
	for _, pid := range []int{v.p.Pid(), v.p.VMM().Pid} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || !strings.Contains(string(b), "/"+name+"\n") {
			t.Errorf("process %d is in\n%s%v", pid, b, err)
		}
	}
	i := v.p.Isolation()
	if !slices.Contains(i.Confinement, cgroup.LayerMemory) || !slices.ContainsFunc(i.Missing, func(m string) bool { return strings.HasPrefix(m, cgroup.LayerCPU+": ") }) {
		t.Errorf("%+v", i)
	}
	if s, err := g.Stat(); err != nil || s.MemoryPeakBytes == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := g.Remove(ctx); err != nil { // ends both
		t.Fatal(err)
	}
	done(t, v.p)
}

// otherNetwork is a network namespace of the test's own, held open, with a
// device in it that no other has.
func otherNetwork(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = makeTAP(ownDevice)
		}
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

const ownDevice = "launchertest"

// makeTAP makes a device in this thread's network namespace that stays.
func makeTAP(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

// devices are the network devices that a process sees.
func devices(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if name, _, is := strings.Cut(line, ":"); is {
			out = append(out, strings.TrimSpace(name))
		}
	}
	slices.Sort(out)
	return out
}

func TestBornInItsNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces are entered by root")
	}
	network := otherNetwork(t)
	v := waiting(t, Spec{Network: network})
	want, err := network.Stat()
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", v.p.VMM().Pid))
	if err != nil || !os.SameFile(in, want) {
		t.Errorf("the VMM is in %v and not in %v: %v", in, want, err)
	}
	if got := devices(t, v.p.VMM().Pid); !slices.Equal(got, []string{ownDevice, "lo"}) {
		t.Errorf("the VMM sees the devices %v", got)
	}
	for _, layer := range nsLayers {
		if !slices.Contains(v.p.Isolation().Confinement, layer) {
			t.Errorf("%s is not on: %+v", layer, v.p.Isolation())
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := v.p.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	done(t, v.p)
}

// What is no network namespace, or our own, is refused before anything starts.
// A thread that took another for good may be the process's first, which is why
// /proc/self does not do for ours.
func TestNetworkRefused(t *testing.T) {
	for name, path := range map[string]string{"a plain file": "/proc/self/status", "another kind": "/proc/self/ns/uts", "our own": "/proc/thread-self/ns/net"} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		dir := folder(t, os.Geteuid())
		p, err := Start(t.Context(), Spec{Dir: dir, Argv: []string{programs.probe}, Network: f, UID: me(), GID: me()})
		want := fault.InvalidArgument
		if os.Geteuid() != 0 {
			want = fault.Unsupported
		}
		if err == nil {
			_ = p.Kill(t.Context())
		}
		if !fault.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if left := strays(t, dir); len(left) != 0 {
			t.Errorf("%s: left: %v", name, left)
		}
		_ = f.Close()
	}
}

// The caller's files keep their mode: a listener of its own may share it.
func TestFilesKeepTheirMode(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	v := waiting(t, Spec{Lifeline: r, Files: []*os.File{w}})
	for _, f := range []*os.File{r, w} {
		rc, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = rc.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("flags %#x, %v", flags, err)
			}
		})
	}
	if _, err := w.Write([]byte("x")); err != nil { // no hang-up: nothing happens
		t.Fatal(err)
	}
	if !v.p.VMM().Alive() {
		t.Error("a byte on the lifeline ended the VMM")
	}
}
