package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/test/lab/labwire"
)

// What counts as a hang: no sign of life for so long. A booting kernel writes
// to its console, a running lab reports that it lives.
const (
	bootSilence = 60 * time.Second
	runSilence  = 60 * time.Second
	bootTries   = 3
)

// errLost says that the lab hung or ended while it was needed.
var errLost = errors.New("the lab was lost")

// machineConfig is what is booted.
type machineConfig struct {
	cpus, memoryMiB int
	image, initrd   string
	disk            string    // only read: what the lab writes is gone with it
	console         io.Writer // nil: only what was said last is kept
}

// machine is a booted lab. It is for one goroutine.
type machine struct {
	stop    context.CancelFunc
	port    *os.File
	console *console
	reports chan labwire.Report
	done    chan struct{} // closed when QEMU has ended and all is cleaned up
	err     error         // how it ended, after done
	ready   labwire.Ready
}

// boot boots the lab, again if it hangs or breaks.
func boot(ctx context.Context, c machineConfig, say func(string, ...any)) (*machine, error) {
	for try := 1; ; try++ {
		m, err := bootOnce(ctx, c)
		if err == nil {
			return m, nil
		}
		if ctx.Err() != nil || try == bootTries || !errors.Is(err, errLost) {
			return nil, err
		}
		say("boot %d failed, trying again: %v", try, err)
	}
}

func bootOnce(ctx context.Context, c machineConfig) (*machine, error) {
	m, err := start(ctx, c)
	if err != nil {
		return nil, err
	}
	r, err := m.next(ctx, bootSilence)
	switch {
	case err == nil && r.Ready == nil:
		err = fmt.Errorf("%w: it spoke before it was ready", errLost)
	case err == nil && !r.Ready.KVM:
		err = errors.New("the lab's kernel has no /dev/kvm: does this QEMU emulate AMD-V (SVM)?")
	case err == nil:
		m.ready = *r.Ready
		return m, nil
	}
	m.close()
	return nil, fmt.Errorf("booting the lab: %w", m.explain(err))
}

// initSays is what the lab's init begins with when it gives up.
const initSays = "labinit: "

// explain adds to an error what the lab's kernel said last. Where its init
// gave up it is no loss that a second try could mend.
func (m *machine) explain(err error) error {
	text := m.console.text()
	if _, why, ok := strings.Cut(text, initSays); ok {
		why, _, _ = strings.Cut(why, "\n")
		return errors.New("its init gave up: " + strings.TrimSpace(why))
	}
	return fmt.Errorf("%w; its console ended with:\n%s", err, text)
}

// commandLine is the kernel's. Its timer ticks for ever: a single interrupt of
// a timer that is set anew each time may be lost while QEMU emulates AMD-V, and
// the kernel would wait for it for ever.
const commandLine = "console=ttyS0 rdinit=/init panic=-1 reboot=t random.trust_cpu=1 mitigations=off nohz=off highres=off"

// arguments are QEMU's. Its processor is one whose virtualization TCG emulates
// and that Firecracker knows by its CPUID leaves 0x8000001d and 0x8000001e.
func (c machineConfig) arguments() []string {
	return []string{
		"-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC",
		"-smp", strconv.Itoa(c.cpus), "-m", strconv.Itoa(c.memoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", c.image, "-initrd", c.initrd,
		"-append", commandLine,
		"-drive", "id=disk,file=" + c.disk + ",format=raw,if=none,cache=unsafe,snapshot=on", "-device", "virtio-blk-pci,drive=disk",
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,fd=3", "-device", "virtserialport,chardev=port,name=" + labwire.PortName,
	}
}

// start starts QEMU. It ends with ctx, by close, or with this process.
func start(ctx context.Context, c machineConfig) (*machine, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "qemu's port")
	_ = unix.SetNonblock(fds[0], true) // so that close ends a read; it cannot fail on a socket
	m := &machine{
		port: os.NewFile(uintptr(fds[0]), "the lab's port"), console: &console{to: c.console, spoke: make(chan struct{}, 1)},
		reports: make(chan labwire.Report), done: make(chan struct{}),
	}
	ctx, m.stop = context.WithCancel(ctx)
	cmd, err := distro.Command(ctx, "qemu-system-x86_64", c.arguments()...)
	if err != nil {
		m.stop()
		m.port.Close()
		theirs.Close()
		return nil, err
	}
	cmd.Stdout = m.console
	cmd.ExtraFiles = []*os.File{theirs}
	go func() {
		defer close(m.done)
		var reading sync.WaitGroup
		reading.Go(func() { m.read(ctx) })
		m.err = distro.Finish(ctx, cmd)
		m.stop()
		m.port.Close()
		theirs.Close()
		reading.Wait()
	}()
	return m, nil
}

// read passes reports on until the port ends.
func (m *machine) read(ctx context.Context) {
	dec := json.NewDecoder(m.port)
	for {
		var r labwire.Report
		if err := dec.Decode(&r); err != nil {
			return
		}
		select {
		case m.reports <- r:
		case <-ctx.Done():
			return
		}
	}
}

// next is the next report, if signs of life come at least every silence.
func (m *machine) next(ctx context.Context, silence time.Duration) (labwire.Report, error) {
	t := time.NewTimer(silence)
	defer t.Stop()
	for {
		select {
		case r := <-m.reports:
			return r, nil
		case <-m.console.spoke:
			t.Reset(silence)
		case <-m.done:
			if m.err == nil {
				return labwire.Report{}, fmt.Errorf("%w: its kernel ended, and QEMU with it", errLost)
			}
			return labwire.Report{}, fmt.Errorf("%w: QEMU ended: %w", errLost, m.err)
		case <-ctx.Done():
			return labwire.Report{}, ctx.Err()
		case <-t.C:
			return labwire.Report{}, fmt.Errorf("%w: no sign of life in %v", errLost, silence)
		}
	}
}

// run runs a command and passes on what it prints.
func (m *machine) run(ctx context.Context, o labwire.Order, out io.Writer) (labwire.Ended, error) {
	if err := labwire.Write(m.port, o); err != nil {
		return labwire.Ended{}, fmt.Errorf("%w: %w", errLost, err)
	}
	for {
		r, err := m.next(ctx, runSilence)
		if err != nil {
			return labwire.Ended{}, err
		}
		if r.ID != o.ID {
			continue // a sign of life
		}
		if _, err := out.Write(r.Out); err != nil {
			return labwire.Ended{}, err
		}
		if r.Ended != nil {
			return *r.Ended, nil
		}
	}
}

// close ends the lab and waits for its end. It may be called again.
func (m *machine) close() {
	m.stop()
	<-m.done
}

// consoleBytes is how much of what a console said is kept.
const consoleBytes = 2 << 10

// console keeps the end of what the lab's kernel says.
type console struct {
	to    io.Writer
	spoke chan struct{} // has room for one: it has said something

	mu   sync.Mutex
	last []byte
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.last = append(c.last, p...)
	if over := len(c.last) - consoleBytes; over > 0 {
		c.last = append(c.last[:0], c.last[over:]...)
	}
	c.mu.Unlock()
	select {
	case c.spoke <- struct{}{}:
	default:
	}
	if c.to != nil {
		return c.to.Write(p)
	}
	return len(p), nil
}

func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.last)
}
