package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcapi"
)

// startKillTimeout bounds the end of a VM whose start failed.
const startKillTimeout = 15 * time.Second

// boot is what is to be started: a VM, or without disks a Firecracker that
// runs none.
type boot struct {
	id    string // of the jail
	disks bool
	spec  tartarus.Spec
}

// Start makes a VM and boots it: see tartarus.Driver.
func (d *Driver) Start(ctx context.Context, s tartarus.Spec) (tartarus.VM, error) {
	if err := d.check(s); err != nil {
		return nil, err
	}
	sctx, cancel := context.WithTimeout(ctx, d.cfg.StartTimeout)
	defer cancel()
	v, err := d.start(sctx, boot{id: string(s.ID), disks: true, spec: s})
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			err = fault.Wrap(fault.Unavailable, err, "firecracker did not answer in %v", d.cfg.StartTimeout).
				WithHint("the host may be overloaded; `tartarus doctor` boots a guest and tells what happens")
		}
		return nil, fmt.Errorf("starting vm %q: %w", s.ID, err)
	}
	return v, nil
}

// check refuses what cannot start before anything is made.
func (d *Driver) check(s tartarus.Spec) error {
	if err := errors.Join(s.Validate(), d.Info().CheckNIC(s.NIC), d.Info().CheckSnapshot(s)); err != nil {
		return err
	}
	if s.VCPUs > maxVCPUs {
		return fault.Invalid("vcpus", fmt.Sprintf("give at most %d", maxVCPUs), "%d vCPUs are more than this driver can give", s.VCPUs)
	}
	if err := s.CheckFiles(); err != nil {
		return err
	}
	for _, f := range []struct{ field, path string }{{"kernel", s.Kernel}, {"initrd", s.Initrd}, {"root", s.Root}} {
		if !d.readable(f.path) {
			return fault.Invalid(f.field, "make it readable for everyone: chmod 0444", "the VMM's user cannot read the %s of the VM", f.field)
		}
	}
	return nil
}

// readable reports whether the VMM's user may read a shared file, as far as
// its mode says. An ordinary user's VMM is that user's.
func (d *Driver) readable(path string) bool {
	const anybody = 0o004
	info, err := os.Stat(path)
	return d.jailer == "" || err != nil || info.Mode()&anybody != 0
}

// start launches Firecracker and, if there are disks, has it boot. On an error
// nothing is left.
func (d *Driver) start(ctx context.Context, b boot) (_ *vm, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 && b.spec.UID == 0 {
		b.spec.UID, b.spec.GID = nobody, nobody
	}
	v := newVM(d, b)
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
	scratch, err := d.takeScratch(b)
	if err != nil {
		return nil, err
	}
	if scratch != nil {
		defer scratch.Close() // the launcher holds a copy
	}
	memory := b.spec.MemoryMiB
	if b.spec.Save != nil {
		memory *= 2 // what it writes counts as its own, and may lie in memory too
	}
	if v.group, err = d.kind.Group(b.spec.Dir, b.id, memory, b.spec.VCPUs); err != nil {
		return nil, err
	}
	if v.proc, err = d.launch(ctx, b, scratch, v.group); err != nil {
		return nil, err
	}
	v.handle = d.kind.Handle(v.proc, v.group)
	if err := v.attach(ctx); err != nil {
		return nil, err
	}
	return v, nil
}

// takeScratch opens the scratch disk, locks it for the VM's life, and makes it
// the VMM's own: nobody else has it.
func (d *Driver) takeScratch(b boot) (_ *os.File, err error) {
	if !b.disks {
		return nil, nil
	}
	f, err := os.OpenFile(b.spec.Scratch, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fault.Invalid("scratch", "make the scratch disk writable", "opening the scratch disk: %v", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	// The lock belongs to the open file, so it lasts as long as the launcher
	// holds it: the VMM opens the disk by path.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "the scratch disk is in use by another VM")
	}
	if d.jailer != "" {
		if err := f.Chown(b.spec.UID, b.spec.GID); err != nil {
			return nil, fmt.Errorf("giving the scratch disk to the VMM's user: %w", err)
		}
	}
	return f, nil
}

// step is a part of what Firecracker is told.
type step struct {
	name string
	do   func() error
}

func follow(steps []step) error {
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// configure tells a Firecracker what to run, and has it run it. The drives'
// order is that of the guest's devices.
func (v *vm) configure(ctx context.Context) []step {
	s := v.boot.spec
	return []step{
		{"sizing the machine", func() error {
			return v.api.PutMachineConfig(ctx, fcapi.MachineConfig{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB})
		}},
		{"naming the kernel", func() error {
			return v.api.PutBootSource(ctx, fcapi.BootSource{Kernel: kernelFile, Initrd: initrdFile, Args: cmdline(s)})
		}},
		{"adding the root disk", func() error {
			return v.api.PutDrive(ctx, fcapi.Drive{ID: "root", Path: rootFile, ReadOnly: true, Engine: fcapi.EngineSync})
		}},
		{"adding the scratch disk", func() error {
			// It ends with the VM: the guest's flushes need not reach the disk.
			return v.api.PutDrive(ctx, fcapi.Drive{ID: "scratch", Path: scratchFile, Cache: fcapi.CacheUnsafe, Engine: fcapi.EngineSync})
		}},
		{"adding the network card", func() error {
			if s.NIC == nil {
				return nil
			}
			return v.api.PutNetworkInterface(ctx, fcapi.NetworkInterface{ID: "card", Device: s.NIC.Device, MAC: s.NIC.MAC.String()})
		}},
		{"adding entropy", func() error { return v.api.PutEntropy(ctx) }},
		{"adding the channel", func() error {
			return v.api.PutVsock(ctx, fcapi.Vsock{CID: fcapi.GuestCID, Path: vsockSocket})
		}},
		v.addMetrics(ctx),
		v.limitConsole(ctx),
		{"starting the guest", func() error { return v.api.Start(ctx) }},
	}
}

func (v *vm) addMetrics(ctx context.Context) step {
	return step{"adding metrics", func() error { return v.api.PutMetrics(ctx, fcapi.Metrics{Path: metricsPipe}) }}
}

func (v *vm) limitConsole(ctx context.Context) step {
	return step{"limiting the console", func() error {
		if !v.api.CanLimitSerial() {
			return nil
		}
		return v.api.PutSerial(ctx, fcapi.Serial{Rate: &fcapi.TokenBucket{Size: consoleBurst, RefillMS: consoleRefillMS}})
	}}
}

// A guest's console may take consoleBurst bytes each consoleRefillMS: more
// than any boot says, and little for the host to carry.
const (
	consoleBurst    = 256 << 10
	consoleRefillMS = 500
)

// cmdline is the kernel's command line: what the machine needs, then what the
// guest bundle wants. There is no power switch: a guest ends by a reset,
// through the keyboard's controller, and without looking for the keyboard.
func cmdline(s tartarus.Spec) string {
	words := "console=ttyS0 reboot=k panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd tartarus.channel=vsock"
	if c := strings.TrimSpace(s.Cmdline); c != "" {
		words += " " + c
	}
	return words
}

// withLastWords adds what Firecracker said to an error of its start.
func (v *vm) withLastWords(err error) error {
	if words := v.lastWords(); words != "" {
		return fmt.Errorf("%w; firecracker said: %s", err, words)
	}
	return err
}

func removeFiles(dir string) error { return os.RemoveAll(filepath.Join(dir, runFolder)) }
