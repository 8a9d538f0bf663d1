package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/drivertest"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
)

func TestMain(m *testing.M) {
	launcher.Main()
	drivertest.HelperMain(func() (tartarus.Driver, error) {
		tree, why := groups(os.Getenv(groupsVar))
		return New(context.Background(), Config{Cgroups: tree, NoCgroups: why})
	})
	goleak.VerifyTestMain(m)
}

// groupsVar tells an agent that dies where this test has its cgroups.
const groupsVar = "TARTARUS_TEST_CGROUPS"

// groups is a tree of cgroups of this test's own, where this user may make
// any; else it says why not.
func groups(parent string) (*cgroup.Tree, string) {
	tree, err := cgroup.Detect(cgroup.Config{Parent: parent})
	if err != nil {
		return nil, err.Error()
	}
	return tree, ""
}

// guest is a guest bundle and a template that really boot. They are made once
// and kept in the user's cache, because the kernel is a download.
type guest struct {
	bundle nyx.Bundle
	root   string
	disks  *lethe.Store
}

var makeGuest = sync.OnceValues(func() (*guest, error) {
	if dir := os.Getenv(guestVar); dir != "" {
		return ready(dir)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "tartarus", "test")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "tartarus-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) // one file
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tmp, "init"), "github.com/tartarus-vm/tartarus/cmd/tartarus-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the guest's init: %w: %s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(tmp, "init"))
	if err != nil {
		return nil, err
	}
	return fillCache(dir, program)
})

// ready is a guest that somebody else has made.
func ready(dir string) (*guest, error) {
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil, err
	}
	g := &guest{root: filepath.Join(dir, "root"), bundle: nyx.Bundle{
		Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"), Cmdline: string(cmdline),
	}}
	g.disks, err = lethe.Open(lethe.Config{Dir: filepath.Join(dir, "tmp", "lethe")})
	return g, err
}

func fillCache(dir string, init []byte) (*guest, error) {
	blobs, err := dirblobs.Open(dirblobs.Config{Dir: filepath.Join(dir, "blobs")})
	if err != nil {
		return nil, err
	}
	store, err := nyx.Open(nyx.Config{Dir: filepath.Join(dir, "nyx"), Blobs: blobs})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	g := &guest{}
	if g.bundle, err = store.EnsureBundle(ctx, init, nil); err != nil {
		return nil, err
	}
	template, err := store.EnsureTemplate(ctx, "base", nil)
	if err != nil {
		return nil, err
	}
	if g.root, err = store.RootDisk(ctx, template.Digest); err != nil {
		return nil, err
	}
	g.disks, err = lethe.Open(lethe.Config{Dir: filepath.Join(dir, "lethe")})
	return g, err
}

// real is what a real VM needs. Without it the test fails: a driver that was
// never tried is not known to work.
func real(t *testing.T) *guest {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: boots real VMs")
	}
	g, err := makeGuest()
	if err != nil {
		t.Fatalf("there is no guest to boot: %v\ninstall qemu-system-x86, busybox-static and e2fsprogs, and let apt reach its mirror (`make test` does)", err)
	}
	return g
}

func (g *guest) fill(t *testing.T, s *tartarus.Spec) {
	t.Helper()
	s.Kernel, s.Initrd, s.Cmdline, s.Root = g.bundle.Kernel, g.bundle.Initrd, g.bundle.Cmdline, g.root
	s.MemoryMiB = 128
	if err := g.disks.Create(t.Context(), s.Scratch, 64); err != nil {
		t.Fatal(err)
	}
}

func newDriver(t *testing.T, cfg Config) *Driver {
	t.Helper()
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// bounded is a driver whose VMs get cgroups, where this user may make them;
// root may everywhere that this project supports.
func bounded(t *testing.T) *Driver {
	t.Helper()
	parent := "tartarus-test-" + strconv.Itoa(os.Getpid())
	t.Setenv(groupsVar, parent)
	tree, why := groups(parent)
	if tree == nil {
		if os.Getuid() == 0 {
			t.Fatal(why)
		}
		return newDriver(t, Config{NoCgroups: why})
	}
	t.Cleanup(func() {
		if names, err := tree.Names(); len(names) > 0 || err != nil {
			t.Errorf("the cgroups %v are left (%v)", names, err)
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return newDriver(t, Config{Cgroups: tree})
}

func TestDriver(t *testing.T) {
	g := real(t)
	began := time.Now()
	drivertest.Run(t, drivertest.Harness{
		New:  func(t *testing.T) tartarus.Driver { return bounded(t) },
		Spec: g.fill,
		Broken: func(t *testing.T) (tartarus.Driver, string) {
			d := newDriver(t, Config{})
			d.machine.options = "microvm,acpi=perhaps"
			return d, "does not accept value 'perhaps'"
		},
		KillOutside: func(t *testing.T, vm tartarus.VM) {
			if err := syscall.Kill(vmmOf(t, vm), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Echo: []string{"echo"},
		Flood: func(n int) []string {
			return []string{"sh", "-c", "mknod /dev/c c 4 64; yes | head -c " + strconv.Itoa(n) + " >/dev/c"}
		},
		User:  "root",
		Shell: []string{"sh", "-c"},
	})
	t.Logf("in all %v", time.Since(began))
}

func vmmOf(t *testing.T, of tartarus.VM) int {
	t.Helper()
	v, ok := of.(*vm)
	if !ok {
		t.Fatalf("a VM of type %T", of)
	}
	return v.proc.VMM().Pid
}
