package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
)

// What Firecracker makes, or finds, in its own folder: the jail's root, or
// without a jail runFolder in the VM's folder, where it works.
const (
	apiSocket   = "api.sock"
	vsockSocket = "vsock.sock"
	metricsPipe = "metrics"
	kernelFile  = "kernel"
	initrdFile  = "initrd"
	rootFile    = "root.img"
	scratchFile = "scratch.img"
	memoryFile  = "memory" // of a snapshot
	stateFile   = "state"
	runFolder   = "run"
)

const (
	openFiles = 256 // that a VMM may have

	// vmmThreads are Firecracker's, one a vCPU and a few more, and the
	// launcher's.
	vmmThreads = 128
)

// launch starts Firecracker confined.
func (d *Driver) launch(ctx context.Context, b boot, scratch *os.File, group *cgroup.Group) (*launcher.Process, error) {
	s := launcher.Spec{
		Dir:      b.spec.Dir,
		UID:      b.spec.UID,
		GID:      b.spec.GID,
		Lifeline: b.spec.Lifeline,
		Cgroup:   group,
		Limits:   launcher.Limits{OpenFiles: openFiles},
	}
	if n := b.spec.NIC; n != nil {
		s.Network = n.Namespace
	}
	if scratch != nil {
		s.Hold = []*os.File{scratch}
	}
	files, err := d.files(b)
	if err == nil && d.jailer != "" {
		err = d.jailed(&s, b, files)
	} else if err == nil {
		err = d.bare(&s, b, files)
	}
	if err != nil {
		return nil, err
	}
	return launcher.Start(ctx, s)
}

// arguments are Firecracker's, whoever starts it.
func (d *Driver) arguments() []string {
	return append([]string{"--api-sock", apiSocket, "--level", "Warn"}, d.extra...)
}

// bare has the launcher confine Firecracker, for an ordinary user. It works in
// runFolder, where links lead to the files that lie elsewhere.
func (d *Driver) bare(s *launcher.Spec, b boot, files []launcher.JailFile) error {
	run, err := d.makeRoom(b)
	if err != nil {
		return err
	}
	pipe := filepath.Join(run, metricsPipe)
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		return fmt.Errorf("making the pipe of metrics: %w", err)
	}
	s.Argv = append([]string{d.binary, "--id", b.id}, d.arguments()...)
	s.Sockets = run
	s.Writable = []string{pipe}
	s.Devices = []string{d.cfg.device}
	s.Syscalls = syscalls
	s.Require = append([]string{launcher.LayerPIDNS}, d.cfg.Require...)
	for _, f := range files {
		if name := filepath.Join(run, f.Name); name != f.From {
			if err := os.Symlink(f.From, name); err != nil {
				return fmt.Errorf("naming the VM's files: %w", err)
			}
		}
		if f.Writable {
			s.Writable = append(s.Writable, f.From)
		} else {
			s.ReadOnly = append(s.ReadOnly, f.From)
		}
	}
	return nil
}

// jailSpare is what the jail holds beside a copy of Firecracker.
const jailSpare = 1 << 20

// jailed has the jailer confine Firecracker, as root. Namespaces and cgroup
// are the launcher's; the jailer finds itself in them.
func (d *Driver) jailed(s *launcher.Spec, b boot, files []launcher.JailFile) error {
	if b.spec.Save != nil {
		if _, err := d.makeRoom(b); err != nil {
			return err
		}
	}
	name := filepath.Base(d.binary)
	s.Argv = append([]string{
		d.jailer, "--id", b.id, "--exec-file", d.binary,
		"--uid", strconv.Itoa(b.spec.UID), "--gid", strconv.Itoa(b.spec.GID),
		"--chroot-base-dir", b.spec.Dir, "--resource-limit", "no-file=" + strconv.Itoa(openFiles),
		"--",
	}, d.arguments()...)
	s.Jail = &launcher.Jail{
		Root:  filepath.Join(name, b.id, "root"),
		Bytes: d.bytes + jailSpare,
		Files: files,
		Fifos: []string{metricsPipe},
	}
	return nil
}

// syscalls are the system calls that Firecracker needs beyond
// launcher.BaseSyscalls and those of a VMM with sockets of its own. Its own
// filters come on top of these. Guests that call the host over vsock make it
// connect, which is refused.
var syscalls = []string{
	"accept4", "eventfd2", "fallocate", "fdatasync", "fsync", "ftruncate", "getpeername", "getsockname", "getsockopt", "ioctl", "kill", "memfd_create", "mincore", "msync",
	"recvfrom", "recvmsg", "sched_setaffinity", "seccomp", "sendmsg", "sendto", "setsockopt", "shutdown", "signalfd4", "timerfd_create",
	"timerfd_gettime", "timerfd_settime", "unlink",
}
