package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/vmproc"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	quitTimeout    = 2 * time.Second  // for QEMU to end by itself after the guest's end
	consoleTimeout = 2 * time.Second  // for one read of the console's ring
	endTimeout     = 15 * time.Second // for a killed process to be gone
	lastWords      = 1 << 10          // bytes of QEMU's stderr that are told
)

// vm is one QEMU. Its goroutine tend lives from attach until QEMU has ended,
// and closes done as the last thing.
type vm struct {
	d      *Driver
	spec   tartarus.Spec // Lifeline is not used after Start
	memory *os.File      // the guest's, of a VM that will be saved
	proc   *launcher.Process
	group  *cgroup.Group // nil without cgroups
	handle tartarus.Handle
	mon    *monitor
	usage  *vmproc.Meter

	halted chan struct{} // holds one: the guest ended or QEMU stopped by itself
	done   chan struct{}
	exit   tartarus.Exit // set before done is closed

	mu     sync.Mutex
	port   chan struct{} // guarded by mu; closed while the guest listens
	isOpen bool          // guarded by mu; port is closed
	stream net.Conn      // guarded by mu; the last one dialled
	byKill bool          // guarded by mu; Kill was called before the end
	crash  string        // guarded by mu; what QEMU's own state said of its end

	dialing sync.Mutex // held while a stream is opened
	reading sync.Mutex // held while the ring is read
	console []byte     // guarded by reading; the last of what was read of the ring
}

var _ tartarus.VM = (*vm)(nil)

func newVM(d *Driver, s tartarus.Spec) *vm {
	return &vm{
		d: d, spec: s,
		halted: make(chan struct{}, 1),
		done:   make(chan struct{}),
		port:   make(chan struct{}),
	}
}

// attach opens the monitor, starts tend and lets the vCPUs go.
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
	conn, err := connect(actx, filepath.Join(v.spec.Dir, monitorSocket))
	if err == nil {
		v.mon, err = openMonitor(actx, conn, v.event)
	}
	if err == nil {
		if err = v.letGo(actx); err != nil {
			v.mon.close()
		}
	}
	if err != nil {
		v.awaitLastWords(actx)
		if cause := context.Cause(actx); cause != nil {
			err = cause
		}
		return err
	}
	v.usage = vmproc.NewMeter(v.proc.VMM().Pid, v.spec.Scratch, v.group)
	go v.tend()
	return nil
}

// letGo lets the vCPUs run. Those of a restored VM do when their state is
// loaded, and their guest listens already.
func (v *vm) letGo(ctx context.Context) error {
	if v.spec.Restore != nil {
		if err := v.restore(ctx, fdState); err != nil {
			return err
		}
		v.setPort(true)
	}
	return v.mon.call(ctx, "cont", nil, nil)
}

// awaitLastWords gives a QEMU that has closed its monitor the time to say why
// and to end.
func (v *vm) awaitLastWords(ctx context.Context) {
	t := time.NewTimer(quitTimeout)
	defer t.Stop()
	select {
	case <-v.proc.Done():
	case <-ctx.Done():
	case <-t.C:
	}
}

// event is called by the monitor's reader.
func (v *vm) event(name string, data json.RawMessage) {
	switch name {
	case "VSERPORT_CHANGE":
		var p struct {
			ID   string `json:"id"`
			Open bool   `json:"open"`
		}
		if json.Unmarshal(data, &p) == nil && p.ID == portID {
			v.setPort(p.Open)
		}
	case "SHUTDOWN", "STOP":
		select {
		case v.halted <- struct{}{}:
		default:
		}
	}
}

func (v *vm) setPort(open bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case open && !v.isOpen:
		close(v.port)
	case !open && v.isOpen:
		v.port = make(chan struct{})
	}
	v.isOpen = open
}

// tend waits for the end. A guest that ended leaves QEMU stopped: its console
// is read and QEMU told to go.
func (v *vm) tend() {
	for alive := true; alive; {
		select {
		case <-v.proc.Done():
			alive = false
		case <-v.halted:
			if v.over() {
				v.conclude()
				alive = false
			}
		}
	}
	<-v.proc.Done()
	v.mon.close()
	v.exit = vmproc.Exit(v.proc.Exit())
	v.exit.Stderr = v.lastWords()
	if s, err := v.usage.Sample(); err == nil {
		v.exit.OOMKill = s.OOMKills > 0
	}
	v.mu.Lock()
	v.exit.ByKill = v.byKill && v.exit.Signal != 0
	if v.crash != "" {
		v.exit.Stderr = strings.TrimSpace(v.crash + "\n" + v.exit.Stderr)
	}
	v.mu.Unlock()
	close(v.done)
}

// over reports whether a stopped VM will not go on by itself: its guest has
// ended, or QEMU gave up on it.
func (v *vm) over() bool {
	ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
	defer cancel()
	var s struct {
		Status string `json:"status"`
	}
	if v.mon.call(ctx, "query-status", nil, &s) != nil {
		return true
	}
	switch s.Status {
	case "running", "paused", "finish-migrate", "postmigrate":
		return false
	case "shutdown":
		return true
	}
	v.mu.Lock()
	v.crash = fmt.Sprintf("QEMU stopped the guest with %.64q", s.Status)
	v.mu.Unlock()
	return true
}

