package fakevm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// VM is a fake VM. Its goroutine run lives from Start to the end, waits for
// all others of the VM and closes done as the last thing.
type VM struct {
	d      *Driver
	spec   tartarus.Spec
	script Script
	born   time.Time
	guest  *guest
	ring   *ring

	ctx    context.Context // ends with the VM; its cause is an ending
	cancel context.CancelCauseFunc
	up     chan struct{} // closed when the guest listens
	done   chan struct{}
	exit   tartarus.Exit // set before done is closed
	wg     sync.WaitGroup

	mu     sync.Mutex
	stream net.Conn // guarded by mu; the host's end of the last one
}

var _ tartarus.VM = (*VM)(nil)

// ending is how a VM ends.
type ending struct{ tartarus.Exit }

func (ending) Error() string { return "the VM has ended" }

var errEnded = errors.New("the VM has ended")

func newVM(d *Driver, s tartarus.Spec, script Script) *VM {
	v := &VM{d: d, spec: s, script: script, born: time.Now(), ring: &ring{}, up: make(chan struct{}), done: make(chan struct{})}
	v.ctx, v.cancel = context.WithCancelCause(context.Background())
	v.guest = newGuest(v)
	return v
}

// begin starts the VM's goroutines.
func (v *VM) begin() error {
	if v.spec.Lifeline != nil {
		line, err := duplicate(v.spec.Lifeline)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(v.ctx, func() { _ = line.SetReadDeadline(time.Unix(1, 0)) })
		v.wg.Go(func() {
			defer line.Close() // a copy
			defer stop()
			if _, err := io.Copy(io.Discard, line); err == nil {
				v.finish(tartarus.Exit{Code: -1, Signal: int(syscall.SIGKILL)})
			}
		})
	}
	go v.run()
	return nil
}

