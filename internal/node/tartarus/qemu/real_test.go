package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// spec is that of a VM of its own.
func (g *guest) spec(t *testing.T) tartarus.Spec {
	t.Helper()
	dir := t.TempDir()
	id := sandbox.MakeID(ulid.Make().String())
	s := tartarus.Spec{ID: id, Dir: filepath.Join(dir, string(id)), Scratch: filepath.Join(dir, "scratch"), VCPUs: 1}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	g.fill(t, &s)
	return s
}

// started starts a VM that ends with the test.
func started(t *testing.T, d *Driver, s tartarus.Spec) *vm {
	t.Helper()
	v, err := d.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), endTimeout)
		defer cancel()
		if err := v.Kill(ctx); err != nil {
			t.Error(err)
		}
	})
	return v.(*vm)
}

// TestConfined looks at a living QEMU from outside: what records say of its
// isolation is so.
func TestConfined(t *testing.T) {
	g := real(t)
	d := bounded(t)
	s := g.spec(t)
	s.UID, s.GID = 54321, 54322
	v := started(t, d, s)
	is := v.Isolation()
	if !slices.Equal(slices.Sorted(slices.Values(is.Confinement)), slices.Sorted(slices.Values(d.Info().Isolation.Confinement))) {
		t.Errorf("Info promises %v, the VM has %v", d.Info().Isolation.Confinement, is.Confinement)
	}
	for _, layer := range []string{launcher.LayerSession, launcher.LayerNoNewPrivs, launcher.LayerCapabilities, launcher.LayerRlimits, launcher.LayerSeccomp} {
		if !slices.Contains(is.Confinement, layer) {
			t.Errorf("%s is not on: %v, missing %v", layer, is.Confinement, is.Missing)
		}
	}
	proc := "/proc/" + strconv.Itoa(vmmOf(t, v))
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	wants := []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"}
	if os.Getuid() == 0 {
		wants = append(wants, "Uid:\t54321\t54321\t54321\t54321", "Gid:\t54322\t54322\t54322\t54322")
	}
	for _, want := range wants {
		if !strings.Contains(string(status), want+"\n") {
			t.Errorf("%s is not in\n%s", want, status)
		}
	}
	disks(t, proc, s)
}

// disks: QEMU holds the template's disk for reading only, and of the VM's
// files nothing but the scratch disk for writing.
func disks(t *testing.T, proc string, s tartarus.Spec) {
	t.Helper()
	fds, err := os.ReadDir(proc + "/fd")
	if errors.Is(err, os.ErrPermission) {
		return // it is not dumpable for an ordinary user
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, fd := range fds {
		to, err := os.Readlink(proc + "/fd/" + fd.Name())
		if err != nil || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "/dev/null") || strings.HasPrefix(to, "/memfd:") {
			continue
		}
		info, err := os.ReadFile(proc + "/fdinfo/" + fd.Name())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			if flags, ok := strings.CutPrefix(line, "flags:\t"); ok {
				n, err := strconv.ParseInt(strings.TrimSpace(flags), 8, 64)
				if err != nil {
					t.Fatal(err)
				}
				seen[to] += []string{"read", "write", "both"}[n&syscall.O_ACCMODE]
			}
		}
	}
	for path, how := range seen {
		writable := strings.Trim(how, "read") != ""
		if writable != (path == s.Scratch) {
			t.Errorf("QEMU has %s open for %s", path, how)
		}
	}
	if seen[s.Root] == "" || seen[s.Scratch] == "" {
		t.Errorf("QEMU has %v open", seen)
	}
}

// TestGuestPanics: a kernel that cannot go on ends its VM, Boot tries again
// and gives up, and the console tells why.
func TestGuestPanics(t *testing.T) {
	g := real(t)
	s := g.spec(t)
	s.Cmdline = "rdinit=/nonexistent"
	var console bytes.Buffer
	began := time.Now()
	_, n, err := tartarus.Boot(t.Context(), newDriver(t, Config{}), s, func(ctx context.Context, vm tartarus.VM) error {
		conn, err := vm.Dial(ctx)
		if err == nil {
			err = conn.Close()
		}
		return err
	}, tartarus.BootPolicy{Attempts: 2, GivenUp: func(_ int, vm tartarus.VM, _ error) {
		if err := vm.Console(&console); err != nil {
			t.Error(err)
		}
	}})
	if !fault.Is(err, fault.Unavailable) || n != 2 || !strings.Contains(err.Error(), "ended before its guest answered") {
		t.Errorf("attempt %d: %v", n, err)
	}
	if strings.Count(console.String(), "Kernel panic") < 2 || time.Since(began) > 30*time.Second {
		t.Errorf("after %v the console says %q", time.Since(began), console.String())
	}
}