// conclude ends a QEMU whose guest has ended.
func (v *vm) conclude() {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	v.usage.Sample() //nolint:errcheck // an older one will do
	v.readRing(ctx)
	qctx, qcancel := context.WithTimeout(ctx, quitTimeout)
	defer qcancel()
	if v.mon.call(qctx, "quit", nil, nil) == nil {
		select {
		case <-v.proc.Done():
			return
		case <-qctx.Done():
		}
	}
	if err := v.proc.Kill(ctx); err != nil {
		v.d.log.Error("a VMM does not end", "sandbox", v.spec.ID, "err", err)
	}
}

// Handle is what the journal keeps.
func (v *vm) Handle() tartarus.Handle { return v.handle }

// Isolation is what really confines this VM.
func (v *vm) Isolation() sandbox.Isolation { return v.d.isolationOf(v.proc) }

// Dial opens the stream to the guest once it listens.
func (v *vm) Dial(ctx context.Context) (net.Conn, error) {
	v.dialing.Lock()
	defer v.dialing.Unlock()
	if err := v.awaitPort(ctx); err != nil {
		return nil, fmt.Errorf("dialling vm %q: %w", v.spec.ID, err)
	}
	v.mu.Lock()
	old := v.stream
	v.stream = nil
	v.mu.Unlock()
	if old != nil {
		_ = old.Close() // QEMU serves one stream; the next waits for its end
	}
	conn, err := connect(ctx, filepath.Join(v.spec.Dir, guestSocket))
	if err != nil {
		return nil, fmt.Errorf("dialling vm %q: %w", v.spec.ID, err)
	}
	v.mu.Lock()
	v.stream = conn
	v.mu.Unlock()
	return conn, nil
}

func (v *vm) awaitPort(ctx context.Context) error {
	v.mu.Lock()
	port := v.port
	v.mu.Unlock()
	select {
	case <-v.done:
		return errEnded
	default:
	}
	select {
	case <-port:
		return nil
	case <-v.done:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

var (
	errEnded       = errors.New("the VM has ended")
	errEndedAtOnce = errors.New("qemu ended at once")
)

// Sample reads what the host sees the VM use.
func (v *vm) Sample() (tartarus.Sample, error) { return v.usage.Sample() }

// Pause stops the vCPUs.
func (v *vm) Pause(ctx context.Context) error { return v.command(ctx, "stop") }

// Resume lets them go on.
func (v *vm) Resume(ctx context.Context) error { return v.command(ctx, "cont") }

func (v *vm) command(ctx context.Context, name string) error {
	select {
	case <-v.done:
		return fmt.Errorf("vm %q: %w", v.spec.ID, errEnded)
	default:
	}
	if err := v.mon.call(ctx, name, nil, nil); err != nil {
		return fmt.Errorf("vm %q: %w", v.spec.ID, err)
	}
	return nil
}

// Done is closed when QEMU has ended.
func (v *vm) Done() <-chan struct{} { return v.done }

// Exit tells how QEMU ended.
func (v *vm) Exit() tartarus.Exit {
	select {
	case <-v.done:
		return v.exit
	default:
		return tartarus.Exit{Code: -1}
	}
}

// Kill ends QEMU and removes what Start made.
func (v *vm) Kill(ctx context.Context) error {
	select {
	case <-v.done:
	default:
		v.mu.Lock()
		v.byKill = true
		v.mu.Unlock()
		v.usage.Sample() //nolint:errcheck // the last sample that can be had; an older one will do
		if err := v.proc.Kill(ctx); err != nil {
			return fmt.Errorf("killing vm %q: %w", v.spec.ID, err)
		}
		select {
		case <-v.done:
		case <-ctx.Done():
			return fmt.Errorf("killing vm %q: %w", v.spec.ID, ctx.Err())
		}
	}
	v.mu.Lock()
	stream := v.stream
	v.stream = nil
	v.mu.Unlock()
	if stream != nil {
		_ = stream.Close()
	}
	if err := v.remove(ctx); err != nil {
		return fmt.Errorf("killing vm %q: %w", v.spec.ID, err)
	}
	return nil
}

// remove takes away what Start made around the process, which has ended.
func (v *vm) remove(ctx context.Context) error {
	if v.memory != nil {
		_ = v.memory.Close() // nobody has it any more
	}
	removeFiles(v.spec.Dir)
	return vmproc.DropGroup(ctx, v.spec.Dir, v.group)
}

// removeFiles takes our files from a VM's folder. What the launcher wrote
// there stays until the caller removes the folder: it tells how QEMU ended.
func removeFiles(dir string) {
	for _, name := range []string{monitorSocket, guestSocket} {
		_ = os.Remove(filepath.Join(dir, name)) // the caller removes the folder
	}
}
