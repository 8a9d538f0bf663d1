package assembly

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/qemu"
)

// choice is the driver that runs VMs here, and why it is that one.
type choice struct {
	driver tartarus.Driver
	kvm    qemu.KVMReport
	why    string
	close  func() error // the driver's own; the VMs are gone by then
}

// kvmVerdict is what the trial boot said, for as long as what it was tried on
// is the same.
type kvmVerdict struct {
	Kernel string         `json:"kernel"` // of the host
	BootID string         `json:"boot_id"`
	VMM    string         `json:"vmm"`
	Rights bool           `json:"rights"` // to open the device
	Report qemu.KVMReport `json:"report"`
}

// choose finds the driver. KVM is judged by booting a guest on it, never by
// the presence of /dev/kvm; the verdict is kept until the host's kernel, its
// boot, the VMM or the rights to the device change. progress, which may be nil,
// is told of a trial boot.
func choose(ctx context.Context, p paths, progress func(cli.Step), log *slog.Logger) (_ choice, err error) {
	images, _, err := openImages(p, nyx.Config{Log: log})
	if err != nil {
		return choice{}, err
	}
	tree, why := groups()
	defer func() {
		if err != nil {
			err = errors.Join(err, closeGroups(tree))
		}
	}()
	cfg := qemu.Config{Accel: qemu.AccelTCG, Cgroups: tree, Logger: log}
	if tree == nil {
		cfg.NoCgroups = why
	}
	d, err := qemu.New(ctx, cfg)
	if err != nil {
		return choice{}, err
	}
	trial := func(b nyx.Bundle) (qemu.KVMReport, error) {
		if progress != nil && mayOpenKVM() { // else it is said at once
			progress(cli.Step{Name: "host: trying KVM by booting on it"})
		}
		return qemu.Probe(ctx, cfg, qemu.ProbeSpec{Kernel: b.Kernel, Initrd: b.Initrd, Cmdline: b.Cmdline})
	}
	report, err := judgeKVM(ctx, p, images, d.Info().Version, trial)
	if err != nil {
		return choice{}, err
	}
	c := choice{driver: d, kvm: report, why: "KVM is not usable here", close: func() error { return closeGroups(tree) }}
	if report.Usable {
		cfg.Accel, cfg.KVM, c.why = qemu.AccelKVM, &report, "a trial boot on KVM succeeded"
		if c.driver, err = qemu.New(ctx, cfg); err != nil {
			return choice{}, err
		}
	}
	return c, nil
}

// groups is where VMs' cgroups are made, or why there are none.
func groups() (*cgroup.Tree, string) {
	tree, err := cgroup.Detect(cgroup.Config{})
	if err != nil {
		return nil, err.Error()
	}
	return tree, ""
}

// closeGroups removes the parent of all groups, unless another process has
// groups in it.
func closeGroups(tree *cgroup.Tree) error {
	if tree == nil {
		return nil
	}
	return tree.Close()
}

// judgeKVM is the verdict that was kept, if it still holds, or a new one.
func judgeKVM(ctx context.Context, p paths, images *nyx.Store, vmm string, trial func(nyx.Bundle) (qemu.KVMReport, error)) (qemu.KVMReport, error) {
	now := kvmVerdict{Kernel: kernelRelease(), BootID: bootID(), VMM: vmm, Rights: mayOpenKVM()}
	if b, err := os.ReadFile(p.kvm()); err == nil {
		var kept kvmVerdict
		if json.Unmarshal(b, &kept) == nil {
			report := kept.Report
			if kept.Report = now.Report; kept == now {
				return report, nil
			}
		}
	}
	bundle, err := images.CurrentBundle(ctx)
	if err != nil {
		return qemu.KVMReport{Why: "not tried yet: there is no guest bundle to boot"}, nil
	}
	if now.Report, err = trial(bundle); err != nil {
		return now.Report, err
	}
	b, err := json.Marshal(now)
	if err != nil {
		return now.Report, err
	}
	return now.Report, writeFile(p.kvm(), b)
}

func mayOpenKVM() bool { return unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil }

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(b)
}
