// Package firecracker is the driver that runs VMs in Firecracker, on KVM.
//
// As root each VM is started by Firecracker's jailer, with a user, namespaces
// and a root of its own; for an ordinary user who may open /dev/kvm the
// launcher confines it. Either way it is told what to run over its API, and
// its guest is reached over vsock.
//
// What the VMM can write is the VMM's: its sockets are found without following
// a link, what they answer is bounded, and nothing of its folder outlives it.
//
// Not covered: the jailer's change of user clears the parent-death signal, so a
// VM whose agent and whose launcher's outer stage are both killed runs on until
// Reap; and the serial console of versions before 1.16.1 is not limited in
// speed, only in what is kept.
package firecracker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcapi"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/vmproc"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Name is the driver's name in records and handles.
const Name = "firecracker"

const (
	accelerator = "kvm"
	maxVCPUs    = 32    // Firecracker's own bound
	nobody      = 65534 // runs a VMM for which the agent chose no user
)

// Config is how VMs are run. The zero value is usable where firecracker and
// jailer are on PATH.
type Config struct {
	Binary string       // Firecracker's path or name; "firecracker" on PATH if empty
	Jailer string       // the jailer's; beside Binary if empty. Only root uses it
	Logger *slog.Logger // nil discards

	// InsecureTestVMM lets a version run that is on no list of safe ones but
	// that this driver is tested with.
	InsecureTestVMM bool

	// Cgroups is where each VM gets a group that bounds guest and VMM together;
	// nil: no VM gets one, and NoCgroups tells records why.
	Cgroups   *cgroup.Tree
	NoCgroups string

	// Require are layers without which no VM is started.
	Require []string

	// StartTimeout bounds each Start, whatever its context allows: a VMM may
	// accept a call and never answer. 20 s if zero.
	StartTimeout time.Duration

	device string // in tests: what stands for /dev/kvm
}

const defaultStartTimeout = 20 * time.Second

// Validate reports the first setting that cannot be.
func (c Config) Validate() error {
	if c.StartTimeout < 0 {
		return fault.Invalid("start_timeout", "give a positive duration, or 0 for the default", "%v is no timeout", c.StartTimeout)
	}
	return nil
}

// Driver makes VMs of Firecracker.
type Driver struct {
	cfg       Config
	binary    string
	jailer    string // "" when not root
	version   fcapi.Version
	bytes     int64 // of the binary
	log       *slog.Logger
	kind      vmproc.Kind
	isolation sandbox.Isolation
	machine   string   // "": unknown
	extra     []string // arguments for Firecracker, in tests
}

var _ tartarus.Driver = (*Driver)(nil)

// New finds Firecracker, and its jailer as root, refuses versions that must
// not run, and tries the confinement. The driver holds nothing that needs
// closing. Whether a guest really boots on KVM here is not its question.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Driver{cfg: cfg, log: cfg.Logger, kind: vmproc.Kind{
		Driver: Name, Cgroups: cfg.Cgroups, NoCgroups: cfg.NoCgroups, OverheadMiB: sandbox.VMOverheadMiB, Threads: vmmThreads,
	}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.cfg.StartTimeout == 0 {
		d.cfg.StartTimeout = defaultStartTimeout
	}
	if d.cfg.device == "" {
		d.cfg.device = tartarus.KVMDevice
	}
	if err := d.find(ctx); err != nil {
		return nil, err
	}
	d.machine = machine("/proc/cpuinfo")
	if err := tartarus.CheckKVM(d.cfg.device); err != nil {
		return nil, err
	}
	var err error
	if d.isolation, err = d.trial(ctx); err != nil {
		return nil, fmt.Errorf("trying the confinement of firecracker: %w", err)
	}
	return d, nil
}

// find resolves the programs and judges their versions.
func (d *Driver) find(ctx context.Context) error {
	var err error
	if d.binary, err = findProgram(d.cfg.Binary, Name); err != nil {
		return err
	}
	info, err := os.Stat(d.binary)
	if err != nil {
		return err
	}
	d.bytes = info.Size()
	if d.version, err = versionOf(ctx, d.binary, "Firecracker"); err != nil {
		return err
	}
	if err := judge(d.version, d.cfg.InsecureTestVMM); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	name := d.cfg.Jailer
	if name == "" {
		name = filepath.Join(filepath.Dir(d.binary), "jailer")
	}
	if d.jailer, err = findProgram(name, "jailer"); err != nil {
		return err
	}
	v, err := versionOf(ctx, d.jailer, "Jailer")
	if err != nil {
		return err
	}
	if v != d.version {
		return fault.New(fault.Unsupported, "the jailer is version %v and Firecracker is %v", v, d.version).
			WithHint("use both from one release: `tartarus setup firecracker` installs them")
	}
	return nil
}

// trial starts Firecracker under full confinement and asks it nothing but its
// version: what isolation there is on this host is what the trial had.
func (d *Driver) trial(ctx context.Context) (sandbox.Isolation, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.StartTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "tartarus-firecracker-")
	if err != nil {
		return sandbox.Isolation{}, err
	}
	defer os.RemoveAll(dir) // a few small files
	v, err := d.start(ctx, boot{id: filepath.Base(dir), spec: tartarus.Spec{Dir: dir, VCPUs: 1, MemoryMiB: tartarus.MinMemoryMiB}})
	if err != nil {
		return sandbox.Isolation{}, err
	}
	kctx, kcancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer kcancel()
	return v.isolation, v.Kill(kctx)
}

// Info says what the driver is and can do.
func (d *Driver) Info() tartarus.Info {
	return tartarus.Info{
		Name:        Name,
		Version:     d.version.String(),
		Accelerator: accelerator,
		Isolation:   d.isolation,
		CanPause:    true,
		CanSnapshot: d.machine != "",
		CanNetwork:  d.jailer != "", // only root has namespaces with devices to give
		CardByName:  true,
		MaxVCPUs:    maxVCPUs,
		Machine:     d.machine,
	}
}
