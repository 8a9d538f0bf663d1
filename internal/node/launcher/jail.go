package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Jail prepares what Firecracker's jailer expects. In a mount namespace of the
// VMM's own, which ends with it, the VM's folder is covered by a small tmpfs
// in which the jail's root is made and filled with mounts of the files that
// belong in it. The host sees none of this, so nothing is left of it when the
// VMM is gone, however that came; whoever wants something of the jail finds it
// through /proc/PID/root.
//
// The inner stage then becomes the jailer, still root, in the namespaces that
// every VMM gets, and the jailer becomes the VMM. ReadOnly, Devices, Writable,
// Files and Syscalls are not used. The layers that the jailer applies are not
// told of: who started it looks at the process. Its change of user clears the
// parent-death signal, so the end of the outer stage alone does not end the
// VMM: the agent sees to that, or KillLeftoverIn.
type Jail struct {
	Root  string // of the jail, relative to Dir
	Bytes int64  // that the tmpfs may hold
	Files []JailFile
	Fifos []string // named pipes to make in Root, for the user UID
}

// JailFile is a file of the host that appears in the jail.
type JailFile struct {
	From     string // absolute
	Name     string // in Root, without a slash
	Writable bool
}

func (j *Jail) validate() error {
	if j == nil {
		return nil
	}
	if os.Geteuid() != 0 {
		return fault.New(fault.Unsupported, "only root can start a jail").WithHint("run the agent as root, or without the jailer")
	}
	if !filepath.IsLocal(j.Root) || filepath.Clean(j.Root) != j.Root || j.Root == "." || j.Bytes <= 0 {
		return fault.Invalid("jail", "give a root below the VM's folder and its size", "%q of %d bytes is no jail", j.Root, j.Bytes)
	}
	names := j.Fifos
	var from []string
	for _, f := range j.Files {
		names = append(names[:len(names):len(names)], f.Name)
		from = append(from, f.From)
	}
	for _, n := range names {
		if n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
			return fault.Invalid("jail", "give a name without a slash", "%q cannot be in a jail", n)
		}
	}
	return validPaths("jail", from)
}

const jailInodes = 128

// prepareJail makes the jail's root and fills it.
func (in *inner) prepareJail() error {
	pl, j := in.plan, in.plan.Jail
	if !pl.OwnNS {
		_, why := in.layers.lacks([]string{LayerMountNS})
		return fault.New(fault.Unsupported, "there are no namespaces for a jail: %s", why).
			WithHint("give the agent CAP_SYS_ADMIN")
	}
	if err := unix.Sethostname([]byte("vmm")); err != nil {
		return fmt.Errorf("hiding the host's name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	fds, err := openJailFiles(j.Files)
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	if err != nil {
		return err
	}
	unix.Umask(0o022)
	// No nodev and no noexec: the jailer puts device nodes and the VMM in it.
	data := fmt.Sprintf("size=%d,nr_inodes=%d,mode=0755", j.Bytes, jailInodes)
	if err := unix.Mount("tartarus-jail", pl.Dir, "tmpfs", unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("mounting the jail: %w", err)
	}
	root := filepath.Join(pl.Dir, j.Root)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("making the jail: %w", err)
	}
	for i, f := range j.Files {
		if err := attach(root, tree{path: f.Name, fd: fds[i]}); err != nil {
			return fmt.Errorf("putting %s into the jail: %w", f.From, err)
		}
	}
	for _, n := range j.Fifos {
		path := filepath.Join(root, n)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return fmt.Errorf("making the pipe %s: %w", n, err)
		}
		if err := os.Lchown(path, pl.UID, pl.GID); err != nil {
			return fmt.Errorf("making the pipe %s: %w", n, err)
		}
	}
	unix.Umask(0o077)
	if err := setLimits(pl.Limits, &in.layers); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	in.layers.add(LayerNoNewPrivs)
	return nil
}

// openJailFiles copies the mounts of the files, not attached anywhere, before
// anything is covered.
func openJailFiles(files []JailFile) ([]int, error) {
	var fds []int
	for _, f := range files {
		fd, err := unix.OpenTree(unix.AT_FDCWD, f.From, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return fds, fmt.Errorf("copying the mount of %s: %w", f.From, err)
		}
		fds = append(fds, fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fds, fmt.Errorf("looking at %s: %w", f.From, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return fds, fault.New(fault.InvalidArgument, "%s is not a plain file", f.From).WithHint("only plain files enter a jail")
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
		if !f.Writable {
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fds, fmt.Errorf("confining %s: %w", f.From, err)
		}
	}
	return fds, nil
}
