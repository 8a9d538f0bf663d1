package guestd

import (
	"errors"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heapLimit is when init's collector begins to work: never, unless something
// is wrong. It runs without, for under emulation a collection is dear.
const heapLimit = 12 << 20

// Main boots the guest, obeys the host and powers off. It never returns.
func Main() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapLimit)
	runtime.LockOSThread()
	err := run()
	if err == nil {
		err = errors.New("the loop ended")
	}
	say("fatal: " + err.Error())
	powerOff(mustReset())
	for {
		_ = unix.Pause()
	}
}

func run() error {
	if unix.Getpid() != 1 {
		return errors.New("this is the init of a guest; it has no other use")
	}
	ignoreSignals()
	if err := mountKernel(); err != nil {
		return err
	}
	wake, err := checkClock()
	if err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	loopbackUp()
	port, err := openPort()
	if err != nil {
		return err
	}
	vm, err := newVM()
	if err != nil {
		return err
	}
	return Serve(Config{Port: port, Machine: vm, ReapAll: true, Batch: setBatch, Wake: wake, Log: say}, -1)
}

// say writes a line to the console.
func say(line string) {
	_, _ = unix.Write(2, []byte("tartarus-guest: "+strings.ReplaceAll(line, "\n", " ")+"\n"))
}

// ignoreSignals takes back the handlers that Go's runtime installs for signals
// that would end the process: with them a `kill 1` of root would end the guest.
// The default action is not enough. The kernel keeps such signals from PID 1
// but when they come while its first thread blocks them, as Go's does to fork;
// it then finds a thread that does not, and ends them all. Commands get the
// default action: Go gives it back in each child for what it once handled.
func ignoreSignals() {
	action := [32]byte{1} // struct sigaction of the kernel: SIG_IGN, no flags
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGABRT, unix.SIGTRAP, unix.SIGSYS, unix.SIGXCPU,
		unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGIO, unix.SIGPWR, unix.SIGSTKFLT} {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	}
}

// mount is one row of a table of mounts.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

const (
	noDev  = unix.MS_NODEV
	noExec = unix.MS_NOEXEC
	noSuid = unix.MS_NOSUID
)

// kernelMounts are what init itself needs. They are moved or mounted again
// when the commands' root is made.
var kernelMounts = []mount{
	{"dev", "/dev", "devtmpfs", noSuid, ""},
	{"proc", "/proc", "proc", noSuid | noDev | noExec, ""},
	{"sysfs", "/sys", "sysfs", noSuid | noDev | noExec, ""},
	{"cgroup2", cgroupFolder, "cgroup2", noSuid | noDev | noExec, ""},
}

// cgroupFolder is where init sees the cgroups, outside the commands' root.
const cgroupFolder = "/cgroup"

func mountKernel() error { return mountAll(kernelMounts) }

func mountAll(table []mount) error {
	for _, m := range table {
		if err := unix.Mkdir(m.target, 0o755); err != nil && err != unix.EEXIST {
			return wrap("making "+m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return wrap("mounting "+m.target, err)
		}
	}
	return nil
}

// modulesList names the modules to load, one a line, in their order.
const modulesList = "/etc/tartarus/modules"

// netModules serve a network card, and are loaded only for one: that saves a
// boot without it a fiftieth of a second.
var netModules = [...]string{"failover", "net_failover", "virtio_net"}

// loadModules loads the list in its order, the card's last.
func loadModules() error {
	list, err := readFile(modulesList, 1<<16)
	if errors.Is(err, unix.ENOENT) {
		return nil // a kernel with everything built in
	}
	if err != nil {
		return err
	}
	var card []string
	for name := range strings.FieldsSeq(list) {
		name = strings.TrimSuffix(name, ".ko")
		if slices.Contains(netModules[:], name) {
			card = append(card, name)
		} else if err := loadModule(name); err != nil {
			return err
		}
	}
	if len(card) == 0 || !hasCard() {
		return nil
	}
	for _, name := range card {
		if err := loadModule(name); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(name string) error {
	path := "/modules/" + name + ".ko"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("opening "+path, err)
	}
	err = unix.FinitModule(fd, "", 0)
	unix.Close(fd)
	if err != nil && err != unix.EEXIST {
		return wrap("loading "+path, err)
	}
	return nil
}

// mustReset reports whether the machine cannot be switched off: one with
// vsock has no power switch, and its kernel would halt for ever.
func mustReset() bool {
	kind, err := channel()
	return err == nil && kind == channelVsock
}

// powerOff ends the VM. Where the machine cannot be switched off it is reset,
// and the host runs the VMM so that a reset ends it.
func powerOff(reset bool) {
	if !reset {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
