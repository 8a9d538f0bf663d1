package launcher

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outer is the outer stage.
type outer struct {
	plan     *plan
	lifeline int // -1 for none
	network  int // -1 for none
	files    []int
	self     Identity
	stderr   *os.File // read end of the VMM's 1 and 2
	gate     int      // write end; its end tells the inner stage that this process is gone
	vmm      int      // pid
	vmmfd    int      // its pidfd
}

// outerMain is the life of the outer stage; its result is the exit status.
func outerMain() int {
	// The parent-death signal of the VMM hangs on the thread that forks it.
	runtime.LockOSThread()
	signal.Ignore(unix.SIGHUP)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM, unix.SIGINT)
	o := &outer{lifeline: -1, network: -1}
	if err := o.begin(); err != nil {
		if !errors.Is(err, errNoWord) {
			_ = sendReport(fdReport, report{Err: err.Error()})
		}
		return 1
	}
	ws, byLifeline := o.attend(term)
	e := Exit{At: time.Now(), Code: -1, ByLifeline: byLifeline}
	switch {
	case ws.Exited():
		e.Code = ws.ExitStatus()
	case ws.Signaled():
		e.Signal = int(ws.Signal())
	}
	if err := writeJSON(filepath.Join(o.plan.Dir, exitFile), e); err != nil {
		return 1
	}
	return 0
}

// begin does everything up to the birth of the inner stage.
func (o *outer) begin() error {
	if err := closeOnExec(fdPlan); err != nil {
		return err
	}
	var err error
	if o.plan, err = readPlan(fdPlan); err != nil {
		return err
	}
	next := fdRest
	if o.plan.Lifeline {
		o.lifeline = next
		next++
	}
	if o.plan.Network {
		o.network = next
		next++
	}
	for range o.plan.Cgroups {
		if _, err := unix.Write(next, []byte("0")); err != nil {
			return fmt.Errorf("joining the VM's cgroup: %w", err)
		}
		_ = unix.Close(next)
		next++
	}
	for range o.plan.Files {
		o.files = append(o.files, next)
		next++
	}
	// What is to be held comes after these, and stays open by being left alone.
	if o.self, err = Identify(os.Getpid()); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(o.plan.Dir, launchFile), launch{Outer: o.self}); err != nil {
		return err
	}
	o.note()
	// From here on a later agent finds this process. If this one is gone by
	// now, nothing has happened yet, and nothing shall.
	if err := sendReport(fdReport, report{Ready: true}); err != nil {
		return err
	}
	if n, err := readByte(fdGo); n != 1 || err != nil {
		return errNoWord
	}
	return o.birth()
}

// note adds the layers that this stage knows of to the plan.
func (o *outer) note() {
	if sid, err := unix.Getsid(0); err == nil && sid == os.Getpid() {
		o.plan.On = append(o.plan.On, LayerSession)
	} else {
		o.plan.Missing = append(o.plan.Missing, [2]string{LayerSession, "setsid had no effect"})
	}
}

// birth forks the inner stage and lets go of what is the VMM's.
func (o *outer) birth() error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("making the VMM's standard error: %w", err)
	}
	o.stderr = os.NewFile(uintptr(fds[0]), "stderr")
	stderrW := fds[1]
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("making the gate: %w", err)
	}
	gateR := fds[0]
	o.gate = fds[1]

	if err := o.enterNetwork(); err != nil {
		return err
	}
	var err error
	for _, a := range attempts(o.plan.Network) {
		o.plan.OwnNS = a.flags != 0
		o.vmm, err = o.fork(a, stderrW, gateR)
		if err == nil {
			o.plan.On = append(o.plan.On, a.on...)
			break
		}
		for _, n := range a.on {
			o.plan.Missing = append(o.plan.Missing, [2]string{n, err.Error()})
		}
	}
	if err != nil {
		return fmt.Errorf("forking the inner stage: %w", err)
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // after the fork: an ordinary user's id maps are written through /proc
	if o.vmmfd, err = unix.PidfdOpen(o.vmm, 0); err != nil {
		return fmt.Errorf("opening the inner stage: %w", err)
	}
	id, err := Identify(o.vmm)
	if err != nil {
		return fmt.Errorf("finding the inner stage: %w", err)
	}
	if err := writeJSON(filepath.Join(o.plan.Dir, launchFile), launch{Outer: o.self, VMM: id}); err != nil {
		return err // our end ends it
	}
	if err := sendReport(fdReport, report{VMM: &id}); err != nil {
		return err
	}
	for _, fd := range append([]int{stderrW, gateR, fdReport, fdGo}, o.files...) {
		_ = unix.Close(fd)
	}
	debug.FreeOSMemory()
	return nil
}

// enterNetwork takes the thread that forks into the VMM's network namespace,
// for good: it lives as long as this stage.
func (o *outer) enterNetwork() error {
	if o.network < 0 {
		return nil
	}
	if err := unix.Setns(o.network, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace: %w", err)
	}
	o.plan.On = append(o.plan.On, LayerNetNS)
	return unix.Close(o.network)
}

// fork makes the inner stage in new namespaces. What it is to know of them
// travels in a plan of its own, for the namespaces decide it.
func (o *outer) fork(a attempt, stderrW, gateR int) (int, error) {
	pl := *o.plan
	pl.On = append(append([]string{}, o.plan.On...), a.on...)
	planFD, err := planFile(&pl)
	if err != nil {
		return 0, err
	}
	defer unix.Close(planFD)
	files := []uintptr{0, uintptr(stderrW), uintptr(stderrW)}
	for _, fd := range o.files {
		files = append(files, uintptr(fd))
	}
	files = append(files, uintptr(planFD), fdReport, uintptr(gateR))
	sys := &syscall.SysProcAttr{Cloneflags: a.flags, Pdeathsig: unix.SIGKILL}
	if a.user {
		sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
		sys.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}
	}
	return syscall.ForkExec("/proc/self/exe", []string{innerName, fmt.Sprint(len(o.files)), filepath.Base(o.plan.Dir)},
		&syscall.ProcAttr{Dir: "/", Env: stageEnv(), Files: files, Sys: sys})
}

// attend waits for the VMM's end, and brings it about when the lifeline or the
// word of an operator says so.
func (o *outer) attend(term <-chan os.Signal) (unix.WaitStatus, bool) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		drain(o.stderr, o.plan.Dir)
	}()
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan bool, 1)
	go func() { watched <- o.watchLifeline(ctx) }()
	go func() {
		select {
		case <-term:
			_ = killPidfd(o.vmmfd)
		case <-ctx.Done():
		}
	}()
	ws, _ := waitChild(o.vmm)
	cancel()
	<-drained
	return ws, <-watched
}

// watchLifeline kills the VMM when the lifeline's other end closes.
func (o *outer) watchLifeline(ctx context.Context) bool {
	if o.lifeline < 0 {
		return false
	}
	if err := waitHangup(ctx, o.lifeline); err != nil {
		return false
	}
	_ = killPidfd(o.vmmfd)
	return true
}

func readByte(fd int) (int, error) {
	var b [1]byte
	for {
		n, err := unix.Read(fd, b[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n, err
	}
}

// closeOnExec marks all descriptors from first on.
func closeOnExec(first int) error {
	if err := unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err == nil {
		return nil
	}
	// Before Linux 5.11: one by one.
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("listing descriptors: %w", err)
	}
	for _, e := range fds {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
