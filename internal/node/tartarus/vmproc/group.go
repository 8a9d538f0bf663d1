package vmproc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
)

// groupFile, in a VM's folder, holds the name of its cgroup, for a Reap that
// comes without a handle. It is there before the group is, and until the group
// is gone.
const groupFile = "cgroup"

// spareCPUs is for what a VMM does besides running the vCPUs.
const spareCPUs = 0.5

// Group makes the cgroup of the VM in dir: guest and VMM together may take
// what placement counted for them. nil without cgroups. DropGroup removes it,
// after an error too.
func (k Kind) Group(dir, name string, memoryMiB int64, vcpus int) (*cgroup.Group, error) {
	if k.Cgroups == nil {
		return nil, nil
	}
	if err := os.WriteFile(filepath.Join(dir, groupFile), []byte(name), 0o600); err != nil {
		return nil, err
	}
	return k.Cgroups.Create(name, cgroup.Limits{
		MemoryMiB: memoryMiB + k.OverheadMiB,
		CPUs:      float64(vcpus) + spareCPUs,
		Pids:      k.Threads,
	})
}

// Groupless is why VMs get no group, "" if they do.
func (k Kind) Groupless() string {
	switch {
	case k.Cgroups != nil:
		return ""
	case k.NoCgroups == "":
		return "no cgroups were asked for"
	}
	return k.NoCgroups
}

// DropGroup removes what Group made for the VM in dir, whose VMM has ended. It
// may be called again, and with nil.
func DropGroup(ctx context.Context, dir string, g *cgroup.Group) error {
	if g != nil {
		if err := g.Remove(ctx); err != nil {
			return err
		}
	}
	forgetGroup(dir)
	return nil
}

// reapGroup removes the cgroup of a VM that is gone, by the name in its handle
// or its folder.
func (k Kind) reapGroup(ctx context.Context, dir, name string) error {
	if k.Cgroups != nil {
		noted, err := os.ReadFile(filepath.Join(dir, groupFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, n := range []string{name, strings.TrimSpace(string(noted))} {
			if g := k.Cgroups.Open(n); g != nil {
				if err := g.Remove(ctx); err != nil {
					return err
				}
			}
		}
	}
	forgetGroup(dir)
	return nil
}

func forgetGroup(dir string) {
	_ = os.Remove(filepath.Join(dir, groupFile)) // the caller removes the folder
}
