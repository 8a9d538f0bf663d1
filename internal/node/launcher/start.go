package launcher

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// maxReports bounds what the stages may tell.
const maxReports = 256 << 10

// Start starts the VMM and returns when its own program runs. When it fails,
// or ctx ends first, nothing is left but files in Spec.Dir. ctx bounds Start
// alone.
//
// The errors: fault.InvalidArgument for a bad Spec, fault.Unsupported for a
// VMM that cannot be run or a required layer that is missing.
func Start(ctx context.Context, s Spec) (*Process, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(s.Argv[0]); err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
		return nil, fault.Wrap(fault.Unsupported, err, "the VMM %s cannot be executed", s.Argv[0]).
			WithHint("install it, or set the path of the one to use")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, n := range []string{launchFile, exitFile, stderrFile, stderrFile + ".old"} {
		if err := os.Remove(filepath.Join(s.Dir, n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("preparing the VM's folder: %w", err)
		}
	}
	b, err := fork(&s)
	if err != nil {
		return nil, err
	}
	p, err := b.finish(ctx)
	if err != nil {
		b.abort()
		return nil, err
	}
	return p, nil
}

// birth is a launcher that has been forked and has not finished yet.
type birth struct {
	dir     string
	pid     int // of the outer stage, our child until finish hands it over
	pidfd   int
	reports *os.File // read end
	word    *os.File // write end: one byte lets the outer stage go on
	told    layers
	abi     int
	vmm     Identity
}

// descriptors are those that the outer stage gets, 3 and up; all are copies.
type descriptors struct{ fds []uintptr }

func (d *descriptors) close() {
	for _, fd := range d.fds {
		_ = unix.Close(int(fd))
	}
}

// add appends a copy of f's descriptor, without touching the mode of f.
func (d *descriptors) add(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("handing in %s: %w", f.Name(), err)
	}
	var dup int
	var derr error
	if err := rc.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return fmt.Errorf("handing in %s: %w", f.Name(), err)
	}
	if derr != nil {
		return fmt.Errorf("handing in %s: %w", f.Name(), derr)
	}
	d.fds = append(d.fds, uintptr(dup))
	return nil
}

// fork starts the outer stage.
func fork(s *Spec) (*birth, error) {
	var d descriptors
	defer d.close()
	b := &birth{dir: s.Dir, pidfd: -1}
	pl := &plan{
		Argv: s.Argv, Env: s.Env, Dir: s.Dir, ReadOnly: s.ReadOnly, Devices: s.Devices, Syscalls: s.Syscalls,
		Writable: s.Writable, Sockets: s.Sockets, OwnFiles: s.OwnFiles, Jail: s.Jail, Hold: len(s.Hold),
		UID: s.UID, GID: s.GID, Limits: s.Limits, Require: s.Require, Files: len(s.Files), Lifeline: s.Lifeline != nil, Network: s.Network != nil,
	}
	reportW, goR, err := b.pipes()
	if err != nil {
		return nil, err
	}
	d.fds = make([]uintptr, 2, 3+len(s.Files))
	d.fds[0], d.fds[1] = uintptr(reportW), uintptr(goR)
	if b.pid, err = b.exec(s, pl, &d); err != nil {
		b.closePipes()
		return nil, err
	}
	return b, nil
}

// exec puts the descriptors together, the plan's first, and forks.
func (b *birth) exec(s *Spec, pl *plan, d *descriptors) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("starting the launcher: %w", err)
	}
	defer null.Close()
	sys := &syscall.SysProcAttr{Setsid: true, PidFD: &b.pidfd}
	var files []*os.File
	for _, f := range []*os.File{s.Lifeline, s.Network} {
		if f != nil {
			files = append(files, f)
		}
	}
	group, err := joinCgroup(s, sys, pl)
	defer func() {
		for _, f := range group {
			_ = f.Close()
		}
	}()
	if err != nil {
		return 0, err
	}
	if !sys.UseCgroupFD {
		files = append(files, group...)
	}
	for _, f := range slices.Concat(files, s.Files, s.Hold) {
		if err := d.add(f); err != nil {
			return 0, err
		}
	}
	planFD, err := planFile(pl)
	if err != nil {
		return 0, err
	}
	d.fds = append([]uintptr{uintptr(planFD)}, d.fds...)
	n := null.Fd()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{Name, filepath.Base(s.Dir)}, &syscall.ProcAttr{
		Dir: "/", Env: stageEnv(), Files: append([]uintptr{n, n, n}, d.fds...), Sys: sys,
	})
	if err != nil {
		return 0, fmt.Errorf("starting the launcher: %w", err)
	}
	return pid, nil
}

// stageEnv is the environment of the stages: one thread at work, no garbage
// collection in a life of milliseconds, and nothing of the agent's. (The last is
// for builds with the race detector, which waits a second at every exit.)
func stageEnv() []string {
	return []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=16MiB", "GODEBUG=asyncpreemptoff=1", "GOTRACEBACK=single", "GORACE=atexit_sleep_ms=0"}
}

