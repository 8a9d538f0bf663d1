package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// The files that a VM has in its folder, besides the launcher's.
const (
	monitorSocket = "qmp.sock"
	guestSocket   = "guest.sock"
)

// startKillTimeout bounds the end of a VM whose start failed.
const startKillTimeout = 15 * time.Second

// Start makes a VM and boots it: see tartarus.Driver.
func (d *Driver) Start(ctx context.Context, s tartarus.Spec) (tartarus.VM, error) {
	if err := d.check(s); err != nil {
		return nil, err
	}
	v, err := d.start(ctx, boot{machine: d.machine, accel: d.accel, tscKHz: d.tscKHz, spec: s})
	if err != nil {
		return nil, fmt.Errorf("starting vm %q: %w", s.ID, err)
	}
	return v, nil
}

// check refuses what cannot start before anything is made.
func (d *Driver) check(s tartarus.Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if s.VCPUs > maxVCPUs {
		return fault.Invalid("vcpus", fmt.Sprintf("give at most %d", maxVCPUs), "%d vCPUs are more than this driver can give", s.VCPUs)
	}
	if err := d.info.CheckNIC(s.NIC); err != nil {
		return err
	}
	if err := d.info.CheckSnapshot(s); err != nil {
		return err
	}
	return s.CheckFiles()
}

// start launches QEMU, speaks to its monitor and lets the guest go. On an
// error nothing is left.
func (d *Driver) start(ctx context.Context, b boot) (_ *vm, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v := newVM(d, b.spec)
	defer func() {
		if err == nil {
			return
		}
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startKillTimeout)
		defer cancel()
		if v.proc != nil {
			err = v.withLastWords(errors.Join(err, v.proc.Kill(kctx)))
		}
		err = errors.Join(err, v.remove(kctx))
	}()
	files, err := openFiles(b)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	given, err := v.snapshotFiles()
	if err != nil {
		return nil, err
	}
	if v.group, err = d.kind.Group(b.spec.Dir, string(b.spec.ID), b.spec.MemoryMiB, b.spec.VCPUs); err != nil {
		return nil, err
	}
	if v.proc, err = d.launch(ctx, b, slices.Concat(files, given), v.group); err != nil {
		return nil, err
	}
	// QEMU alone holds the sockets and disks now: a monitor whose QEMU has
	// ended must fail rather than wait.
	closeAll(files)
	v.handle = d.kind.Handle(v.proc, v.group)
	if err := v.attach(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// openFiles opens what QEMU is born with, in the order of the fd constants.
func openFiles(b boot) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
		}
	}()
	for _, name := range []string{monitorSocket, guestSocket} {
		f, err := listen(filepath.Join(b.spec.Dir, name))
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	root, err := os.Open(b.spec.Root)
	if err != nil {
		return files, fault.Invalid("root", "make the template's disk readable", "opening the root disk: %v", err)
	}
	files = append(files, root)
	scratch, err := os.OpenFile(b.spec.Scratch, os.O_RDWR, 0)
	if err != nil {
		return files, fault.Invalid("scratch", "make the scratch disk writable", "opening the scratch disk: %v", err)
	}
	files = append(files, scratch)
	// The lock belongs to the open file, so it lasts as long as QEMU has it.
	if err := unix.Flock(int(scratch.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return files, fault.Wrap(fault.Conflict, err, "the scratch disk is in use by another VM")
	}
	return files, nil
}

// snapshotFiles are those that come after the disks, and stay open: fdMemory
// and fdState.
func (v *vm) snapshotFiles() ([]*os.File, error) {
	switch {
	case v.spec.Save != nil:
		var err error
		if v.memory, err = newMemory("tartarus-guest", v.spec.MemoryMiB<<20); err != nil {
			return nil, err
		}
		return []*os.File{v.memory}, nil
	case v.spec.Restore != nil:
		memory, err := v.d.memories.sealed(v.spec.Restore.Memory)
		if err != nil {
			return nil, err
		}
		return []*os.File{memory, v.spec.Restore.State}, nil
	}
	return nil, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // read by QEMU, or closed before
	}
}

// withLastWords adds what QEMU said to an error of its start.
func (v *vm) withLastWords(err error) error {
	if words := v.lastWords(); words != "" {
		return fmt.Errorf("%w; qemu said: %s", err, words)
	}
	return err
}
