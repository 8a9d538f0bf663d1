// Package qemu is the driver that runs VMs in QEMU: by binary translation
// (TCG) on any host, or by KVM where a trial boot on it succeeded.
//
// Each VM is one QEMU of machine type microvm, confined by the launcher and
// driven over QMP. Sockets and disks are handed to it as descriptors.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/vmproc"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Name is the driver's name in records and handles.
const Name = "qemu"

// Accel says how guest code is to be executed.
type Accel string

// The accelerators. The zero value is AccelAuto: KVM where Config.KVM says it
// is usable, else TCG.
const (
	AccelAuto Accel = "auto"
	AccelTCG  Accel = "tcg"
	AccelKVM  Accel = "kvm"
)

// Config is how VMs are run. The zero value is usable.
type Config struct {
	Binary string // QEMU's path or name; qemu-system-x86_64 on PATH if empty
	Accel  Accel
	KVM    *tartarus.KVMReport // what Probe found, or nil: then auto means TCG and kvm is taken at its word
	Logger *slog.Logger        // nil discards

	// Cgroups is where each VM gets a group that bounds guest and VMM together;
	// nil: no VM gets one, and NoCgroups tells records why.
	Cgroups   *cgroup.Tree
	NoCgroups string

	// Require are layers of the launcher without which no VM is started.
	Require []string
}

// Validate reports the first setting that cannot be.
func (c Config) Validate() error {
	switch c.Accel {
	case "", AccelAuto, AccelTCG:
	case AccelKVM:
		if c.KVM != nil && !c.KVM.Usable {
			return fault.New(fault.Unsupported, "KVM is not usable here: %s", c.KVM.Why).
				WithHint("leave the accelerator at auto, or mend KVM: `tartarus doctor` tells how")
		}
	default:
		return fault.Invalid("accel", "give auto, tcg or kvm", "%q is no accelerator", c.Accel)
	}
	return nil
}

// accelerator is what Accel comes down to.
func (c Config) accelerator() string {
	if c.Accel == AccelKVM || (c.Accel != AccelTCG && c.KVM != nil && c.KVM.Usable) {
		return "kvm"
	}
	return "tcg"
}

// Driver makes VMs of QEMU.
type Driver struct {
	cfg     Config
	machine machine
	binary  string
	version version
	accel   string
	tscKHz  int64
	log     *slog.Logger
	kind    vmproc.Kind

	readable  []string // of the host's files, by every VMM
	isolation sandbox.Isolation
	info      tartarus.Info
	memories  memories
	asRoot    bool // for Probe: the VMM keeps the agent's user
}

var _ tartarus.Driver = (*Driver)(nil)

// New finds QEMU, refuses one that is too old, and measures the host's clock.
// The driver holds nothing that needs closing.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, ok := machines[runtime.GOARCH]
	if !ok {
		return nil, fault.New(fault.Unsupported, "there is no machine for %s yet", runtime.GOARCH).
			WithHint("run Tartarus on x86-64")
	}
	d := &Driver{cfg: cfg, machine: m, accel: cfg.accelerator(), log: cfg.Logger, kind: vmproc.Kind{
		Driver: Name, Cgroups: cfg.Cgroups, NoCgroups: cfg.NoCgroups, OverheadMiB: sandbox.VMOverheadMiB, Threads: vmmThreads,
	}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	name := cfg.Binary
	if name == "" {
		name = m.binary
	}
	var err error
	if d.binary, err = findBinary(name); err != nil {
		return nil, err
	}
	if d.version, err = checkVersion(ctx, d.binary); err != nil {
		return nil, err
	}
	data, err := dataDirs(ctx, d.binary)
	if err != nil {
		return nil, err
	}
	if d.readable, err = surroundings(data); err != nil {
		return nil, err
	}
	reopens, err := d.trial(ctx, true)
	if err != nil {
		return nil, err
	}
	if d.isolation = reopens; !slices.Contains(reopens.Confinement, launcher.LayerPrivateRoot) {
		if d.isolation, err = d.trial(ctx, false); err != nil {
			return nil, err
		}
	}
	if d.accel == "tcg" {
		d.tscKHz = measureTSC()
	}
	d.info = tartarus.Info{
		Name:        Name,
		Version:     d.version.String(),
		Accelerator: d.accel,
		Isolation:   d.isolation,
		CanPause:    true,
		// Never at the price of a layer: some hosts show a VMM all of /proc or
		// nothing.
		CanSnapshot: d.tscKHz > 0 && len(reopens.Confinement) == len(d.isolation.Confinement),
		CanNetwork:  true,
		MaxVCPUs:    maxVCPUs,
		Machine:     d.identity(),
	}
	return d, nil
}

// snapshotFormat is part of what a snapshot is valid for: it changes with
// what args makes of a VM.
const snapshotFormat = 2

// identity is what must not differ between a VM that is saved and one that
// goes on from there. The clock counts in MHz: measured twice, the same one
// differs by a few kHz.
func (d *Driver) identity() string {
	return fmt.Sprintf("format=%d machine=%s cpu=%s tsc=%dMHz tb=%d", snapshotFormat, d.machine.options, tcgCPU, (d.tscKHz+500)/1000, translationMiB)
}

// trial has QEMU tell its version under full confinement: what isolation there
// is on this host is what the trial had. reopen is for a VM that is saved or
// restored.
func (d *Driver) trial(ctx context.Context, reopen bool) (sandbox.Isolation, error) {
	fail := func(err error) (sandbox.Isolation, error) {
		return sandbox.Isolation{}, fmt.Errorf("trying the confinement of qemu: %w", err)
	}
	dir, err := os.MkdirTemp("", "tartarus-qemu-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir) // a few small files
	group, err := d.kind.Group(dir, filepath.Base(dir), tartarus.MinMemoryMiB, 1)
	if err != nil {
		return fail(err)
	}
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*endTimeout)
	defer cancel()
	if group != nil {
		defer group.Remove(kctx) //nolint:errcheck // an empty group harms nobody
	}
	p, err := launcher.Start(ctx, d.confined(launcher.Spec{Argv: []string{d.binary, "--version"}, Dir: dir, Cgroup: group, OwnFiles: reopen}))
	if err != nil {
		return fail(err)
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return fail(errors.Join(ctx.Err(), p.Kill(kctx)))
	}
	if e := p.Exit(); e.Code != 0 {
		return fail(fmt.Errorf("%s: %.500q", vmproc.Exit(e), p.Stderr()))
	}
	return d.isolationOf(p), nil
}

// Info says what the driver is and can do.
func (d *Driver) Info() tartarus.Info { return d.info }

// isolationOf is what confines a process.
func (d *Driver) isolationOf(p *launcher.Process) sandbox.Isolation {
	i := p.Isolation()
	i.Accelerator = d.accel
	if why := d.kind.Groupless(); why != "" {
		i.Missing = append(i.Missing, cgroup.LayerMemory+": "+why)
	}
	return i
}
