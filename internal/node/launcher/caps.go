package launcher

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions here act on the calling thread alone. That is enough and
// wanted: the thread is locked, and it is the one that executes the VMM, which
// ends all others.

// dropPrivileges gives up the groups, the user (where the agent is root) and
// every capability.
func dropPrivileges(pl *plan, l *layers) error {
	root := os.Geteuid() == 0
	if err := dropBounding(); err != nil {
		l.miss(LayerBounding, err.Error())
	} else {
		l.add(LayerBounding)
	}
	if root {
		if err := becomeUser(pl, l); err != nil {
			return err
		}
	} else {
		l.miss(LayerOwnUID, "the agent is not root")
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	l.add(LayerCapabilities)
	return nil
}

func becomeUser(pl *plan, l *layers) error {
	uid, gid := pl.UID, pl.GID
	if uid == 0 || gid == 0 {
		l.miss(LayerOwnUID, "no uid and gid were given")
	}
	groups := deviceGroups(pl.Devices)
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); e != 0 {
		return fmt.Errorf("dropping groups: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return fmt.Errorf("becoming group %d: %w", gid, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return fmt.Errorf("becoming user %d: %w", uid, e)
	}
	if uid != 0 && gid != 0 {
		l.add(LayerOwnUID)
	}
	return nil
}

// deviceGroups are the groups that alone give a user of its own a way to its
// devices, as kvm does to /dev/kvm.
func deviceGroups(devices []string) []uint32 {
	var out []uint32
	for _, d := range devices {
		var st unix.Stat_t
		if unix.Stat(d, &st) == nil && st.Mode&0o060 == 0o060 && st.Mode&0o006 != 0o006 && st.Gid != 0 {
			out = append(out, st.Gid)
		}
	}
	return out
}

// dropBounding empties the ambient and bounding sets. Without rights to that,
// no_new_privs sees to it that an exec gives nothing back.
func dropBounding() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing ambient capabilities: %w", err)
	}
	for c := uintptr(0); c <= 63; c++ {
		have, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last one that this kernel knows
		}
		if err != nil {
			return fmt.Errorf("reading the bounding set: %w", err)
		}
		if have == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("emptying the bounding set: %w", err)
		}
	}
	return nil
}
