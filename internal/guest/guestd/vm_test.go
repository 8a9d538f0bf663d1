package guestd_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/qemu"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// specOf makes what a VM of this init needs. The kernel is a download, so
// bundle and template are kept in the user's cache.
func specOf(t *testing.T) tartarus.Spec {
	t.Helper()
	cache, err := os.UserCacheDir()
	check(t, err)
	dir := filepath.Join(cache, "tartarus", "test")
	check(t, os.MkdirAll(dir, 0o700))
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "github.com/tartarus-vm/tartarus/cmd/tartarus-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the guest's init: %v: %s", err, out)
	}
	init, err := os.ReadFile(program)
	check(t, err)
	blobs, err := dirblobs.Open(dirblobs.Config{Dir: filepath.Join(dir, "blobs")})
	check(t, err)
	store, err := nyx.Open(nyx.Config{Dir: filepath.Join(dir, "nyx"), Blobs: blobs})
	check(t, err)
	bundle, err := store.EnsureBundle(t.Context(), init, nil)
	check(t, err)
	template, err := store.EnsureTemplate(t.Context(), "base", nil)
	check(t, err)
	root, err := store.RootDisk(t.Context(), template.Digest)
	check(t, err)
	disks, err := lethe.Open(lethe.Config{Dir: filepath.Join(dir, "lethe")})
	check(t, err)
	s := tartarus.Spec{
		ID: sandbox.MakeID(ulid.Make().String()), Dir: t.TempDir(), Scratch: filepath.Join(t.TempDir(), "scratch"),
		Kernel: bundle.Kernel, Initrd: bundle.Initrd, Cmdline: bundle.Cmdline, Root: root,
		VCPUs: 1, MemoryMiB: 128,
	}
	check(t, disks.Create(t.Context(), s.Scratch, 64))
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\nthis test boots a real VM: it needs qemu-system-x86, busybox-static and e2fsprogs, and apt's mirror once", err)
	}
}

// booted is a real VM with a session.
type booted struct {
	*guestdial.Session
	vm   tartarus.VM
	id   sandbox.ID
	mu   sync.Mutex
	conn net.Conn
}

func (b *booted) dial(ctx context.Context) (net.Conn, error) {
	c, err := b.vm.Dial(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	return c, err
}

// breakStream closes the host's end under the session.
func (b *booted) breakStream() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn.Close()
}

func boot(t *testing.T) *booted {
	t.Helper()
	spec := specOf(t)
	driver, err := qemu.New(t.Context(), qemu.Config{NoCgroups: "a test"})
	check(t, err)
	b := &booted{id: spec.ID}
	began := time.Now()
	_, _, err = tartarus.Boot(t.Context(), driver, spec, func(ctx context.Context, vm tartarus.VM) error {
		b.vm = vm
		b.Session, err = guestdial.Open(ctx, guestdial.Config{Dial: b.dial})
		return err
	}, tartarus.BootPolicy{})
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			b.tell(t)
		}
		b.Close()
		if err := b.vm.Kill(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	t.Logf("from nothing to the guest's hello: %v", time.Since(began))
	return b
}

// tell logs how the VM is, or how it ended, for who looks for a reason.
func (b *booted) tell(t *testing.T) {
	t.Helper()
	var console strings.Builder
	err := b.vm.Console(&console)
	text := console.String()
	t.Logf("the VM ended: %q; its console, %v: %q", b.vm.Exit(), err, text[max(0, len(text)-2048):])
}

// shell runs a script in the guest and returns its outputs.
func (b *booted) shell(t *testing.T, user, script string) (guestwire.Exit, string, string) {
	t.Helper()
	o := collect(t)
	m := guestwire.Start{Argv: []string{"sh", "-c", script}, Cwd: "/work", MakeCwd: true, User: user}
	p := begin(t, b.Session, m, o.sink)
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	e, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e, o.out.String(), o.err.String()
}

// expect runs a script as the unprivileged user and insists on its output.
func (b *booted) expect(t *testing.T, script, want string) {
	t.Helper()
	if e, out, errs := b.shell(t, "", script); out != want || e.Code != 0 {
		t.Errorf("%s: %q, %q, exit %+v", script, out, errs, e)
	}
}

