package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Process is a running VMM with its outer stage. All methods may be called at
// once, and after its end.
type Process struct {
	id        Identity // of the outer stage
	vmm       Identity
	abi       int
	dir       string
	isolation sandbox.Isolation

	mu    sync.Mutex // guards the pidfds; -1 when closed
	pidfd int
	vmmfd int

	done chan struct{}
	exit Exit // set before done closes
}

// Identity is that of the outer stage, whose end ends the VMM.
func (p *Process) Identity() Identity { return p.id }

// Pid is that of the outer stage: the process that ends the whole VM when
// killed.
func (p *Process) Pid() int { return p.id.Pid }

// StartTime is that of the outer stage, in clock ticks after boot.
func (p *Process) StartTime() uint64 { return p.id.StartTime }

// VMM is the identity of the VMM itself.
func (p *Process) VMM() Identity { return p.vmm }

// LandlockABI is the version of Landlock that confines it, 0 for none.
func (p *Process) LandlockABI() int { return p.abi }

// Isolation is the layers that confine it and those that are missing, each
// with why. The accelerator is not the launcher's to know.
func (p *Process) Isolation() sandbox.Isolation {
	return sandbox.Isolation{Confinement: slices.Clone(p.isolation.Confinement), Missing: slices.Clone(p.isolation.Missing)}
}

// Done is closed when both processes are gone, by whatever.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit tells how the VMM ended; only after Done.
func (p *Process) Exit() Exit {
	select {
	case <-p.done:
		return p.exit
	default:
		return Exit{Code: -1, Unknown: true}
	}
}

// lastWords is how long the outer stage may take to write down how a killed
// VMM ended, before it is killed too.
const lastWords = 2 * time.Second

// Kill ends the VMM at once and waits until both processes are gone, or ctx
// ends; the order to die has been given then.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.signal(&p.vmmfd); err != nil {
		return fmt.Errorf("killing the VMM: %w", err)
	}
	t := time.NewTimer(lastWords)
	defer t.Stop()
	select {
	case <-p.done:
		return nil
	case <-t.C:
	case <-ctx.Done():
	}
	if err := p.signal(&p.pidfd); err != nil {
		return fmt.Errorf("killing the launcher: %w", err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the VMM to end: %w", ctx.Err())
	}
}

func (p *Process) signal(fd *int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if *fd < 0 {
		return nil
	}
	return killPidfd(*fd)
}

// watch waits for both processes; Start started it, and it ends with them.
func (p *Process) watch() {
	ws, err := waitChild(p.id.Pid)
	clean := err == nil && ws.Exited() && ws.ExitStatus() == 0
	if !clean {
		_ = p.signal(&p.vmmfd) // the parent-death signal has done it already
	}
	if p.vmmfd >= 0 {
		_ = waitPidfd(context.Background(), p.vmmfd)
	}
	e, rerr := ReadExit(p.dir)
	if rerr != nil {
		e = Exit{At: time.Now(), Code: -1, Signal: int(unix.SIGKILL), Unknown: true}
	}
	p.exit = e
	p.mu.Lock()
	_ = unix.Close(p.pidfd)
	p.pidfd = -1
	if p.vmmfd >= 0 {
		_ = unix.Close(p.vmmfd)
		p.vmmfd = -1
	}
	p.mu.Unlock()
	close(p.done)
}

// Stderr is the last bytes of the VMM's standard error, raw.
func (p *Process) Stderr() string {
	s, err := ReadStderr(p.dir)
	if err != nil {
		return ""
	}
	return s
}

var errNoWord = errors.New("the agent is gone")
