package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// tcgCPU is everything that TCG emulates, without the string instructions that
// guests take for fast: under translation a plain loop is faster (boots took 8 %
// less CPU without them).
const tcgCPU = "max,-erms,-fsrm"

// The descriptors that QEMU is born with, in the order of Spec.Files.
const (
	fdMonitor = 3 + iota // listening socket of the monitor
	fdGuest              // listening socket of the guest's channel
	fdRoot               // the template's disk, opened read-only
	fdScratch            // the sandbox's disk
	fdCard               // the TAP of its network card, if it has one

	// A VM that is saved or restored has no card.
	fdMemory = fdCard     // the guest's memory
	fdState  = fdCard + 1 // what a restored one loads
)

const (
	// translationMiB bounds TCG's translated code; it is a good part of
	// sandbox.VMOverheadMiB. QEMU's default maps 1 GiB.
	translationMiB = 32

	// maxVCPUs is as many as a translation buffer of that size serves well.
	maxVCPUs = 8

	portName = "tartarus.guest"
	portID   = "guest0"  // of the port's device, in events
	ringID   = "console" // of the console's chardev
)

// machine is what differs between architectures.
type machine struct {
	binary  string
	options string // of -M
	console string // the kernel's name of the first serial port
}

// machines by GOARCH. Without PIT and PIC an idle guest costs less: QEMU's
// timer interrupt otherwise fires for ever.
var machines = map[string]machine{
	"amd64": {"qemu-system-x86_64", "microvm,acpi=on,pit=off,pic=off", "ttyS0"},
}

// boot is what a VM's command line is made of.
type boot struct {
	machine machine
	accel   string // tcg or kvm
	tscKHz  int64  // 0: the guest finds out itself
	verbose bool   // the kernel tells its steps on the console
	spec    tartarus.Spec
}

// args is QEMU's command line without the binary. Everything comes in by
// descriptor, but kernel and initramfs, which QEMU opens by path.
func (b boot) args() []string {
	mib := strconv.FormatInt(b.spec.MemoryMiB, 10)
	a := []string{
		"-name", "guest=" + string(b.spec.ID),
		"-M", b.machine.options + ",memory-backend=ram,mem-merge=off,dump-guest-core=off",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-smp", strconv.Itoa(b.spec.VCPUs),
		"-m", mib + "M",
		"-object", b.memory() + ",id=ram,size=" + mib + "M,merge=off,dump=off",
		// It starts stopped, so that no event is missed, and stays when the
		// guest has ended, so that the console can be read.
		"-S", "-action", "reboot=shutdown,shutdown=pause,panic=shutdown",
		"-chardev", socketChardev("monitor", fdMonitor), "-mon", "chardev=monitor,mode=control",
		// A ring in QEMU's memory: it drops what is old and never blocks.
		"-chardev", "ringbuf,id=" + ringID + ",size=" + strconv.Itoa(tartarus.ConsoleBytes), "-serial", "chardev:" + ringID,
		"-device", "virtio-serial-device",
		"-chardev", socketChardev("channel", fdGuest), "-device", "virtserialport,chardev=channel,id=" + portID + ",name=" + portName,
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// Of a restored one, too, which has its kernel in memory: without it
		// microvm has no way to be reset, and a guest that ends so would stay.
		"-kernel", b.spec.Kernel, "-initrd", b.spec.Initrd, "-append", b.cmdline(),
	}
	if b.accel == "kvm" {
		a = append(a, "-accel", "kvm", "-cpu", "host")
	} else {
		a = append(a, "-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationMiB), "-cpu", tcgCPU)
	}
	a = append(a, disk("root", fdRoot, "read-only=on")...)
	// The scratch disk ends with the VM: nobody reads it after a crash, so
	// flushes are ignored; and what the guest frees, the host gets back.
	a = append(a, disk("scratch", fdScratch, "cache.no-flush=on,discard=unmap")...)
	if b.spec.Restore != nil {
		a = append(a, "-incoming", "defer")
	}
	if n := b.spec.NIC; n != nil {
		a = append(a, "-netdev", fmt.Sprintf("tap,id=card,fd=%d", fdCard), "-device", "virtio-net-device,netdev=card,mac="+n.MAC.String())
	}
	return a
}

// memory is where the guest's memory is.
func (b boot) memory() string {
	const file = "memory-backend-file,mem-path=/proc/self/fd/%d,share=%s"
	switch {
	case b.spec.Save != nil:
		return fmt.Sprintf(file, fdMemory, "on")
	case b.spec.Restore != nil:
		return fmt.Sprintf(file, fdMemory, "off")
	}
	return "memory-backend-ram"
}

func socketChardev(id string, fd int) string {
	return fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, fd)
}

// disk is a block device. An error of the host's disk is reported to the guest
// instead of stopping it. openFiles has locked what needs a lock. A VM that is
// restored would drop the disks' pages from the host's memory first.
func disk(id string, fd int, options string) []string {
	return []string{
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd),
		"-blockdev", fmt.Sprintf("driver=file,node-name=%s,filename=/dev/fdset/%d,locking=off,drop-cache=off,%s", id, fd, options),
		"-device", fmt.Sprintf("virtio-blk-device,drive=%s,serial=%s,werror=report,rerror=report", id, id),
	}
}

// cmdline is the kernel's command line: what the machine needs, then what the
// guest bundle wants.
func (b boot) cmdline() string {
	words := []string{"console=" + b.machine.console, "panic=-1"}
	if !b.verbose {
		words = append(words, "quiet")
	}
	if b.tscKHz > 0 && b.accel == "tcg" {
		// reliable: the kernel would otherwise judge it by counting ticks, lose
		// some on a busy host, and tell the time by those that are left from
		// then on; in all that go on from a snapshot of such a guest, too.
		words = append(words, "tsc_early_khz="+strconv.FormatInt(b.tscKHz, 10), "tsc=reliable")
	}
	if c := strings.TrimSpace(b.spec.Cmdline); c != "" {
		words = append(words, c)
	}
	return strings.Join(words, " ")
}
