package firecracker

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/drivertest"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
)

// labBinary is where the lab has Firecracker, with its jailer.
const labBinary = "/opt/firecracker/firecracker"

// labTimeout bounds a case: everything takes longer in a VM in a VM that is
// emulated.
const labTimeout = 3 * time.Minute

// guest is a guest bundle and a template that really boot.
type guest struct {
	bundle nyx.Bundle
	root   string
	disks  *lethe.Store
}

// guestVar names a folder with a guest for a test that may not open the cache.
const guestVar = "TARTARUS_TEST_GUEST"

// labGuest is the guest that the tests of the driver qemu made and left in the
// user's cache, from where the lab got it.
var labGuest = sync.OnceValues(func() (*guest, error) {
	if dir := os.Getenv(guestVar); dir != "" {
		return readyGuest(dir)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "tartarus", "test")
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
	if g.bundle, err = store.CurrentBundle(ctx); err != nil {
		return nil, err
	}
	template, err := store.Template(ctx, "base")
	if err != nil {
		return nil, err
	}
	if g.root, err = store.RootDisk(ctx, template.Digest); err != nil {
		return nil, err
	}
	g.disks, err = lethe.Open(lethe.Config{Dir: filepath.Join(dir, "lethe")})
	return g, err
})

// readyGuest is a guest that somebody else has made.
func readyGuest(dir string) (*guest, error) {
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

func realGuest(t *testing.T) *guest {
	t.Helper()
	g, err := labGuest()
	if err != nil {
		t.Fatalf("there is no guest to boot: %v", err)
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

// withGroups is a driver whose VMs get cgroups, where this user may make them;
// root may everywhere that this project supports.
func withGroups(t *testing.T, cfg Config) *Driver {
	t.Helper()
	parent := "tartarus-test-" + strconv.Itoa(os.Getpid())
	t.Setenv(groupsVar, parent)
	tree, why := groups(parent)
	if tree == nil && os.Getuid() == 0 {
		t.Fatal(why)
	}
	cfg.Cgroups, cfg.NoCgroups = tree, why
	if tree != nil {
		t.Cleanup(func() {
			if names, err := tree.Names(); len(names) > 0 || err != nil {
				t.Errorf("the cgroups %v are left (%v)", names, err)
			}
			if err := tree.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return newDriver(t, cfg)
}

func newDriver(t *testing.T, cfg Config) *Driver {
	t.Helper()
	t.Setenv(binaryVar, cfg.Binary)
	t.Setenv(deviceVar, cfg.device)
	cfg.InsecureTestVMM = true
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestLabDriver is the suite on a real Firecracker: jailed as root, and else
// under the launcher.
func TestLabDriver(t *testing.T) {
	g := realGuest(t)
	drivertest.Run(t, drivertest.Harness{
		New:  func(t *testing.T) tartarus.Driver { return withGroups(t, Config{Binary: labBinary}) },
		Spec: g.fill,
		Broken: func(t *testing.T) (tartarus.Driver, string) {
			d := newDriver(t, Config{Binary: labBinary})
			d.extra = []string{"--no-such-option"}
			return d, "no-such-option"
		},
		KillOutside: killOutside,
		Echo:        []string{"echo"},
		Flood: func(n int) []string {
			return []string{"sh", "-c", "mknod /dev/c c 4 64; head -c " + strconv.Itoa(n) + " /dev/zero | tr '\\0' y >/dev/c"}
		},
		User:  "root",
		Shell: []string{"sh", "-c"},
		// Each byte is an exit of a guest in an emulated guest, a millisecond;
		// that the ring is bounded is seen with the stand-in.
		Flooding: 8 << 10,
		Timeout:  labTimeout,
	})
}

func killOutside(t *testing.T, vm tartarus.VM) {
	t.Helper()
	if err := syscall.Kill(vmmOf(t, vm), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func vmmOf(t *testing.T, of tartarus.VM) int {
	t.Helper()
	v, ok := of.(*vm)
	if !ok {
		t.Fatalf("a VM of type %T", of)
	}
	return v.proc.VMM().Pid
}