// joinCgroup arranges that the outer stage is born in the group (v2), or joins
// it by the files returned before it does anything else (v1).
func joinCgroup(s *Spec, sys *syscall.SysProcAttr, pl *plan) ([]*os.File, error) {
	if s.Cgroup == nil {
		return nil, nil
	}
	j, err := s.Cgroup.Join()
	if err != nil {
		return nil, fmt.Errorf("opening the VM's cgroup: %w", err)
	}
	pl.On = j.On
	pl.Missing = j.Missing
	if j.Dir != nil {
		sys.UseCgroupFD = true
		sys.CgroupFD = int(j.Dir.Fd())
		return []*os.File{j.Dir}, nil
	}
	pl.Cgroups = len(j.Procs)
	return j.Procs, nil
}

// pipes makes the two to the stages. Their ends block, as plain programs
// expect; ours do not.
func (b *birth) pipes() (reportW, goR int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, fmt.Errorf("starting the launcher: %w", err)
	}
	reportW = fds[1]
	_ = unix.SetNonblock(fds[0], true) // so that it has deadlines
	b.reports = os.NewFile(uintptr(fds[0]), "reports")
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		_ = b.reports.Close()
		_ = unix.Close(reportW)
		return -1, -1, fmt.Errorf("starting the launcher: %w", err)
	}
	b.word = os.NewFile(uintptr(fds[1]), "word")
	return reportW, fds[0], nil
}

func (b *birth) closePipes() {
	_ = b.reports.Close()
	_ = b.word.Close()
	if b.pidfd >= 0 {
		_ = unix.Close(b.pidfd)
	}
}

// finish hears the stages until the VMM's own program runs.
func (b *birth) finish(ctx context.Context) (*Process, error) {
	stop := context.AfterFunc(ctx, func() { _ = b.reports.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := b.hear(); err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return nil, fmt.Errorf("starting the VMM: %w", cerr)
		}
		return nil, err
	}
	outer, err := Identify(b.pid)
	if err != nil {
		return nil, fmt.Errorf("finding the launcher: %w", err)
	}
	vmmfd, err := b.vmm.open()
	if errors.Is(err, ErrGone) {
		vmmfd, err = -1, nil // it has ended at once: Done and Exit will tell
	}
	if err != nil {
		return nil, err
	}
	if b.pidfd < 0 { // a kernel without CLONE_PIDFD has no pidfd at all, but for 5.3's
		if b.pidfd, err = unix.PidfdOpen(b.pid, 0); err != nil {
			return nil, fmt.Errorf("opening the launcher: %w", err)
		}
	}
	_ = b.reports.Close()
	_ = b.word.Close()
	p := &Process{
		id: outer, vmm: b.vmm, abi: b.abi, dir: b.dir, pidfd: b.pidfd, vmmfd: vmmfd, done: make(chan struct{}),
		isolation: sandbox.Isolation{Confinement: b.told.on, Missing: b.told.missingList()},
	}
	go p.watch()
	return p, nil
}

// hear reads the stages' reports to their end.
func (b *birth) hear() error {
	var executed bool
	dec := json.NewDecoder(bufio.NewReader(io.LimitReader(b.reports, maxReports)))
	for {
		var r report
		err := dec.Decode(&r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("hearing the launcher: %w", err)
		}
		b.told.add(r.On...)
		for _, m := range r.Missing {
			b.told.miss(m[0], m[1])
		}
		b.abi = max(b.abi, r.ABI)
		if r.VMM != nil {
			b.vmm = *r.VMM
		}
		if r.Err != "" {
			return fault.New(fault.KindOfCode(r.Kind), "%s", r.Err).WithHint("%s", r.Hint)
		}
		if r.Ready {
			if _, err := b.word.Write([]byte{1}); err != nil {
				return fmt.Errorf("letting the launcher go on: %w", err)
			}
		}
		executed = executed || r.Exec
	}
	if !executed {
		return errors.New("the launcher died before the VMM ran")
	}
	return nil
}

// abort ends whatever was started and waits for its end. It is not bounded by
// a context: nothing here survives SIGKILL.
func (b *birth) abort() {
	_ = b.word.Close()
	if b.vmm.Pid != 0 {
		_ = killAndWait(context.Background(), b.vmm)
	}
	_ = unix.Kill(b.pid, unix.SIGKILL) // our child, not waited for yet
	_, _ = waitChild(b.pid)
	// The last writer is gone when the inner stage is, by its parent-death signal.
	_ = b.reports.SetReadDeadline(time.Time{})
	dec := json.NewDecoder(io.LimitReader(b.reports, maxReports))
	for {
		var r report
		if dec.Decode(&r) != nil {
			break
		}
		if r.VMM != nil {
			b.vmm = *r.VMM
		}
	}
	_, _ = io.Copy(io.Discard, b.reports)
	if b.vmm.Pid != 0 {
		_ = killAndWait(context.Background(), b.vmm) // it may have got as far as its exec
	}
	b.closePipes()
}

// waitChild reaps one child.
func waitChild(pid int) (unix.WaitStatus, error) {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return ws, err
	}
}