// duplicate makes a descriptor of our own of the caller's lifeline.
func duplicate(f *os.File) (*os.File, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	if err := c.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	if err := unix.SetNonblock(fd, true); err != nil { // as os.Pipe made it
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (v *VM) run() {
	boot := time.NewTimer(v.script.BootDelay)
	defer boot.Stop()
	var end <-chan time.Time
	if v.script.EndAfter > 0 {
		t := time.NewTimer(v.script.EndAfter)
		defer t.Stop()
		end = t.C
	}
	for alive := true; alive; {
		select {
		case <-boot.C:
			if !v.script.NeverBoots {
				fmt.Fprintf(v.ring, "fakevm: the guest of %s listens\n", v.spec.ID)
				close(v.up)
			}
		case <-end:
			v.finish(v.script.End)
		case <-v.ctx.Done():
			alive = false
		}
	}
	v.mu.Lock()
	if v.stream != nil {
		_ = v.stream.Close()
	}
	v.mu.Unlock()
	v.guest.stop()
	v.wg.Wait()
	var e ending
	if errors.As(context.Cause(v.ctx), &e) {
		v.exit = e.Exit
	}
	v.exit.At = time.Now()
	v.d.leave(v)
	close(v.done)
}

// finish ends the VM; the first call counts.
func (v *VM) finish(e tartarus.Exit) { v.cancel(ending{e}) }

// Crash ends the VM as if somebody had killed its VMM, and waits for it.
func (v *VM) Crash() {
	v.finish(tartarus.Exit{Code: -1, Signal: int(syscall.SIGKILL)})
	<-v.done
}

// Handle has no process to name.
func (v *VM) Handle() tartarus.Handle { return tartarus.Handle{Driver: Name} }

// Dial opens a stream to the guest once it listens.
func (v *VM) Dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-v.up:
	case <-v.ctx.Done():
	case <-ctx.Done():
		return nil, fmt.Errorf("dialling vm %q: %w", v.spec.ID, ctx.Err())
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ctx.Err() != nil {
		return nil, fmt.Errorf("dialling vm %q: %w", v.spec.ID, errEnded)
	}
	if v.stream != nil {
		_ = v.stream.Close()
	}
	host, inside := net.Pipe()
	v.stream = host
	v.wg.Go(func() { // v.ctx has not ended, so run does not wait yet
		if v.script.Guest != nil {
			v.script.Guest(v.ctx, inside)
			return
		}
		v.guest.serve(inside)
	})
	return host, nil
}

// Isolation says that there is none.
func (v *VM) Isolation() sandbox.Isolation { return fakeIsolation() }

// Sample is made up.
func (v *VM) Sample() (tartarus.Sample, error) {
	age := time.Since(v.born)
	if v.script.Sample != nil {
		return v.script.Sample(age), nil
	}
	return tartarus.Sample{At: time.Now(), CPUSeconds: age.Seconds() / 100, MemoryBytes: 1 << 20, MemoryPeakBytes: 1 << 20}, nil
}

// Pause keeps the guest from saying anything, and Resume lets it.
func (v *VM) Pause(context.Context) error { return v.pause(true) }

// Resume ends a Pause.
func (v *VM) Resume(context.Context) error { return v.pause(false) }

func (v *VM) pause(on bool) error {
	if v.ctx.Err() != nil {
		return fmt.Errorf("vm %q: %w", v.spec.ID, errEnded)
	}
	v.guest.pause(on)
	return nil
}

// Console writes what the guest wrote to its console.
func (v *VM) Console(w io.Writer) error { return v.ring.copyTo(w) }

// Done is closed when the VM has ended.
func (v *VM) Done() <-chan struct{} { return v.done }

// Exit tells how it ended.
func (v *VM) Exit() tartarus.Exit {
	select {
	case <-v.done:
		return v.exit
	default:
		return tartarus.Exit{Code: -1}
	}
}

// Kill ends it.
func (v *VM) Kill(ctx context.Context) error {
	if err := sleep(ctx, v.script.KillDelay); err != nil && v.script.KillDelay > 0 {
		return fmt.Errorf("killing vm %q: %w", v.spec.ID, err)
	}
	v.finish(tartarus.Exit{Code: -1, Signal: int(syscall.SIGKILL), ByKill: true})
	select {
	case <-v.done:
	case <-ctx.Done():
		return fmt.Errorf("killing vm %q: %w", v.spec.ID, ctx.Err())
	}
	return removeMarker(v.spec.Dir)
}

// savedState is all that a fake VM takes along: how far its guest is in the
// protocol.
const savedState = "a fake VM, generation %d\n"

// Save implements tartarus.VM.
func (v *VM) Save(ctx context.Context) error {
	if v.spec.Save == nil {
		return fault.New(fault.Unsupported, "vm %q was not started to be saved", v.spec.ID)
	}
	if err := errors.Join(ctx.Err(), v.script.SaveErr); err != nil {
		return err
	}
	v.guest.mu.Lock()
	generation := v.guest.generation
	v.guest.mu.Unlock()
	_, err := fmt.Fprintf(v.spec.Save.State, savedState, generation)
	return errors.Join(err, v.spec.Save.Memory.Truncate(v.spec.MemoryMiB<<20))
}

// restore takes up what Save wrote. Its guest listens at once.
func (v *VM) restore() error {
	text, err := io.ReadAll(io.NewSectionReader(v.spec.Restore.State, 0, 1<<10))
	if err != nil {
		return err
	}
	var generation uint32
	if n, err := fmt.Sscanf(string(text), savedState, &generation); n != 1 || err != nil {
		return fault.New(fault.Conflict, "the state is not a fake VM's")
	}
	if st, err := v.spec.Restore.Memory.Stat(); err != nil || st.Size() != v.spec.MemoryMiB<<20 {
		return fault.New(fault.Conflict, "the memory is not of the VM's size")
	}
	v.guest.generation = generation
	v.script.BootDelay = 0
	return nil
}
