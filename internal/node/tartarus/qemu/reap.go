package qemu

import (
	"context"
	"fmt"

	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Reap ends what an earlier process of this agent left: see tartarus.Driver.
func (d *Driver) Reap(ctx context.Context, dir string, h tartarus.Handle) error {
	if err := d.reap(ctx, dir, h); err != nil {
		return fmt.Errorf("ending what is left in %s: %w", dir, err)
	}
	removeFiles(dir)
	return nil
}

// reap goes by the handle and by what the launcher left in the folder: either
// may be missing, or name a VM of an earlier attempt.
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
	return d.reapGroup(ctx, dir, h.Cgroup)
}
