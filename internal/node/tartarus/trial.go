package tartarus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// KVMDevice is what a VMM opens to have guest code run by the processor.
const KVMDevice = "/dev/kvm"

// CheckKVM says, as fault.Unsupported, why the device cannot be opened. That it
// can proves nothing: see Try.
func CheckKVM(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close() // nothing was asked of it
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.Unsupported, err, "there is no KVM here: the processor's virtualization is off, its module not loaded, or this host is itself a VM without it").
			WithHint("switch virtualization on and load the module kvm_intel or kvm_amd, or use the driver qemu")
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Unsupported, err, "KVM is there, but this user may not use it").
			WithHint("add the user to the group kvm, or use the driver qemu")
	}
	return fault.Wrap(fault.Unsupported, err, "KVM does not open").WithHint("use the driver qemu")
}

// KVMReport is what a trial boot found out about KVM. It holds for one boot of
// the host and one VMM, which whoever keeps it must compare.
type KVMReport struct {
	Usable bool   `json:"usable"`
	Why    string `json:"why"` // in a sentence, for `doctor`

	// Slow says that the guest was not there in time, which on a host with too
	// much to do means little: the report is not worth keeping for long.
	Slow bool `json:"slow,omitempty"`
}

// Trial is what is booted to find out whether VMs run on a host: a guest
// bundle.
type Trial struct {
	Kernel  string
	Initrd  string
	Cmdline string
	Timeout time.Duration // for the guest to listen; 20 s if zero
}

const (
	trialTimeout   = 20 * time.Second
	trialMemoryMiB = 128
	trialDiskBytes = 1 << 20
)

// Try finds out whether KVM is usable by a driver that needs it, by booting a
// guest: a device may be there on which stock kernels do not run. What cannot
// be found out is an error; that KVM is not usable is none.
func Try(ctx context.Context, d Driver, t Trial) (KVMReport, error) {
	dir, err := os.MkdirTemp("", "tartarus-trial-")
	if err != nil {
		return KVMReport{}, fmt.Errorf("trying KVM: %w", err)
	}
	defer os.RemoveAll(dir) // a few small files
	s, err := t.spec(dir)
	if err != nil {
		return KVMReport{}, fmt.Errorf("trying KVM: %w", err)
	}
	if t.Timeout <= 0 {
		t.Timeout = trialTimeout
	}
	report, err := try(ctx, d, s, t.Timeout)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return KVMReport{}, fmt.Errorf("trying KVM: %w", err)
	}
	return report, nil
}

// spec is that of a VM whose disks are empty: the guest waits for orders
// before it looks at them.
func (t Trial) spec(dir string) (Spec, error) {
	s := Spec{
		ID: sandbox.MakeID(ulid.Make().String()), Dir: filepath.Join(dir, "vm"), Kernel: t.Kernel, Initrd: t.Initrd, Cmdline: t.Cmdline,
		Root: filepath.Join(dir, "root"), Scratch: filepath.Join(dir, "scratch"), VCPUs: 1, MemoryMiB: trialMemoryMiB,
	}
	err := os.Mkdir(s.Dir, 0o700)
	for path, mode := range map[string]os.FileMode{s.Root: 0o444, s.Scratch: 0o600} {
		err = errors.Join(err, os.WriteFile(path, nil, mode), os.Truncate(path, trialDiskBytes))
	}
	return s, err
}

func try(ctx context.Context, d Driver, s Spec, timeout time.Duration) (KVMReport, error) {
	bctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	vm, err := d.Start(bctx, s)
	if err != nil {
		why := strings.TrimPrefix(firstLine(err.Error()), fmt.Sprintf("starting vm %q: ", s.ID))
		return KVMReport{Why: fmt.Sprintf("it is there, but unusable: %s does not start on it: %.300s", d.Info().Name, why), Slow: bctx.Err() != nil}, nil
	}
	conn, dialErr := vm.Dial(bctx)
	if dialErr == nil {
		_ = conn.Close() // nothing was said
	}
	kctx, kcancel := context.WithTimeout(context.WithoutCancel(ctx), bootKillTimeout)
	defer kcancel()
	if err := vm.Kill(kctx); err != nil {
		return KVMReport{}, err
	}
	switch exit := vm.Exit(); {
	case dialErr == nil:
		return KVMReport{Usable: true, Why: "a guest booted on it"}, nil
	case exit.ByKill && bctx.Err() != nil:
		return KVMReport{Why: fmt.Sprintf("it is there, but unusable: a stock guest kernel does not reach its init in %v", timeout), Slow: true}, nil
	default:
		return KVMReport{Why: strings.TrimSpace(fmt.Sprintf("it is there, but unusable: a stock guest kernel ends on it. %.200s", firstLine(exit.Stderr)))}, nil
	}
}

// firstLine is what a VMM says first; dumps of registers come after it.
func firstLine(text string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return first
}
