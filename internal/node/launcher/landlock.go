package launcher

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// The calls are made directly, on this thread alone: the Go libraries apply
// them to all threads of a process, which is for those that go on running.

// landlockABI is what a version of Landlock can refuse.
type landlockABI struct {
	fs, net, scoped uint64
}

// abis are those known here, by version; a later kernel is used as the last.
var abis = []landlockABI{
	1:  {fs: 1<<13 - 1},
	2:  {fs: 1<<14 - 1},
	3:  {fs: 1<<15 - 1},
	4:  {fs: 1<<15 - 1, net: 1<<2 - 1},
	5:  {fs: 1<<16 - 1, net: 1<<2 - 1},
	6:  {fs: 1<<16 - 1, net: 1<<2 - 1, scoped: 1<<2 - 1},
	7:  {fs: 1<<16 - 1, net: 1<<2 - 1, scoped: 1<<2 - 1},
	8:  {fs: 1<<16 - 1, net: 1<<2 - 1, scoped: 1<<2 - 1},
	9:  {fs: 1<<17 - 1, net: 1<<2 - 1, scoped: 1<<2 - 1},
	10: {fs: 1<<17 - 1, net: 1<<4 - 1, scoped: 1<<2 - 1},
}

// restrictFiles confines the calling thread, and what it executes, to reading
// the files named, executing two, using the devices, writing the files that
// are the VMM's own, and making sockets in its folder. It returns the ABI,
// 0 when the kernel has none.
func restrictFiles(pl *plan, execute []string, l *layers) (int, error) {
	r0, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	v := int(r0)
	if e != 0 || v < 1 {
		for _, n := range []string{LayerLandlock, LayerLandlockNetwork, LayerLandlockScope} {
			l.miss(n, fmt.Sprintf("the kernel has no Landlock: %v", e))
		}
		return 0, nil
	}
	abi := abis[min(v, len(abis)-1)]
	// The kernel takes a longer struct than its own if the rest is zero.
	attr := unix.LandlockRulesetAttr{Handled_access_fs: abi.fs, Handled_access_net: abi.net, Scoped: abi.scoped}
	r0, _, e = unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if e != 0 {
		return v, fmt.Errorf("making Landlock rules: %w", e)
	}
	rs := int(r0)
	defer unix.Close(rs)
	rules := []struct {
		paths []string
		allow uint64
	}{
		{pl.ReadOnly, unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR},
		{execute, unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE},
		{pl.Devices, unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
		{pl.Writable, unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE},
		{pl.socketFolders(), unix.LANDLOCK_ACCESS_FS_MAKE_SOCK},
	}
	for _, r := range rules {
		for _, p := range r.paths {
			if err := allowPath(rs, p, r.allow&abi.fs); err != nil {
				return v, err
			}
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rs), 0, 0); e != 0 {
		return v, fmt.Errorf("applying Landlock rules: %w", e)
	}
	l.add(LayerLandlock)
	note(l, LayerLandlockNetwork, abi.net != 0, v, 4)
	note(l, LayerLandlockScope, abi.scoped != 0, v, 6)
	return v, nil
}

func note(l *layers, name string, on bool, have, need int) {
	if on {
		l.add(name)
		return
	}
	l.miss(name, fmt.Sprintf("the kernel's Landlock has ABI %d, it takes %d", have, need))
}

func allowPath(rs int, path string, allow uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("allowing %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("allowing %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		allow &^= unix.LANDLOCK_ACCESS_FS_READ_DIR
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: allow, Parent_fd: int32(fd)}
	if _, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rs), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0); e != 0 {
		return fmt.Errorf("allowing %s: %w", path, e)
	}
	return nil
}

// interpreter is the dynamic linker that a program names, "" for a static one.
func interpreter(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fault.Wrap(fault.Unsupported, err, "the VMM %s cannot be executed", program).WithHint("check that it is a program for this machine")
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(p.Open(), unix.PathMax))
		if err != nil {
			return "", fmt.Errorf("reading the VMM's dynamic linker: %w", err)
		}
		path := strings.TrimRight(string(b), "\x00")
		if _, err := os.Stat(path); err != nil {
			return "", fault.Wrap(fault.Unsupported, err, "the dynamic linker of the VMM %s is missing", program).WithHint("install its libraries")
		}
		return path, nil
	}
	return "", nil
}
