package assembly

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

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
	Report qemu.KVMReport `json:"report"`
}

// choose finds the driver. KVM is judged by booting a guest on it, never by
// the presence of /dev/kvm; the verdict is kept until the host's kernel, its
// boot or the VMM changes.
func choose(ctx context.Context, p paths, log *slog.Logger) (choice, error) {
	images, _, err := openImages(p, nyx.Config{Log: log})
	if err != nil {
		return choice{}, err
	}
	report, err := judgeKVM(ctx, p, images, log)
	if err != nil {
		return choice{}, err
	}
	tree, why := groups()
	cfg := qemu.Config{KVM: &report, Cgroups: tree, Logger: log}
	if tree == nil {
		cfg.NoCgroups = why
	}
	d, err := qemu.New(ctx, cfg)
	if err != nil {
		return choice{}, errors.Join(err, closeGroups(tree))
	}
	because := "a trial boot on KVM succeeded"
	if !report.Usable {
		because = "KVM is not usable here"
	}
	return choice{driver: d, kvm: report, why: because, close: func() error { return closeGroups(tree) }}, nil
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

func judgeKVM(ctx context.Context, p paths, images *nyx.Store, log *slog.Logger) (qemu.KVMReport, error) {
	cfg := qemu.Config{Accel: qemu.AccelTCG, Logger: log}
	d, err := qemu.New(ctx, cfg)
	if err != nil {
		return qemu.KVMReport{}, err
	}
	now := kvmVerdict{Kernel: kernelRelease(), BootID: bootID(), VMM: d.Info().Version}
	if b, err := os.ReadFile(p.kvm()); err == nil {
		var kept kvmVerdict
		if json.Unmarshal(b, &kept) == nil && kept.Kernel == now.Kernel && kept.BootID == now.BootID && kept.VMM == now.VMM {
			return kept.Report, nil
		}
	}
	bundle, err := images.CurrentBundle(ctx)
	if err != nil {
		return qemu.KVMReport{Why: "not tried yet: there is no guest bundle to boot"}, nil
	}
	now.Report, err = qemu.Probe(ctx, cfg, qemu.ProbeSpec{Kernel: bundle.Kernel, Initrd: bundle.Initrd, Cmdline: bundle.Cmdline})
	if err != nil {
		return now.Report, err
	}
	b, err := json.Marshal(now)
	if err != nil {
		return now.Report, err
	}
	return now.Report, writeFile(p.kvm(), b)
}

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
