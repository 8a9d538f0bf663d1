package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Each time when the first VM is made or the last one goes, and when the first
// cgroup is limited in CPU time or the last one no more, the kernel rewrites
// code of its scheduler on which its processors are running. It does so by a
// breakpoint that it takes away again, and QEMU, translating for several
// processors at once, sometimes keeps the breakpoint: that processor then
// takes it for ever, and the lab hangs (seen with QEMU 7.2 every few minutes
// of making VMs). A VM and a limit that stay spare the lab all that rewriting.

const (
	kvmCreateVM = 0xae01 // KVM_CREATE_VM of linux/kvm.h
	quietGroup  = "/sys/fs/cgroup/lab"
)

// keepQuiet makes the VM and the limit that stay. What it returns is to be
// kept open for as long as the lab lives.
func keepQuiet() (*os.File, error) {
	if err := os.Mkdir(quietGroup, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(quietGroup, "cpu.max"), []byte("50000 100000"), 0); err != nil {
		return nil, err
	}
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/kvm: %w", err)
	}
	defer unix.Close(kvm)
	vm, err := unix.IoctlRetInt(kvm, kvmCreateVM)
	if err != nil {
		return nil, fmt.Errorf("making a VM that stays: %w", err)
	}
	unix.CloseOnExec(vm)
	return os.NewFile(uintptr(vm), "a VM that stays"), nil
}
