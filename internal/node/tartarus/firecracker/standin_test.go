package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/drivertest"
)

// standinVar names a folder with the stand-in for a test that cannot build it.
const standinVar = "TARTARUS_TEST_STANDIN"

// buildStandin makes the program that plays Firecracker, once, and tells where.
// It is not copied: a program that was written while another test forked is
// busy for a moment.
var buildStandin = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(standinVar); dir != "" {
		return filepath.Join(dir, "standin"), nil
	}
	dir, err := os.MkdirTemp("", "tartarus-standin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "standin")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/vmmtest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("building the stand-in: %w: %s", err, out), os.RemoveAll(dir))
	}
	return path, nil
})

// removeStandin takes away what buildStandin made, if it did.
func removeStandin() error {
	if os.Getenv(standinVar) != "" || !standinUsed.Load() {
		return nil
	}
	path, err := buildStandin()
	if err != nil {
		return nil
	}
	return os.RemoveAll(filepath.Dir(path))
}

var standinUsed atomic.Bool

// standin is a Firecracker that follows the script, with its jailer.
func standin(t *testing.T, script string) string {
	t.Helper()
	standinUsed.Store(true)
	program, err := buildStandin()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(openDirFor(t), script)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	vmm := filepath.Join(dir, "firecracker")
	if err := errors.Join(os.Link(program, vmm), os.Link(program, filepath.Join(dir, "jailer"))); err != nil {
		t.Fatal(err)
	}
	return vmm
}

// openDirFor is a temporary folder that everybody may pass.
func openDirFor(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// scripted is the settings of a driver of a stand-in.
func scripted(t *testing.T, script string) Config {
	t.Helper()
	return Config{Binary: standin(t, script), InsecureTestVMM: true, device: os.DevNull, StartTimeout: 10 * time.Second}
}

// fillDummy gives a VM files that nobody boots.
func fillDummy(t *testing.T, s *tartarus.Spec) {
	t.Helper()
	dir := openDirFor(t)
	for _, f := range []struct {
		path *string
		name string
	}{{&s.Kernel, "kernel"}, {&s.Initrd, "initrd"}, {&s.Root, "root"}} {
		*f.path = filepath.Join(dir, f.name)
		if err := os.WriteFile(*f.path, []byte(f.name), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	s.MemoryMiB = 128
	if err := os.WriteFile(s.Scratch, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDriver is the suite on a stand-in: all but the VM is real.
func TestDriver(t *testing.T) {
	drivertest.Run(t, drivertest.Harness{
		New:  func(t *testing.T) tartarus.Driver { return withGroups(t, scripted(t, "good")) },
		Spec: fillDummy,
		Broken: func(t *testing.T) (tartarus.Driver, string) {
			d := newDriver(t, scripted(t, "good"))
			d.extra = []string{"--die"}
			return d, "the end was asked for"
		},
		KillOutside: killOutside,
		Echo:        []string{"echo"},
		Flood:       func(n int) []string { return []string{"console", strconv.Itoa(n)} },
	})
}

// TestAsOrdinaryUser runs what needs no KVM once more without any rights.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("the other tests have done it already")
		return
	}
	standinUsed.Store(true)
	program, err := buildStandin()
	if err != nil {
		t.Fatal(err)
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
	tmp := filepath.Join(dir, "tmp")
	copyFile(t, self, filepath.Join(dir, "test"), 0o555)
	copyFile(t, program, filepath.Join(dir, "standin"), 0o555)
	// Only a file of one's own can be linked.
	err = errors.Join(os.Chown(filepath.Join(dir, "standin"), nobody, nobody), os.Mkdir(tmp, 0o700),
		os.Chown(tmp, nobody, nobody), os.Chmod(dir, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "test"), "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "TMPDIR=" + tmp, standinVar + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestDriver/GuestsEnd")) {
		t.Errorf("%v:\n%s", err, out)
	}
}