// TestVM is the init in the place it is made for. The cases share a VM.
func TestVM(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: boots a real VM")
	}
	b := boot(t)
	if err := b.Setup(t.Context(), guestwire.Setup{Entropy: make([]byte, 31)}); err == nil {
		t.Fatal("it is set up without randomness of the host")
	}
	now := time.Now()
	err := b.Setup(t.Context(), guestwire.Setup{
		Hostname: string(b.id), WallClock: now.UnixNano(), Entropy: make([]byte, 64),
		MachineID: strings.Repeat("0123456789abcdef", 2), Processes: 60,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("setup: %v", time.Since(now))
	// The first one is the run's command: with its end all others end.
	command := begin(t, b.Session, guestwire.Start{Argv: []string{"sh", "-c", "sleep 1000 & wait"}, Cwd: "/"}, nil)
	began := time.Now()
	b.expect(t, "echo hi", "hi\n")
	t.Logf("a shell's first line, from order to exit: %v", time.Since(began))
	t.Run("identity", func(t *testing.T) { testIdentity(t, b, now) })
	t.Run("root", func(t *testing.T) { testRoot(t, b) })
	t.Run("files", func(t *testing.T) { testFiles(t, b) })
	t.Run("init is safe from root", func(t *testing.T) { testInitIsSafe(t, b) })
	t.Run("limits", func(t *testing.T) { testLimits(t, b) })
	t.Run("stream breaks", func(t *testing.T) { testStreamBreaks(t, b) })
	t.Run("end", func(t *testing.T) { testEnd(t, b, command) })
}

func testIdentity(t *testing.T, b *booted, now time.Time) {
	b.expect(t, "id -u; id -g; whoami", "1000\n1000\nsandbox\n")
	b.expect(t, "echo $HOME; pwd; hostname; cat /etc/hostname", "/home/sandbox\n/work\n"+string(b.id)+"\n"+string(b.id)+"\n")
	b.expect(t, "cat /etc/machine-id", strings.Repeat("0123456789abcdef", 2)+"\n")
	if _, out, _ := b.shell(t, "root", "id -u; echo $HOME"); out != "0\n/root\n" {
		t.Errorf("root is %q", out)
	}
	if _, out, _ := b.shell(t, "4711:42", "id -u; id -g"); out != "4711\n42\n" {
		t.Errorf("4711:42 is %q", out)
	}
	_, out, _ := b.shell(t, "", "date +%s")
	if clock, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err != nil || clock < now.Unix() || clock > time.Now().Unix()+1 {
		t.Errorf("the clock says %q, %v", out, err)
	}
}

func testRoot(t *testing.T, b *booted) {
	b.expect(t, "echo x > /work/f && cat /work/f && echo y > /tmp/f && cat /tmp/f && echo z > /dev/shm/f && cat /dev/shm/f", "x\ny\nz\n")
	b.expect(t, "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; ls /dev/fd/0 /dev/pts/ptmx", "3\n3\n/dev/fd/0\n/dev/pts/ptmx\n")
	b.expect(t, "touch /sys/x /sys/fs/cgroup/x 2>/dev/null || echo read-only", "read-only\n")
	b.expect(t, "ls -d /lower /scratch /root.new /modules /cgroup 2>/dev/null | wc -l", "0\n")
	b.expect(t, "ping -c 1 127.0.0.1 >/dev/null 2>&1; cat /sys/class/net/lo/operstate", "unknown\n")
	// No descriptor of init's is in a command's hands.
	b.expect(t, "for f in /proc/self/fd/*; do readlink $f; done | grep -vE '^(/dev/null|pipe:.*|/proc/.*|)$' | wc -l", "0\n")
	// Signals have their defaults: nothing is ignored or blocked.
	o := collect(t)
	wait(t, begin(t, b.Session, guestwire.Start{Argv: []string{"grep", "-E", "SigIgn|SigBlk|SigCgt", "/proc/self/status"}, Cwd: "/"}, o.sink))
	if want := "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n"; o.out.String() != want {
		t.Errorf("signals: %q", o.out.String())
	}
	b.expect(t, "yes | head -n 1", "y\n")
}

func testFiles(t *testing.T, b *booted) {
	if err := b.PutFile(t.Context(), "/work/deep/er/secret", 0o640, []byte("secret\n")); err != nil {
		t.Fatal(err)
	}
	b.expect(t, "cat /work/deep/er/secret; stat -c '%a %u %g' /work/deep/er/secret /work/deep", "secret\n640 1000 1000\n755 1000 1000\n")
}

func testInitIsSafe(t *testing.T, b *booted) {
	e, out, errs := b.shell(t, "root", "for s in HUP INT QUIT TERM KILL USR1 ABRT ALRM PIPE; do kill -$s 1; done; echo alive")
	if out != "alive\n" || e.Code != 0 {
		t.Errorf("exit %+v: %q %q", e, out, errs)
	}
	b.expect(t, "echo still", "still\n")
	// While init forks, its first thread blocks signals and its others do not.
	storm := begin(t, b.Session, guestwire.Start{Argv: []string{"sh", "-c", "while :; do kill -HUP 1; kill -TERM 1; done"}, Cwd: "/", User: "root"}, nil)
	for range 30 {
		b.expect(t, "echo on", "on\n")
	}
	if err := storm.Signal(t.Context(), int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	wait(t, storm)
}

func testLimits(t *testing.T, b *booted) {
	before, err := b.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e, _, _ := b.shell(t, "", "x=a; while :; do x=$x$x; done")
	if e.Signal != uint8(syscall.SIGKILL) || e.Usage.OOMKills <= before.Usage.OOMKills || e.Usage.MemoryPeak < 16<<20 {
		t.Errorf("too much memory: %+v", e)
	}
	e, out, _ := b.shell(t, "", "i=0; while [ $i -lt 100 ]; do sleep 100 & i=$((i+1)); done")
	if e.Usage.ForksRefused <= before.Usage.ForksRefused {
		t.Errorf("too many processes: %+v %q", e, out)
	}
	e, _, _ = b.shell(t, "", "dd if=/dev/zero of=/work/big bs=1M count=100 2>/dev/null")
	if e.Code == 0 || e.Usage.DiskFull != 1 || e.Usage.DiskWritten < 40<<20 {
		t.Errorf("too much on disk: %+v", e)
	}
	e, _, _ = b.shell(t, "", "rm /work/big")
	if e.Usage.DiskFull != 0 || e.Usage.CPUMicros <= before.Usage.CPUMicros {
		t.Errorf("after that: %+v", e)
	}
	b.expect(t, "echo fine", "fine\n")
}

func testStreamBreaks(t *testing.T, b *booted) {
	o := collect(t)
	m := guestwire.Start{Argv: []string{"cat"}, Cwd: "/", StdinOpen: true}
	p := begin(t, b.Session, m, o.sink)
	var want strings.Builder
	for i := range 8 {
		chunk := strings.Repeat(string(rune('a'+i)), 100_000)
		want.WriteString(chunk)
		if _, err := p.Stdin().Write([]byte(chunk)); err != nil {
			t.Fatal(err)
		}
		b.breakStream()
	}
	p.Stdin().Close()
	if e := wait(t, p); e.Code != 0 || o.out.String() != want.String() {
		t.Errorf("exit %+v, %d of %d bytes", e, o.out.Len(), want.Len())
	}
}

// testEnd: with the command everything ends, and a shutdown ends the VM.
func testEnd(t *testing.T, b *booted, command *guestdial.Process) {
	other := begin(t, b.Session, guestwire.Start{Argv: []string{"sleep", "1000"}, Cwd: "/"}, nil)
	if err := command.Signal(t.Context(), int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, command); e.Signal != uint8(syscall.SIGTERM) {
		t.Errorf("the command: %+v", e)
	}
	if e := wait(t, other); e.Signal != uint8(syscall.SIGKILL) {
		t.Errorf("the other: %+v", e)
	}
	if st, err := b.Stats(t.Context()); err != nil || st.Usage.Processes != 0 {
		t.Errorf("left: %+v %v", st, err)
	}
	began := time.Now()
	if err := b.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.vm.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the VM is still on")
	}
	if x := b.vm.Exit(); x.Code != 0 || x.ByKill {
		t.Errorf("the VMM ended with %+v", x)
	}
	t.Logf("shut down after %v", time.Since(began))
	if _, err := b.Stats(t.Context()); !errors.Is(err, guestdial.ErrLost) {
		t.Errorf("after the end: %v", err)
	}
}
