package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// vmmThreads are QEMU's, with those that serve its disks, and the launcher's.
const vmmThreads = 256

// launch starts QEMU confined. It may read its program's surroundings, kernel
// and initramfs, and open nothing else.
func (d *Driver) launch(ctx context.Context, b boot, files []*os.File, group *cgroup.Group) (*launcher.Process, error) {
	if b.spec.NIC != nil { // as fdCard
		files = append(slices.Clone(files), b.spec.NIC.TAP)
	}
	return launcher.Start(ctx, d.confined(launcher.Spec{
		Argv:     append([]string{d.binary}, b.args()...),
		Dir:      b.spec.Dir,
		ReadOnly: []string{b.spec.Kernel, b.spec.Initrd},
		Files:    files,
		OwnFiles: b.spec.Save != nil || b.spec.Restore != nil,
		UID:      b.spec.UID,
		GID:      b.spec.GID,
		Lifeline: b.spec.Lifeline,
		Cgroup:   group,
	}))
}

// confined adds to s what every QEMU has in common.
func (d *Driver) confined(s launcher.Spec) launcher.Spec {
	s.Env = environment()
	s.ReadOnly = append(s.ReadOnly, d.readable...)
	s.Syscalls = syscalls
	s.Require = d.cfg.Require
	if os.Geteuid() == 0 && s.UID == 0 && !d.asRoot {
		s.UID, s.GID = nobody, nobody
	}
	if d.accel == "kvm" {
		s.Devices = []string{tartarus.KVMDevice}
		s.Syscalls = append(append([]string{}, syscalls...), syscallsKVM...)
		if gid := kvmAccess(); gid > 0 {
			s.GID = gid
		}
	}
	return s
}

const nobody = 65534 // runs a VMM for which the agent chose no user

// surroundings are what QEMU reads to start: libraries, modules, firmware.
func surroundings(data []string) ([]string, error) {
	var out []string
	for _, p := range []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"} {
		if _, err := os.Stat(p); err == nil {
			out = append(out, p)
		}
	}
	for _, p := range data {
		p = filepath.Clean(p)
		if _, err := os.Stat(p); err != nil || !filepath.IsAbs(p) {
			continue // QEMU names folders that need not be there
		}
		out = append(out, p)
		// Packages link firmware from each other's folders.
		links, err := linked(p)
		if err != nil {
			return nil, err
		}
		out = append(out, links...)
	}
	return out, nil
}

// linked are the folders outside dir that links in dir lead to.
func linked(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for firmware: %w", err)
	}
	var out []string
	for _, e := range entries {
		if e.Type()&os.ModeSymlink == 0 {
			continue
		}
		to, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil || strings.HasPrefix(to, dir+"/") {
			continue
		}
		out = append(out, filepath.Dir(to))
	}
	return out, nil
}
