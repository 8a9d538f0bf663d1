package guestd

import (
	"strings"

	"golang.org/x/sys/unix"
)

// The devices, in the order that the host gives them.
const (
	templateDevice = "vda"
	scratchDevice  = "vdb"
)

// The folders of the initramfs in which the root is put together.
const (
	lowerFolder   = "/lower"
	scratchFolder = "/scratch"
	stageFolder   = "/stage"
	rootFolder    = "/root.new"
)

// stage makes whatever a root needs that is the same for all sandboxes, before
// any of them is known: what is done by then is part of a snapshot, and need
// not be done by those that go on from it. Nothing of the template runs.
func stage() error {
	if err := mountAll([]mount{{"/dev/" + templateDevice, lowerFolder, "ext4", unix.MS_RDONLY | noDev, ""}}); err != nil {
		return err
	}
	if err := unix.Mkdir(stageFolder, 0o755); err != nil {
		return wrap("making "+stageFolder, err)
	}
	return mountCommands()
}

// makeRoot joins template and scratch, and makes that the root of init and of
// all commands. The initramfs stays mounted below it, where nobody sees it.
func makeRoot() error {
	err := mountAll([]mount{{"/dev/" + scratchDevice, scratchFolder, "ext4", noDev | unix.MS_NOATIME, "noinit_itable"}})
	if err != nil {
		return err
	}
	for _, dir := range []string{scratchFolder + "/upper", scratchFolder + "/work"} {
		if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
			return wrap("making "+dir, err)
		}
	}
	// volatile: nothing of it is read after this guest, so nobody need wait
	// for a sync.
	data := "lowerdir=" + lowerFolder + ",upperdir=" + scratchFolder + "/upper,workdir=" + scratchFolder + "/work,volatile"
	if err := mountAll([]mount{{"overlay", rootFolder, "overlay", noDev | unix.MS_NOATIME, data}}); err != nil {
		return err
	}
	for _, dir := range stagedFolders {
		if err := mountAll([]mount{{stageFolder + dir, rootFolder + dir, "", unix.MS_MOVE, ""}}); err != nil {
			return err
		}
	}
	return switchRoot()
}

// commandMounts are what a command finds in its root. A template has the
// folders; missing ones are made.
var commandMounts = []mount{
	{"proc", stageFolder + "/proc", "proc", noSuid | noDev | noExec, ""},
	{"sysfs", stageFolder + "/sys", "sysfs", noSuid | noDev | noExec | unix.MS_RDONLY, ""},
	{cgroupFolder, stageFolder + "/sys/fs/cgroup", "", unix.MS_BIND, ""},
	{"", stageFolder + "/sys/fs/cgroup", "", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | noSuid | noDev | noExec, ""},
	{"dev", stageFolder + "/dev", "tmpfs", noSuid | noExec, "mode=755,size=64k,nr_inodes=256"},
	{"devpts", stageFolder + "/dev/pts", "devpts", noSuid | noExec, "newinstance,ptmxmode=0666,mode=620,gid=5"},
	{"shm", stageFolder + "/dev/shm", "tmpfs", noSuid | noDev, "mode=1777,size=50%"},
	{"tmp", stageFolder + "/tmp", "tmpfs", noSuid | noDev, "mode=1777,size=50%"},
	{"run", stageFolder + "/run", "tmpfs", noSuid | noDev, "mode=755,size=10%"},
}

// stagedFolders are those of commandMounts that the others are in.
var stagedFolders = [...]string{"/proc", "/sys", "/dev", "/tmp", "/run"}

// devices are the nodes of a command's /dev.
var devices = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

var deviceLinks = [...][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
}

func mountCommands() error {
	for _, m := range commandMounts {
		if err := mountAll([]mount{m}); err != nil && !strings.HasSuffix(m.target, "/sys/fs/cgroup") {
			return err
		}
	}
	dev := stageFolder + "/dev/"
	for _, d := range devices {
		if err := unix.Mknod(dev+d.name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return wrap("making /dev/"+d.name, err)
		}
		if err := unix.Chmod(dev+d.name, 0o666); err != nil {
			return wrap("making /dev/"+d.name, err)
		}
	}
	for _, l := range deviceLinks {
		if err := unix.Symlink(l[0], dev+l[1]); err != nil {
			return wrap("making /dev/"+l[1], err)
		}
	}
	return nil
}

// switchRoot moves the new root over the old one. A chroot alone could be left
// by a command that is root.
func switchRoot() error {
	if err := unix.Chdir(rootFolder); err != nil {
		return wrap("entering the root", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return wrap("moving the root", err)
	}
	if err := unix.Chroot("."); err != nil {
		return wrap("changing the root", err)
	}
	return wrapNil("entering the root", unix.Chdir("/"))
}
