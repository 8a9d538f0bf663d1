package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const diskTimeout = 30 * time.Second

// firstStage leaves the initramfs for the disk, and makes a host of it.
func firstStage() error {
	for _, m := range []mount{{"proc", "/proc", 0, ""}, {"sysfs", "/sys", 0, ""}, {"devtmpfs", "/dev", 0, "mode=0755"}} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := os.Mkdir("/new", 0o755); err != nil {
		return err
	}
	if err := mountDisk("/dev/vda", "/new"); err != nil {
		return err
	}
	// The jailer's pivot_root refuses to leave an initramfs, so it is left for
	// good: what was mounted last is the root of all that follows.
	for _, dir := range []string{"proc", "sys", "dev"} {
		if err := unix.Mount("/"+dir, "/new/"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving /%s: %w", dir, err)
		}
	}
	if err := errors.Join(os.Chdir("/new"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("changing to the disk: %w", err)
	}
	for _, step := range []func() error{mountRest, ownAll, delegate, devices, loopback} {
		if err := step(); err != nil {
			return err
		}
	}
	return unix.Sethostname([]byte("lab"))
}

type mount struct {
	kind, at string
	flags    uintptr
	options  string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.options); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", m.kind, m.at, err)
	}
	return nil
}

func mountRest() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []mount{
		{"cgroup2", "/sys/fs/cgroup", plain | unix.MS_NOEXEC, ""},
		{"securityfs", "/sys/kernel/security", plain | unix.MS_NOEXEC, ""},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", plain, "mode=1777"},
		{"tmpfs", "/run", plain, "mode=0755"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// loadModules loads what the initramfs has, in the order it tells.
func loadModules() error {
	list, err := os.ReadFile("/etc/tartarus/modules")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open("/modules/" + name + ".ko")
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading kernel module %s: %w", name, err)
		}
		if err := os.Remove("/modules/" + name + ".ko"); err != nil { // it takes memory
			return err
		}
	}
	return nil
}

// mountDisk waits for a disk that is still being found.
func mountDisk(dev, at string) error {
	end := time.Now().Add(diskTimeout)
	for {
		err := unix.Mount(dev, at, "ext4", 0, "")
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("mounting %s: %w", dev, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ownAll gives root what an ordinary user put on the disk.
func ownAll() error {
	var root unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return err
	}
	return filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
			return nil
		case st.Dev != root.Dev:
			return fs.SkipDir // a mount, which is a folder
		case st.Uid == 0 && st.Gid == 0:
			return nil
		}
		return os.Lchown(path, 0, 0) // nothing here is setuid, which this would clear
	})
}

// delegate offers every controller that there is to the groups below the root,
// as a host's service manager does.
func delegate() error {
	const top = "/sys/fs/cgroup/"
	have, err := os.ReadFile(top + "cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(have)) {
		switch c {
		case "cpu", "memory", "pids", "io", "cpuset":
			if err := os.WriteFile(top+"cgroup.subtree_control", []byte("+"+c), 0); err != nil {
				return fmt.Errorf("offering controller %s: %w", c, err)
			}
		}
	}
	return nil
}

// kvmGroup is the group that may open /dev/kvm, as in the disk's /etc/group.
const kvmGroup = 105

// devices gives devices the owners and modes that a host's device manager
// gives them.
func devices() error {
	for _, d := range []struct {
		path string
		gid  int
		mode fs.FileMode
	}{{"/dev/kvm", kvmGroup, 0o660}, {"/dev/net/tun", 0, 0o666}} {
		err := os.Chown(d.path, 0, d.gid)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := errors.Join(err, os.Chmod(d.path, d.mode)); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(to, "/dev/"+name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// loopback brings lo up.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}
