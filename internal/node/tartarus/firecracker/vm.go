package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcapi"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/vmproc"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	lastWordsTimeout = 2 * time.Second  // for a VMM that has failed to say why and end
	endTimeout       = 15 * time.Second // for a killed process to be gone
	lastWords        = 1 << 10          // bytes of Firecracker's output that are told
)

// vm is one Firecracker. Its goroutine tend lives from attach until that has
// ended, and closes done as the last thing.
type vm struct {
	d         *Driver
	boot      boot // Lifeline is not used after Start
	proc      *launcher.Process
	group     *cgroup.Group // nil without cgroups
	handle    tartarus.Handle
	api       *fcapi.Client
	isolation sandbox.Isolation
	usage     *vmproc.Meter

	done chan struct{}
	exit tartarus.Exit // set before done is closed

	mu     sync.Mutex
	stream net.Conn // guarded by mu; the last one dialled
	byKill bool     // guarded by mu; Kill was called before the end

	dialing chan struct{} // holds one while a stream is opened
	reading sync.Mutex    // held while metrics are read
}

var _ tartarus.VM = (*vm)(nil)

func newVM(d *Driver, b boot) *vm {
	return &vm{d: d, boot: b, done: make(chan struct{}), dialing: make(chan struct{}, 1)}
}

var (
	errEnded       = errors.New("the VM has ended")
	errEndedAtOnce = errors.New("firecracker ended at once")
)

// attach waits for the API, tells Firecracker what to run and starts tend.
func (v *vm) attach(ctx context.Context) error {
	actx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-v.proc.Done():
			cancel(errEndedAtOnce)
		case <-actx.Done():
		}
	})
	defer wg.Wait()
	defer cancel(nil)
	err := v.speak(actx)
	if err == nil {
		err = v.judgeIsolation()
	}
	if err != nil {
		if ctx.Err() == nil && broke(err) {
			v.awaitLastWords(actx)
		}
		if cause := context.Cause(actx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return err
	}
	v.usage = vmproc.NewMeter(v.proc.VMM().Pid, v.boot.spec.Scratch, v.group)
	go v.tend()
	return nil
}

// speak opens the API, and has the VM booted or go on if there is one.
func (v *vm) speak(ctx context.Context) error {
	if err := v.awaitAPI(ctx); err != nil {
		return err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return v.connect(ctx, apiSocket) }
	var err error
	if v.api, err = fcapi.Connect(ctx, dial); err != nil {
		return err
	}
	if v.api.Version() != v.d.version {
		return fmt.Errorf("firecracker %v runs where %v was started", v.api.Version(), v.d.version)
	}
	if !v.boot.disks {
		return nil
	}
	if v.boot.spec.Restore != nil {
		return follow(v.goOn(ctx))
	}
	return follow(v.configure(ctx))
}

// awaitAPI waits until the API listens. Nothing tells when it does.
func (v *vm) awaitAPI(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		conn, err := v.connect(ctx, apiSocket)
		if err == nil {
			return conn.Close()
		}
		if !notThere(err) {
			return err
		}
		if err := rest(ctx, pause); err != nil {
			return fmt.Errorf("waiting for the API: %w", err)
		}
	}
}

// rest waits a moment, or until ctx ends.
func rest(ctx context.Context, pause time.Duration) error {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// awaitLastWords gives a Firecracker that failed the time to say why and to
// end.
func (v *vm) awaitLastWords(ctx context.Context) {
	t := time.NewTimer(lastWordsTimeout)
	defer t.Stop()
	select {
	case <-v.proc.Done():
	case <-ctx.Done():
		<-v.proc.Done()
	case <-t.C:
	}
}

// broke reports whether an error may come of Firecracker's end.
func broke(err error) bool {
	return notThere(err) || errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// tend waits for the end: a guest's reset is Firecracker's too.
func (v *vm) tend() {
	<-v.proc.Done()
	v.exit = vmproc.Exit(v.proc.Exit())
	v.exit.Stderr = v.lastWords()
	if s, err := v.usage.Sample(); err == nil {
		v.exit.OOMKill = s.OOMKills > 0
	}
	v.mu.Lock()
	v.exit.ByKill = v.byKill && v.exit.Signal != 0
	v.mu.Unlock()
	close(v.done)
}

// Handle is what the journal keeps.
func (v *vm) Handle() tartarus.Handle { return v.handle }

// Isolation is what really confines this VM.
func (v *vm) Isolation() sandbox.Isolation { return v.isolation }

// Sample reads what the host sees the VM use.
func (v *vm) Sample() (tartarus.Sample, error) { return v.usage.Sample() }

// Pause stops the vCPUs.
func (v *vm) Pause(ctx context.Context) error { return v.command(ctx, v.api.Pause) }

// Resume lets them go on.
func (v *vm) Resume(ctx context.Context) error { return v.command(ctx, v.api.Resume) }

func (v *vm) command(ctx context.Context, do func(context.Context) error) error {
	select {
	case <-v.done:
		return fmt.Errorf("vm %q: %w", v.boot.spec.ID, errEnded)
	default:
	}
	if err := do(ctx); err != nil {
		return fmt.Errorf("vm %q: %w", v.boot.spec.ID, err)
	}
	return nil
}

// Console writes the last of what the guest wrote to its serial port, and
// Firecracker to its log: the launcher keeps both, as one ring.
func (v *vm) Console(w io.Writer) error {
	text, err := launcher.ReadStderr(v.boot.spec.Dir)
	if err != nil {
		return fmt.Errorf("vm %q: %w", v.boot.spec.ID, err)
	}
	_, err = io.WriteString(w, text[max(0, len(text)-tartarus.ConsoleBytes):])
	return err
}

// lastWords is the end of that. Guest and VMM wrote it: it is for our log, and
// bounded.
func (v *vm) lastWords() string {
	text, err := launcher.ReadStderr(v.boot.spec.Dir)
	if err != nil {
		return ""
	}
	text = strings.ToValidUTF8(strings.TrimSpace(text), "?")
	return text[max(0, len(text)-lastWords):]
}

// Done is closed when Firecracker has ended.
func (v *vm) Done() <-chan struct{} { return v.done }

// Exit tells how Firecracker ended.
func (v *vm) Exit() tartarus.Exit {
	select {
	case <-v.done:
		return v.exit
	default:
		return tartarus.Exit{Code: -1}
	}
}

// Kill ends Firecracker and removes what Start made.
func (v *vm) Kill(ctx context.Context) error {
	if err := v.end(ctx); err != nil {
		return fmt.Errorf("killing vm %q: %w", v.boot.spec.ID, err)
	}
	return nil
}

func (v *vm) end(ctx context.Context) error {
	select {
	case <-v.done:
	default:
		v.mu.Lock()
		v.byKill = true
		v.mu.Unlock()
		v.usage.Sample() //nolint:errcheck // the last sample that can be had; an older one will do
		if err := v.proc.Kill(ctx); err != nil {
			return err
		}
		select {
		case <-v.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	v.hangUp()
	return v.remove(ctx)
}

// remove takes away what Start made around the process, which has ended. What
// the launcher wrote stays until the caller removes the folder: it tells how
// Firecracker ended.
func (v *vm) remove(ctx context.Context) error {
	return errors.Join(removeFiles(v.boot.spec.Dir), vmproc.DropGroup(ctx, v.boot.spec.Dir, v.group))
}
