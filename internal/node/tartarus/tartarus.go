// Package tartarus is the VM runtime: the seam to whatever VMM runs a sandbox.
//
// A driver makes VMs and ends them. It knows nothing of requests, policies or
// commands: it boots a guest bundle with two disks and hands back one byte
// stream to the guest, over which package guestdial speaks guestwire. The
// suite is drivertest, and every driver passes it. What a driver can do is
// data (Info), never its name.
package tartarus

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Driver makes VMs. All methods may be called at once.
type Driver interface {
	// Info says what the driver is and can do; it is the same for its life.
	Info() Info

	// Start makes a VM and boots it. It returns once the VMM runs; the guest
	// may still be booting (VM.Dial waits for it). When it fails nothing is
	// left: no process, file, mount or cgroup. ctx bounds Start alone, the VM
	// lives on.
	//
	// A Start that is interrupted by the agent's death leaves at most what
	// Reap removes.
	Start(ctx context.Context, s Spec) (VM, error)

	// Reap ends whatever an earlier process of this agent left of the VM in
	// Spec.Dir, running or half made, and removes what Start made. It is no
	// error when there is nothing. h is what the journal holds, and may be the
	// zero value: then the folder alone says.
	Reap(ctx context.Context, dir string, h Handle) error
}

// Info describes a driver.
type Info struct {
	Name        string // as in the record's runtime.driver
	Version     string // of the VMM
	Accelerator string // kvm, tcg or none
	Isolation   sandbox.Isolation
	CanPause    bool // VM.Pause and VM.Resume work
	CanSnapshot bool // takes Spec.Save and Spec.Restore
	CanNetwork  bool // takes a network card
	CardByName  bool // takes it as a device in a namespace; otherwise as a descriptor
	MaxVCPUs    int

	// Machine is what a snapshot is valid for, beside driver, version and what
	// its VM's Spec said: machine, CPU and clock. Compared, never read.
	Machine string
}

// Spec is one VM. Files stay the caller's; the VMM only reads Kernel, Initrd
// and Root, and owns Scratch until the VM has ended.
type Spec struct {
	ID        sandbox.ID
	Dir       string // an existing private folder for sockets and files of this VM; the caller removes it
	Kernel    string // an ELF vmlinux with a PVH note
	Initrd    string
	Cmdline   string // what the guest bundle wants; the driver adds its own
	Root      string // the template's disk, read-only, first block device
	Scratch   string // the sandbox's own disk, second block device
	VCPUs     int
	MemoryMiB int64
	NIC       *NIC     // nil: no network card
	Lifeline  *os.File // nil, or: the VM ends when its other end closes (the agent's death). Stays the caller's.

	// Save, where Info says that it can, is where VM.Save will put the VM's
	// memory and state: two empty files, open for reading and writing. A VM
	// that is to be saved gets no network card.
	Save *SnapshotFiles

	// Restore, where Info says that it can, is a snapshot that the VM goes on
	// from, instead of booting: made by this driver, in this version, for the
	// same Machine and for a Spec that differs in nothing but ID, Dir, Cmdline,
	// Scratch, Lifeline, UID and GID. The scratch disk is of the same size and
	// content as it was then. The files are open for reading, and nobody
	// writes them any more; any number of VMs go on from them at once. They are
	// readable for everyone (their folder need not be), and stay in their place
	// until Start has returned: some VMMs open them by path.
	Restore *SnapshotFiles

	// UID and GID are what the VMM runs as where the agent may choose (as
	// root); 0 leaves the driver's default. Each VM that runs at the same
	// time gets its own, so that one VMM cannot touch another.
	UID int
	GID int
}

// SnapshotFiles are a VM between its life and its siblings'. They stay the
// caller's.
type SnapshotFiles struct {
	Memory *os.File // the guest's memory, byte for byte; sparse
	State  *os.File // of CPUs and devices, in the VMM's own format
}

// NIC is a VM's network card, as the host holds it: a TAP as a descriptor, or
// its name in a namespace, whichever Info asks for. Both stay the caller's.
type NIC struct {
	MAC net.HardwareAddr // the guest's

	TAP *os.File // without a header before each frame

	Namespace *os.File // a network namespace, for the VMM to be in
	Device    string   // the TAP's name in it, the VMM's user's to open
}

// validate says what is wrong with a card, in the words of Spec.
func (n *NIC) validate() error {
	switch {
	case n == nil:
		return nil
	case len(n.MAC) != 6 || n.MAC[0]&1 != 0:
		return fault.Invalid("nic.mac", "give six bytes, the first of them even", "%v is no card's MAC", n.MAC)
	case (n.TAP == nil) == (n.Namespace == nil):
		return fault.Invalid("nic", "give a descriptor, or a namespace and a name", "a network card has two host's sides, or none")
	case n.Namespace != nil && (n.Device == "" || len(n.Device) > maxDevice || strings.ContainsAny(n.Device, "/ \x00\n")):
		return fault.Invalid("nic.device", "give a network device's name", "%q is no device's name", n.Device)
	}
	return nil
}

// maxDevice is the length of a network device's longest name.
const maxDevice = 15

// CheckNIC reports, as fault.Unsupported, a card that a driver cannot give.
func (i Info) CheckNIC(n *NIC) error {
	switch {
	case n == nil:
		return nil
	case !i.CanNetwork:
		return fault.New(fault.Unsupported, "driver %s gives VMs no network card", i.Name)
	case i.CardByName != (n.Namespace != nil):
		return fault.Invalid("nic", "look at what Info says", "driver %s takes its card in another form", i.Name)
	}
	return nil
}

