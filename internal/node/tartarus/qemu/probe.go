package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// KVMReport is what Probe found out about KVM. It holds for one boot of the
// host and one version of QEMU, which whoever keeps it must compare.
type KVMReport struct {
	Usable  bool   `json:"usable"`
	Why     string `json:"why"`     // in a sentence, for `doctor`
	BootID  string `json:"boot_id"` // of the host
	Version string `json:"version"` // of QEMU; "" when it did not get that far
}

// ProbeSpec is what Probe boots: a guest bundle, without disks.
type ProbeSpec struct {
	Kernel  string
	Initrd  string
	Cmdline string
	Timeout time.Duration // for the guest to open its channel; 10 s if zero
}

const (
	defaultProbeTimeout = 10 * time.Second
	probeMemoryMiB      = 128
)

// Probe finds out whether KVM is usable, by booting a guest on it: a device
// may be there on which stock kernels do not run. What cannot be found out is
// an error; that KVM is not usable is none.
func Probe(ctx context.Context, cfg Config, p ProbeSpec) (KVMReport, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return KVMReport{}, fmt.Errorf("probing KVM: %w", err)
	}
	r := KVMReport{BootID: strings.TrimSpace(string(boot))}
	if r.Why = deviceMissing(); r.Why != "" {
		return r, nil
	}
	cfg.Accel, cfg.KVM = AccelKVM, nil
	d, err := New(ctx, cfg)
	if err != nil {
		return KVMReport{}, fmt.Errorf("probing KVM: %w", err)
	}
	r.Version = d.version.String()
	// Where only root may open the device no VM can run on it, but whether
	// changing that would help is worth knowing.
	d.asRoot = os.Geteuid() == 0 && kvmAccess() < 0
	why, err := d.probe(ctx, p)
	if err != nil {
		return KVMReport{}, fmt.Errorf("probing KVM: %w", err)
	}
	switch {
	case why != "":
		r.Why = "it is there, but unusable: " + why
	case d.asRoot:
		r.Why = "a guest boots on it, but only root may open " + kvmDevice + ": give it to the group kvm, mode 0660"
	default:
		r.Usable, r.Why = true, "a guest booted on it"
	}
	return r, nil
}

// deviceMissing says why /dev/kvm cannot even be opened, "" if it can.
func deviceMissing() string {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = f.Close() // nothing was asked of it
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return "there is no " + kvmDevice + ": the processor's virtualization is off, its module not loaded, or this host is itself a VM without it"
	case errors.Is(err, fs.ErrPermission):
		return kvmDevice + " is there, but this user may not open it: add the user to the group kvm"
	default:
		return fmt.Sprintf("%s does not open: %v", kvmDevice, err)
	}
}

// probe boots a guest and says why it did not come up, "" if it did.
func (d *Driver) probe(ctx context.Context, p ProbeSpec) (why string, err error) {
	dir, err := os.MkdirTemp("", "tartarus-kvm-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) // a few small files
	timeout := p.Timeout
	if timeout <= 0 {
		timeout = defaultProbeTimeout
	}
	bctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	v, err := d.start(bctx, boot{machine: d.machine, accel: d.accel, spec: tartarus.Spec{
		ID: sandbox.MakeID(ulid.Make().String()), Dir: dir,
		Kernel: p.Kernel, Initrd: p.Initrd, Cmdline: p.Cmdline, VCPUs: 1, MemoryMiB: probeMemoryMiB,
	}})
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return fmt.Sprintf("QEMU does not start on it: %.300v", err), nil
	}
	alive := v.awaitPort(bctx)
	kctx, kcancel := context.WithTimeout(context.WithoutCancel(ctx), startKillTimeout)
	defer kcancel()
	if err := v.Kill(kctx); err != nil {
		return "", err
	}
	switch {
	case alive == nil:
		return "", nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case !v.exit.ByKill:
		return "a stock guest kernel ends on it: " + firstWords(v, dir), nil
	}
	return fmt.Sprintf("a stock guest kernel does not reach its init in %v%s", timeout, firstWords(v, dir)), nil
}

// firstWords are the beginning of what QEMU complained of, which says more
// than the dump of registers after it.
func firstWords(v *vm, dir string) string {
	text, err := launcher.ReadStderr(dir)
	if err != nil || strings.TrimSpace(text) == "" {
		return v.crash
	}
	first, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(fmt.Sprintf("%s (%.120q)", v.crash, first))
}

// kvmAccess says how a VMM with a user of its own may open /dev/kvm: as
// anybody (0), by a group, or not at all (-1).
func kvmAccess() int {
	info, err := os.Stat(kvmDevice)
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
