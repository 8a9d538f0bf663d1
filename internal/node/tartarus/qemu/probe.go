package qemu

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Probe finds out whether QEMU can use KVM here, by booting a guest on it: see
// tartarus.Try.
func Probe(ctx context.Context, cfg Config, t tartarus.Trial) (tartarus.KVMReport, error) {
	if err := tartarus.CheckKVM(tartarus.KVMDevice); err != nil {
		return tartarus.KVMReport{Why: err.Error()}, nil
	}
	cfg.Accel, cfg.KVM = AccelKVM, nil
	d, err := New(ctx, cfg)
	if err != nil {
		return tartarus.KVMReport{}, fmt.Errorf("trying KVM: %w", err)
	}
	// Where only root may open the device no VM can run on it, but whether
	// changing that would help is worth knowing.
	d.asRoot = os.Geteuid() == 0 && kvmAccess() < 0
	r, err := tartarus.Try(ctx, d, t)
	if err == nil && r.Usable && d.asRoot {
		r = tartarus.KVMReport{Why: "a guest boots on it, but only root may open " + tartarus.KVMDevice + ": give it to the group kvm, mode 0660"}
	}
	return r, err
}

// kvmAccess says how a VMM with a user of its own may open /dev/kvm: as
// anybody (0), by a group, or not at all (-1).
func kvmAccess() int {
	info, err := os.Stat(tartarus.KVMDevice)
	if err != nil {
		return -1
	}
	const read, write = 4, 2
	mode := info.Mode().Perm()
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case mode&(read|write) == read|write:
		return 0
	case ok && mode>>3&(read|write) == read|write && st.Gid != 0:
		return int(st.Gid)
	}
	return -1
}