// Validate reports the first field that no driver can work with, as
// fault.InvalidArgument. Whether the files are there is for Start to see.
func (s Spec) Validate() error {
	if !s.ID.Valid() {
		return fault.Invalid("id", "give the sandbox's ID", "%q is not a sandbox ID", s.ID)
	}
	for _, f := range []struct{ field, path string }{
		{"dir", s.Dir}, {"kernel", s.Kernel}, {"initrd", s.Initrd}, {"root", s.Root}, {"scratch", s.Scratch},
	} {
		if !filepath.IsAbs(f.path) || filepath.Clean(f.path) != f.path || strings.ContainsAny(f.path, "\x00\n") {
			return fault.Invalid(f.field, "give a clean absolute path", "%q is not a clean absolute path", f.path)
		}
	}
	if strings.ContainsFunc(s.Cmdline, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(s.Cmdline) > MaxCmdline {
		return fault.Invalid("cmdline", "give one line of at most 1024 bytes", "the kernel's command line is too long or has control characters")
	}
	if s.VCPUs < 1 {
		return fault.Invalid("vcpus", "give at least 1", "%d vCPUs", s.VCPUs)
	}
	if s.MemoryMiB < MinMemoryMiB || s.MemoryMiB > MaxMemoryMiB {
		return fault.Invalid("memory_mib", "give 64 MiB to 1 TiB", "%d MiB of memory", s.MemoryMiB)
	}
	if s.UID < 0 || s.GID < 0 {
		return fault.Invalid("uid", "give 0 or a free user ID", "user %d and group %d", s.UID, s.GID)
	}
	for _, f := range []*SnapshotFiles{s.Save, s.Restore} {
		if f != nil && (f.Memory == nil || f.State == nil || s.NIC != nil || s.Save != nil && s.Restore != nil) {
			return fault.Invalid("snapshot", "give both files, no network card, and one of save and restore", "a snapshot that cannot be")
		}
	}
	return s.NIC.validate()
}

// CheckSnapshot reports, as fault.Unsupported, a snapshot that a driver cannot
// make or go on from.
func (i Info) CheckSnapshot(s Spec) error {
	if !i.CanSnapshot && (s.Save != nil || s.Restore != nil) {
		return fault.New(fault.Unsupported, "driver %s makes no snapshots here", i.Name)
	}
	return nil
}

// CheckFiles reports the first of the spec's files that is not there or of the
// wrong kind, as fault.InvalidArgument.
func (s Spec) CheckFiles() error {
	for _, f := range []struct {
		field, path string
		dir         bool
	}{{"dir", s.Dir, true}, {"kernel", s.Kernel, false}, {"initrd", s.Initrd, false}, {"root", s.Root, false}, {"scratch", s.Scratch, false}} {
		info, err := os.Stat(f.path)
		if err != nil {
			return fault.Invalid(f.field, "make it before the VM", "%s of the VM: %v", f.field, err)
		}
		if info.IsDir() != f.dir || (!f.dir && !info.Mode().IsRegular()) {
			return fault.Invalid(f.field, "give a folder for dir and a plain file elsewhere", "%s of the VM: %s is of the wrong kind", f.field, f.path)
		}
	}
	return nil
}

// Bounds of a Spec.
const (
	MinMemoryMiB = 64
	MaxMemoryMiB = 1 << 20
	MaxCmdline   = 1024
)

// VM is one virtual machine. All methods may be called at once, and after its
// end.
type VM interface {
	// Handle is what the journal keeps, so that a later agent finds the VM.
	Handle() Handle

	// Dial opens the byte stream to the guest: it waits until the guest
	// listens, or ctx ends, or the VM does. A new stream ends the one before.
	// The caller closes it.
	Dial(ctx context.Context) (net.Conn, error)

	// Isolation is what really confines this VM.
	Isolation() sandbox.Isolation

	// Sample reads what the host sees the VM use.
	Sample() (Sample, error)

	// Pause stops the vCPUs and Resume lets them go on, where Info says it
	// can; otherwise fault.Unsupported.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error

	// Save stops the vCPUs and writes Spec.Save. Afterwards the VM is of no
	// further use: Kill it. Without Spec.Save: fault.Unsupported.
	Save(ctx context.Context) error

	// Console writes the last bytes of the guest's console, at most
	// ConsoleBytes, raw: the guest may have written anything.
	Console(w io.Writer) error

	// Done is closed when the VMM has ended, by whomever.
	Done() <-chan struct{}

	// Exit tells how the VMM ended; only after Done.
	Exit() Exit

	// Kill ends the VM at once, waits until the process is gone and removes
	// everything Start made outside Spec.Dir. It may be called again.
	Kill(ctx context.Context) error
}

// ConsoleBytes bounds what is kept of a guest's console.
const ConsoleBytes = 64 << 10

// Handle finds a VMM's process again: a pid alone may have been reused.
type Handle struct {
	Driver    string `json:"driver"`
	Pid       int    `json:"pid"`        // of the process that ends the whole VM when killed
	StartTime uint64 `json:"start_time"` // field 22 of /proc/PID/stat, clock ticks after boot
	BootID    string `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
	Cgroup    string `json:"cgroup,omitempty"`
}

// Sample is what the host sees of a VM's use.
type Sample struct {
	At              time.Time
	CPUSeconds      float64
	MemoryBytes     int64 // resident and private, of the VMM
	MemoryPeakBytes int64
	OOMKills        int64 // by the host's cgroup; 0 without one
	DiskWritten     int64
}

// Exit tells how a VMM ended.
type Exit struct {
	At      time.Time
	Code    int    // the VMM's exit status, -1 if a signal ended it or it is unknown
	Signal  int    // 0 if none
	Stderr  string // its last words, bounded; for our log
	OOMKill bool   // the host's cgroup counted an OOM kill
	ByKill  bool   // by VM.Kill
}
