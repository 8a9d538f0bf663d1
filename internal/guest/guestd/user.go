package guestd

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxUserFile bounds what is read of /etc/passwd and /etc/group.
const maxUserFile = 1 << 20

// maxGroups bounds the supplementary groups of a user.
const maxGroups = 64

// findAccount resolves user against a passwd and a group file. A number needs
// no entry.
func findAccount(user, passwd, group string) (Account, error) {
	name, wantGroup, hasGroup := strings.Cut(user, ":")
	who := Account{Switch: true}
	id, numeric := parseID(name)
	known := false
	for line := range strings.SplitSeq(passwd, "\n") {
		f := strings.Split(line, ":")
		if len(f) < 7 {
			continue
		}
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		if found := f[0] == name || numeric && uid == id; !ok1 || !ok2 || !found {
			continue
		}
		known = true
		who.Name, who.UID, who.GID, who.Home = f[0], uid, gid, f[5]
		break
	}
	if !known {
		if !numeric {
			return Account{}, errors.New("user " + name + " is not in the template")
		}
		who.UID, who.GID, who.Home = id, id, "/"
	}
	var err error
	if hasGroup {
		who.GID, err = findGroup(wantGroup, group)
		return who, err
	}
	who.Groups = groupsOf(who.Name, who.GID, group)
	return who, nil
}

func findGroup(name, group string) (uint32, error) {
	for line := range strings.SplitSeq(group, "\n") {
		f := strings.Split(line, ":")
		if len(f) >= 3 && f[0] == name {
			if gid, ok := parseID(f[2]); ok {
				return gid, nil
			}
		}
	}
	if gid, ok := parseID(name); ok {
		return gid, nil
	}
	return 0, errors.New("group " + name + " is not in the template")
}

func groupsOf(user string, primary uint32, group string) []uint32 {
	groups := []uint32{primary}
	for line := range strings.SplitSeq(group, "\n") {
		f := strings.Split(line, ":")
		if len(f) < 4 || user == "" || len(groups) == maxGroups {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if gid, ok := parseID(f[2]); ok && member == user && gid != primary {
				groups = append(groups, gid)
			}
		}
	}
	return groups
}

// parseID reads a user or group number. The last one means "unchanged" to the
// kernel, so it is none.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < 1<<32-1
}

// readFile reads a small file, as /proc and /etc have them.
func readFile(path string, limit int) (string, error) {
	return readAt(unix.AT_FDCWD, path, limit)
}

func readAt(dir int, path string, limit int) (string, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", wrap("opening "+path, err)
	}
	defer unix.Close(fd)
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", wrap("reading "+path, err)
		}
		if n == 0 {
			return string(b), nil
		}
		if b = append(b, buf[:n]...); len(b) > limit {
			return "", errors.New(path + " is too long")
		}
	}
}

func writeAt(dir int, path, text string) error {
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("opening "+path, err)
	}
	defer unix.Close(fd)
	if _, err = unix.Write(fd, []byte(text)); err != nil {
		return wrap("writing "+path, err)
	}
	return nil
}
