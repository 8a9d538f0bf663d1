package assembly

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/minos"
	"github.com/tartarus-vm/tartarus/internal/control/judges/rhadamanthus"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// judgeBench is the judges in their order. Aeacus has no vote: he writes down what
// the others said.
func judgeBench() *judges.Bench { return judges.New(minos.Minos{}, rhadamanthus.Rhadamanthus{}) }

// lookup is what themis asks of nyx.
type lookup struct{ images *nyx.Store }

func (l lookup) Template(ctx context.Context, name string) (sandbox.Template, error) {
	return l.images.Template(ctx, name)
}

func (l lookup) GuestDigest(ctx context.Context) (sandbox.Digest, error) {
	return l.images.CurrentDigest(ctx)
}

// What a host gives to sandboxes: more vCPUs than it has cores, since most
// wait most of the time; of memory and disk only a part of what there is.
const (
	vcpusPerCore  = 4
	leastVCPUs    = 8
	memoryPercent = 80
	diskPercent   = 80
)

func hostCapacity(root string) (sandbox.Capacity, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return sandbox.Capacity{}, fmt.Errorf("reading the host's memory: %w", err)
	}
	space, err := lethe.Free(root)
	if err != nil {
		return sandbox.Capacity{}, err
	}
	return sandbox.Capacity{
		VCPUs:     max(vcpusPerCore*runtime.NumCPU(), leastVCPUs),
		MemoryMiB: int64(si.Totalram*uint64(si.Unit)>>20) * memoryPercent / 100,
		DiskMiB:   space.FreeMiB * diskPercent / 100,
	}, nil
}

// sweepLocals ends what runs left that were killed: their VMs (which their
// lifeline has ended already), disks and folders.
func (e *embedded) sweepLocals(ctx context.Context) error {
	dirs, err := os.ReadDir(e.paths.locals())
	if err != nil {
		return fmt.Errorf("looking for what was left: %w", err)
	}
	for _, d := range dirs {
		h := home{filepath.Join(e.paths.locals(), d.Name())}
		if h.root == e.home.root || !d.IsDir() {
			continue
		}
		if err := e.sweepLocal(ctx, h); err != nil {
			e.log.Warn("what an earlier run left could not be removed", "folder", h.root, "error", err)
		}
	}
	return nil
}

func (e *embedded) sweepLocal(ctx context.Context, h home) error {
	lock, err := tryLock(h.lock())
	if errors.Is(err, errHeld) || errors.Is(err, os.ErrNotExist) {
		return nil // it lives, or is being made or removed
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, of := range []string{filepath.Join(h.node(), "sandboxes"), h.saves()} {
		vms, err := filepath.Glob(filepath.Join(of, "*", "vm"))
		if err != nil {
			return err
		}
		for _, vm := range vms {
			if err := e.driver.Reap(ctx, vm, handleUnknown); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(h.root)
}
