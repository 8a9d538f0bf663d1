package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// groupFile, in a VM's folder, holds the name of its cgroup, for a Reap that
// comes without a handle. It is written before the group is made.
const groupFile = "cgroup"

const (
	// vmmThreads are QEMU's, with those that serve its disks, and the
	// launcher's.
	vmmThreads = 256

	// vmmCPUs is for what QEMU does besides running the vCPUs.
	vmmCPUs = 0.5
)

// makeGroup makes the cgroup of a VM: guest and VMM together may take what
// placement counted for them. nil without a tree.
func (d *Driver) makeGroup(name, dir string, memoryMiB int64, vcpus int) (*cgroup.Group, error) {
	if d.cfg.Cgroups == nil {
		return nil, nil
	}
	if err := os.WriteFile(filepath.Join(dir, groupFile), []byte(name), 0o600); err != nil {
		return nil, err
	}
	return d.cfg.Cgroups.Create(name, cgroup.Limits{
		MemoryMiB: memoryMiB + d.overhead,
		CPUs:      float64(vcpus) + vmmCPUs,
		Pids:      vmmThreads,
	})
}

// reapGroup removes the cgroup of a VM that is gone, by the name in its handle
// or its folder.
func (d *Driver) reapGroup(ctx context.Context, dir, name string) error {
	if d.cfg.Cgroups == nil {
		return nil
	}
	noted, err := os.ReadFile(filepath.Join(dir, groupFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, n := range []string{name, strings.TrimSpace(string(noted))} {
		if g := d.cfg.Cgroups.Open(n); g != nil {
			if err := g.Remove(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// groupless adds to i that there are no cgroups, and why.
func (d *Driver) groupless(i sandbox.Isolation) sandbox.Isolation {
	if d.cfg.Cgroups == nil {
		why := d.cfg.NoCgroups
		if why == "" {
			why = "no cgroups were asked for"
		}
		i.Missing = append(i.Missing, fmt.Sprintf("%s: %s", cgroup.LayerMemory, why))
	}
	return i
}
