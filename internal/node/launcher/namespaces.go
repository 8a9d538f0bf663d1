package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// attempt is one way to be born in namespaces.
type attempt struct {
	flags uintptr
	user  bool // through a user namespace
	on    []string
}

const nsFlags = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNS

var nsLayers = []string{LayerPIDNS, LayerNetNS, LayerIPCNS, LayerUTSNS, LayerMountNS}

// attempts are the ways to try in order; the last always works. With network
// the network namespace has been entered before.
func attempts(network bool) []attempt {
	best := attempt{flags: nsFlags, on: nsLayers}
	if network {
		isNet := func(layer string) bool { return layer == LayerNetNS }
		best = attempt{flags: nsFlags &^ unix.CLONE_NEWNET, on: slices.DeleteFunc(slices.Clone(nsLayers), isNet)}
	}
	if os.Geteuid() != 0 {
		best.user = true
		best.flags |= unix.CLONE_NEWUSER
		best.on = append([]string{LayerUserNS}, nsLayers...)
	}
	return []attempt{best, {}}
}

// validNetwork refuses what is no network namespace, and our own.
func validNetwork(f *os.File) error {
	if f == nil {
		return nil
	}
	if os.Geteuid() != 0 {
		return fault.New(fault.Unsupported, "only root can have a VMM born in a network namespace").WithHint("run the agent as root")
	}
	// Only a namespace's file answers this.
	kind, err := namespaceType(f)
	if err != nil || kind != unix.CLONE_NEWNET {
		return fault.Invalid("network", "open a file such as /proc/self/ns/net", "%s is no network namespace", f.Name())
	}
	theirs, err := f.Stat()
	if err != nil {
		return fmt.Errorf("looking at the network namespace: %w", err)
	}
	ours, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("looking at the network namespace: %w", err)
	}
	if os.SameFile(theirs, ours) {
		return fault.Invalid("network", "make one for the VMM", "the network namespace is the agent's own")
	}
	return nil
}

// namespaceType is the CLONE_NEW… that a namespace is of.
func namespaceType(f *os.File) (kind int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := rc.Control(func(fd uintptr) { kind, err = unix.IoctlRetInt(int(fd), unix.NS_GET_NSTYPE) })
	return kind, errors.Join(cerr, err)
}

// privateRoot replaces the root of this mount namespace by a read-only one in
// which only what is named exists. The VM's folder is what it is built on; what
// that holds is not lost, only out of sight.
//
// Sources are opened before anything is covered, and copied with their mounts,
// so it does not matter that they lie below it.
func privateRoot(pl *plan, readOnly []string) error {
	scratch := pl.Dir
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	trees, err := openTrees(pl, readOnly)
	defer func() {
		for _, t := range trees {
			_ = unix.Close(t.fd)
		}
	}()
	if err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tartarus", scratch, "tmpfs", flags, "size=256k,nr_inodes=1024,mode=0755"); err != nil {
		return fmt.Errorf("mounting a root: %w", err)
	}
	if pl.OwnFiles {
		if err := showItself(filepath.Join(scratch, "proc")); err != nil {
			_ = unix.Unmount(scratch, unix.MNT_DETACH)
			return err
		}
	}
	if err := fillRoot(scratch, trees); err != nil {
		_ = unix.Unmount(scratch, unix.MNT_DETACH) // else it would hide what it covers
		return err
	}
	return nil
}

// showItself mounts the part of /proc that is of processes: in a PID namespace
// of its own, the VMM alone.
func showItself(at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY
	if err := unix.Mount("proc", at, "proc", flags, "subset=pid"); err != nil {
		return fmt.Errorf("showing the VMM itself: %w", err)
	}
	return nil
}

// tree is a copy of a mount, not attached anywhere.
type tree struct {
	path string
	fd   int
	dir  bool
}

func openTrees(pl *plan, readOnly []string) ([]tree, error) {
	var out []tree
	open := func(path string, attrs uint64) error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("copying the mount of %s: %w", path, err)
		}
		t := tree{path: path, fd: fd}
		out = append(out, t)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("looking at %s: %w", path, err)
		}
		out[len(out)-1].dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		attr := unix.MountAttr{Attr_set: attrs}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("making %s read-only: %w", path, err)
		}
		return nil
	}
	for _, p := range topmost(readOnly) {
		if err := open(p, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
			return out, err
		}
	}
	for _, p := range pl.Devices {
		if err := open(p, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return out, err
		}
	}
	for _, p := range topmost(append(pl.socketFolders(), pl.Writable...)) {
		if err := open(p, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NODEV); err != nil {
			return out, err
		}
	}
	return out, nil
}

// fillRoot attaches the trees below root and makes it the root.
func fillRoot(root string, trees []tree) error {
	for _, t := range trees {
		if err := attach(root, t); err != nil {
			return fmt.Errorf("showing %s: %w", t.path, err)
		}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, root, 0, &attr); err != nil {
		return fmt.Errorf("making the root read-only: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("entering the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	// The old root now lies over the new one, and "." is in it.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("letting go of the old root: %w", err)
	}
	return unix.Chdir("/")
}

// attach puts one tree at its path below root. No path lies inside another
// (topmost saw to it), so all that is walked here is folders of our own.
func attach(root string, t tree) error {
	target := filepath.Join(root, t.path)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if t.dir {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	} else {
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	return unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// topmost leaves out the paths that lie below others: those show them already.
func topmost(paths []string) []string {
	sorted := slices.Sorted(slices.Values(paths))
	var out []string
	for _, p := range slices.Compact(sorted) {
		if !slices.ContainsFunc(out, func(dir string) bool { return strings.HasPrefix(p, dir+"/") }) {
			out = append(out, p)
		}
	}
	return out
}
