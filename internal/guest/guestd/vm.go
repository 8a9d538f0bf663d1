package guestd

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// vm is the machine of a real guest.
type vm struct {
	cgroups int   // the root of the cgroup tree
	box     int   // the cgroup of all commands
	staged  error // why there can be no root
	scratch string
	online  bool // the card is set up
	reset   bool // its end is a reset
}

func newVM() (*vm, error) {
	fd, err := unix.Open(cgroupFolder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, wrap("opening the cgroup tree", err)
	}
	v := &vm{cgroups: fd, reset: mustReset()}
	if err := v.makeBox(); err != nil {
		return nil, err
	}
	// A host that wants to know why there is no root asks for one.
	if v.staged = stage(); v.staged == nil && asked(guestwire.WordWarm) {
		readAhead(lowerFolder)
	}
	return v, nil
}

// asked reports whether a word is on the kernel's command line.
func asked(word string) bool {
	text, _ := readFile("/proc/cmdline", 1<<12)
	return slices.Contains(strings.Fields(text), word)
}

// spare is what stays for init and the kernel of the memory that is available
// when the commands' limit is set. The limit is never higher than that leaves,
// whatever the host says: beyond it the kernel would kill for want of memory
// in all the guest, and not in the commands' cgroup.
const spare = 8 << 20

func (v *vm) Setup(s *guestwire.Setup) error {
	if s.WallClock != 0 {
		ts := unix.NsecToTimespec(s.WallClock)
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return wrap("setting the clock", err)
		}
	}
	if err := addEntropy(s.Entropy); err != nil {
		return wrap("adding entropy", err)
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return wrap("setting the host name", err)
		}
	}
	if err := v.limitBox(s); err != nil {
		return err
	}
	if s.Root == guestwire.RootDisks && v.scratch == "" {
		if v.staged != nil {
			return v.staged
		}
		if err := makeRoot(); err != nil {
			return err
		}
		v.scratch = scratchDevice
	}
	if s.Network != nil && !v.online {
		if err := setCard(s.Network); err != nil {
			return err
		}
		v.online = true
	}
	identify(s)
	return nil
}

// identify writes the files that tell who this is. A template without the
// folder does without.
func identify(s *guestwire.Setup) {
	for _, f := range [...][2]string{{"/etc/hostname", s.Hostname}, {"/etc/machine-id", s.MachineID}} {
		if f[1] == "" {
			continue
		}
		fd, err := unix.Open(f[0], unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o444)
		if err == nil {
			_, _ = unix.Write(fd, []byte(f[1]+"\n"))
			unix.Close(fd)
		}
	}
}

// minEntropy is what the kernel's generator takes to be ready.
const minEntropy = 32

// addEntropy gives the host's random bytes to the kernel's generator, counted,
// and has it take them into use at once. Without them no command may run: what
// the generator has without is the same in all clones of a snapshot.
func addEntropy(b []byte) error {
	if len(b) < minEntropy {
		return errors.New("the host gave " + strconv.Itoa(len(b)) + " random bytes, not " + strconv.Itoa(minEntropy))
	}
	fd, err := unix.Open("/dev/random", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info := struct {
		bits, size int32
		data       [guestwire.MaxEntropy]byte
	}{bits: int32(len(b) * 8), size: int32(len(b))}
	copy(info.data[:], b)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); e != 0 {
		return e
	}
	const rndReseedCRNG = 0x5207
	// Clones of one snapshot would share what the generator had before.
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), rndReseedCRNG, 0); e != 0 {
		return e
	}
	return nil
}

// loopbackUp gives the commands a localhost. It is no network card.
func loopbackUp() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	_ = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func (v *vm) Account(user string) (Account, error) {
	passwd, err := readFile("/etc/passwd", maxUserFile)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return Account{}, err
	}
	group, err := readFile("/etc/group", maxUserFile)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return Account{}, err
	}
	return findAccount(user, passwd, group)
}

// makeBox makes the cgroup of all commands.
func (v *vm) makeBox() error {
	if err := writeAt(v.cgroups, "cgroup.subtree_control", "+cpu +memory +pids"); err != nil {
		return err
	}
	if err := unix.Mkdirat(v.cgroups, "commands", 0o755); err != nil && err != unix.EEXIST {
		return wrap("making the commands' cgroup", err)
	}
	fd, err := unix.Openat(v.cgroups, "commands", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("opening the commands' cgroup", err)
	}
	v.box = fd
	return nil
}

// limitBox bounds what all commands together may have.
func (v *vm) limitBox(s *guestwire.Setup) error {
	memory := max(availableMemory()-spare, spare)
	if s.MemoryBytes > 0 {
		memory = min(memory, s.MemoryBytes)
	}
	if err := writeAt(v.box, "memory.max", strconv.FormatInt(memory, 10)); err != nil {
		return err
	}
	if s.Processes > 0 {
		return writeAt(v.box, "pids.max", strconv.FormatInt(s.Processes, 10))
	}
	return nil
}

// availableMemory is the kernel's estimate, in bytes.
func availableMemory() int64 {
	text, _ := readFile("/proc/meminfo", 1<<16)
	return meminfo(text, "MemAvailable:")
}

func meminfo(text, key string) int64 {
	for line := range strings.SplitSeq(text, "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			return parseCount(f[1]) << 10
		}
	}
	return 0
}

// cgroup is a cage: a leaf below the commands' cgroup, where the limits are.
type cgroup struct {
	parent int
	name   string
	fd     int
	events int
}

func (v *vm) Cage(proc uint32) (Cage, error) {
	c := &cgroup{parent: v.box, name: strconv.FormatUint(uint64(proc), 10), events: -1}
	err := unix.Mkdirat(v.box, c.name, 0o755)
	if err != nil && err != unix.EEXIST {
		return nil, err
	}
	if c.fd, err = unix.Openat(v.box, c.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if c.events, err = unix.Openat(c.fd, "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		unix.Close(c.fd)
		return nil, err
	}
	return c, nil
}

func (c *cgroup) CgroupFD() int { return c.fd }
func (c *cgroup) Events() int   { return c.events }
func (c *cgroup) Kill(int)      { _ = writeAt(c.fd, "cgroup.kill", "1") }

func (c *cgroup) Empty() bool {
	var b [256]byte
	n, err := unix.Pread(c.events, b[:], 0)
	return err != nil || strings.Contains(string(b[:max(n, 0)]), "populated 0")
}

func (c *cgroup) Close() {
	if c.fd < 0 {
		return
	}
	unix.Close(c.events)
	unix.Close(c.fd)
	_ = unix.Unlinkat(c.parent, c.name, unix.AT_REMOVEDIR)
	c.fd, c.events = -1, -1
}

func (v *vm) PowerOff() { powerOff(v.reset) }
