package assembly

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcget"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/qemu"
)

// choice is the driver that runs VMs here, and why it is that one.
type choice struct {
	driver tartarus.Driver
	kvm    tartarus.KVMReport // by the VMM that was tried last
	why    string
	jail   error        // why Firecracker was not chosen; nil if it was
	close  func() error // the driver's own; the VMs are gone by then
}

// choosing is a choice that is being made.
type choosing struct {
	paths    paths
	want     cli.VMMOptions
	images   *nyx.Store
	tree     *cgroup.Tree // nil: noTree says why
	noTree   string
	progress func(cli.Step) // nil: not told
	log      *slog.Logger
}

// choose finds the driver: Firecracker where KVM works and a version of it is
// there that may run, else QEMU, on KVM where it works. What was asked for by
// name is taken or is an error, never another. KVM is judged by booting a guest
// on it, never by the presence of /dev/kvm.
func choose(ctx context.Context, p paths, want cli.VMMOptions, progress func(cli.Step), log *slog.Logger) (_ choice, err error) {
	images, _, err := openImages(p, nyx.Config{Log: log})
	if err != nil {
		return choice{}, err
	}
	c := &choosing{paths: p, want: want, images: images, progress: progress, log: log}
	if c.tree, err = cgroup.Detect(cgroup.Config{}); err != nil {
		c.tree, c.noTree = nil, err.Error()
	}
	made, err := c.choose(ctx)
	if err != nil {
		return choice{}, errors.Join(err, closeGroups(c.tree))
	}
	made.close = func() error { return closeGroups(c.tree) }
	return made, nil
}

func (c *choosing) choose(ctx context.Context) (choice, error) {
	switch c.want.Driver {
	case "", qemu.Name, firecracker.Name:
	default:
		return choice{}, fault.Invalid("driver", "give firecracker or qemu, or leave it out", "there is no driver %q", c.want.Driver)
	}
	if c.want.Driver == qemu.Name {
		made, err := c.qemu(ctx)
		made.why = "it was asked for; " + made.why
		made.jail = errors.New("qemu was asked for")
		return made, err
	}
	made, err := c.firecracker(ctx)
	switch {
	case err == nil:
		return made, nil
	case c.want.Driver == firecracker.Name || ctx.Err() != nil:
		return choice{}, err
	}
	jail := err
	if made, err = c.qemu(ctx); err == nil {
		made.jail = jail
	}
	return made, err
}

// firecracker is the driver where a guest boots in it; else the error says why
// it cannot be had.
func (c *choosing) firecracker(ctx context.Context) (choice, error) {
	binary, err := c.findFirecracker()
	if err != nil {
		return choice{}, err
	}
	d, err := firecracker.New(ctx, firecracker.Config{
		Binary: binary, Logger: c.log, InsecureTestVMM: c.want.InsecureTestVMM, Cgroups: c.tree, NoCgroups: c.noTree,
	})
	if err != nil {
		return choice{}, err
	}
	report, err := c.judgeKVM(ctx, d.Info(), func(t tartarus.Trial) (tartarus.KVMReport, error) { return tartarus.Try(ctx, d, t) })
	if err != nil {
		return choice{}, err
	}
	if !report.Usable {
		return choice{}, fault.New(fault.Unsupported, "KVM: %s", report.Why).WithHint("use the driver qemu")
	}
	return choice{driver: d, kvm: report, why: "a guest booted in it on KVM"}, nil
}

// findFirecracker is the path of what was named, of what setup installed, or
// of what is on PATH.
func (c *choosing) findFirecracker() (string, error) {
	if c.want.Firecracker != "" {
		return c.want.Firecracker, nil
	}
	release, err := fcget.Pinned()
	if err != nil {
		return "", err
	}
	if in, ok := fcget.Find(c.paths.firecracker(), release); ok {
		return in.Firecracker, nil
	}
	path, err := exec.LookPath(firecracker.Name)
	if err != nil {
		return "", fault.New(fault.Unsupported, "Firecracker is not installed").WithHint("install it: `tartarus setup firecracker`")
	}
	return path, nil
}

// qemu is the driver on KVM where a guest boots in it so, else without.
func (c *choosing) qemu(ctx context.Context) (choice, error) {
	cfg := qemu.Config{Accel: qemu.AccelTCG, Cgroups: c.tree, NoCgroups: c.noTree, Logger: c.log}
	d, err := qemu.New(ctx, cfg)
	if err != nil {
		return choice{}, err
	}
	report, err := c.judgeKVM(ctx, d.Info(), func(t tartarus.Trial) (tartarus.KVMReport, error) { return qemu.Probe(ctx, cfg, t) })
	if err != nil {
		return choice{}, err
	}
	made := choice{driver: d, kvm: report, why: "KVM is not usable here"}
	if report.Usable {
		cfg.Accel, cfg.KVM, made.why = qemu.AccelKVM, &report, "a guest booted in it on KVM"
		made.driver, err = qemu.New(ctx, cfg)
	}
	return made, err
}

// closeGroups removes the parent of all groups, unless another process has
// groups in it.
func closeGroups(tree *cgroup.Tree) error {
	if tree == nil {
		return nil
	}
	return tree.Close()
}

// judgeKVM is the verdict that was kept of this VMM, if it still holds, or a
// new one.
func (c *choosing) judgeKVM(ctx context.Context, vmm tartarus.Info, trial func(tartarus.Trial) (tartarus.KVMReport, error)) (tartarus.KVMReport, error) {
	kept := readVerdicts(c.paths.kvm())
	now := verdictOf(vmm)
	if old := kept[vmm.Name]; old.holds(now) {
		return old.Report, nil
	}
	bundle, err := c.images.CurrentBundle(ctx)
	if err != nil {
		return tartarus.KVMReport{Why: "not tried yet: there is no guest bundle to boot"}, nil
	}
	if c.progress != nil && now.Rights { // else it is said at once
		c.progress(cli.Step{Name: fmt.Sprintf("host: trying KVM by booting on it in %s", vmm.Name)})
	}
	if now.Report, err = trial(tartarus.Trial{Kernel: bundle.Kernel, Initrd: bundle.Initrd, Cmdline: bundle.Cmdline}); err != nil {
		return tartarus.KVMReport{}, err
	}
	kept[vmm.Name] = now
	return now.Report, writeVerdicts(c.paths.kvm(), kept)
}
