package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Reap ends what an earlier process of this agent left: see tartarus.Driver.
func (d *Driver) Reap(ctx context.Context, dir string, h tartarus.Handle) error {
	if err := d.reap(ctx, dir, h); err != nil {
		return fmt.Errorf("ending what is left in %s: %w", dir, err)
	}
	return nil
}

// reap goes by the handle and by what the launcher left in the folder: either
// may be missing, or name a VM of an earlier attempt. A jail ends with its
// process.
func (d *Driver) reap(ctx context.Context, dir string, h tartarus.Handle) error {
	if h.Pid > 0 && h.Driver == Name {
		id := launcher.Identity{Pid: h.Pid, StartTime: h.StartTime, BootID: h.BootID}
		if err := launcher.KillLeftover(ctx, id); err != nil {
			return err
		}
	}
	if err := launcher.KillLeftoverIn(ctx, dir); err != nil {
		return err
	}
	if err := d.reapGroup(ctx, dir, h.Cgroup); err != nil {
		return err
	}
	return removeFiles(dir)
}

// groupFile, in a VM's folder, holds the name of its cgroup, for a Reap that
// comes without a handle. It is written before the group is made.
const groupFile = "cgroup"

const (
	// vmmThreads are Firecracker's, one a vCPU and a few more, and the
	// launcher's.
	vmmThreads = 128

	// vmmCPUs is for what Firecracker does besides running the vCPUs.
	vmmCPUs = 0.5
)

// makeGroup makes the cgroup of a VM: guest and VMM together may take what
// placement counted for them. nil without a tree.
func (d *Driver) makeGroup(b boot) (*cgroup.Group, error) {
	if d.cfg.Cgroups == nil {
		return nil, nil
	}
	if err := os.WriteFile(filepath.Join(b.spec.Dir, groupFile), []byte(b.id), 0o600); err != nil {
		return nil, err
	}
	return d.cfg.Cgroups.Create(b.id, cgroup.Limits{
		MemoryMiB: b.spec.MemoryMiB + d.overhead,
		CPUs:      float64(b.spec.VCPUs) + vmmCPUs,
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
