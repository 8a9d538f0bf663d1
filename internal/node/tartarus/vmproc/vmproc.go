// Package vmproc is a VMM as a process of its host, whatever VMM it is: its
// handle, its cgroup, what it uses, and the end of one that was left.
package vmproc

import (
	"context"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Kind is what all VMMs of one driver have in common.
type Kind struct {
	Driver      string       // its name
	Cgroups     *cgroup.Tree // nil: no VM gets a group
	NoCgroups   string       // why Cgroups is nil
	OverheadMiB int64        // that a VM may take beyond its guest's memory
	Threads     int          // that a VMM may have, and its launcher
}

// Handle is what finds the process again. group may be nil.
func (k Kind) Handle(p *launcher.Process, group *cgroup.Group) tartarus.Handle {
	id := p.Identity()
	h := tartarus.Handle{Driver: k.Driver, Pid: id.Pid, StartTime: id.StartTime, BootID: id.BootID}
	if group != nil {
		h.Cgroup = group.Name()
	}
	return h
}

// Exit is the launcher's account of an end in the words of the seam.
func Exit(e launcher.Exit) tartarus.Exit {
	return tartarus.Exit{At: e.At, Code: e.Code, Signal: e.Signal}
}

// Reap ends the VMM that an earlier agent left, and removes its cgroup. It
// goes by the handle and by what is noted in the VM's folder: either may be
// missing, or name a VM of an earlier attempt.
func (k Kind) Reap(ctx context.Context, dir string, h tartarus.Handle) error {
	if h.Pid > 0 && h.Driver == k.Driver {
		id := launcher.Identity{Pid: h.Pid, StartTime: h.StartTime, BootID: h.BootID}
		if err := launcher.KillLeftover(ctx, id); err != nil {
			return err
		}
	}
	if err := launcher.KillLeftoverIn(ctx, dir); err != nil {
		return err
	}
	return k.reapGroup(ctx, dir, h.Cgroup)
}