// TestStopped: a QEMU that does nothing any more keeps nobody waiting for
// longer than they allow, and can be killed.
func TestStopped(t *testing.T) {
	g := real(t)
	v := started(t, newDriver(t, Config{}), g.spec(t))
	if err := syscall.Kill(vmmOf(t, v), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := v.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("pausing: %v", err)
	}
	if _, err := v.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dialling: %v", err)
	}
	began := time.Now()
	if err := v.Console(io.Discard); err != nil || time.Since(began) > 2*consoleTimeout {
		t.Errorf("the console after %v: %v", time.Since(began), err)
	}
	if _, err := v.Sample(); err != nil {
		t.Error(err)
	}
	began = time.Now()
	if err := v.Kill(t.Context()); err != nil || time.Since(began) > time.Second {
		t.Errorf("killed after %v: %v", time.Since(began), err)
	}
}

// TestHostLimit: a VM that takes more than was counted for it is ended by the
// host's cgroup, and its end says so.
func TestHostLimit(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("an ordinary user has no cgroups here")
		return
	}
	g := real(t)
	d := bounded(t)
	d.kind.OverheadMiB = -16 // as if QEMU took much more
	v := started(t, d, g.spec(t))
	select {
	case <-v.Done():
	case <-time.After(20 * time.Second):
		s, err := v.Sample()
		t.Fatalf("it lives: %+v, %v", s, err)
	}
	if e := v.Exit(); !e.OOMKill || e.ByKill || e.Signal != int(syscall.SIGKILL) {
		t.Errorf("it ended by %+v", e)
	}
	if s, err := v.Sample(); err != nil || s.OOMKills == 0 {
		t.Errorf("the last sample is %+v, %v", s, err)
	}
}

// guestVar names a folder with a guest for a test that may not make one.
const guestVar = "TARTARUS_TEST_GUEST"

// TestAsOrdinaryUser runs the suite once more without any rights.
func TestAsOrdinaryUser(t *testing.T) {
	g := real(t)
	if os.Getuid() != 0 {
		t.Log("TestDriver has done it already")
		return
	}
	dir, err := os.MkdirTemp("", "tartarus-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copies := map[string]string{"test": self, "kernel": g.bundle.Kernel, "initrd": g.bundle.Initrd, "root": g.root}
	for name, from := range copies {
		copyFile(t, from, filepath.Join(dir, name), map[bool]os.FileMode{true: 0o555, false: 0o444}[name == "test"])
	}
	if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(g.bundle.Cmdline), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "tmp"), 0o700), os.Chown(filepath.Join(dir, "tmp"), nobody, nobody), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "test"), "-test.run=^(TestDriver|TestConfined)$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + filepath.Join(dir, "tmp"), guestVar + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestDriver/GuestsEnd")) || !bytes.Contains(out, []byte("--- PASS: TestConfined")) {
		t.Errorf("%v:\n%s", err, out)
	}
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestSealedCopy: a sealed copy is of what the file holds now, and nobody can
// write it.
func TestSealedCopy(t *testing.T) {
	name := filepath.Join(t.TempDir(), "memory")
	var m memories
	for _, want := range []string{"first", "the second"} {
		if err := os.WriteFile(name, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 2 {
			c, err := m.sealed(f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.NewSectionReader(c, 0, 100))
			if err != nil || string(got) != want {
				t.Errorf("the copy of %q is %q (%v)", want, got, err)
			}
			if _, err := c.WriteAt([]byte("x"), 0); err == nil {
				t.Error("a sealed copy was written")
			}
		}
	}
	if len(m.all) != 2 {
		t.Errorf("there are %d copies", len(m.all))
	}
}
