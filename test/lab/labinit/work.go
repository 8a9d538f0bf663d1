package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/test/lab/labwire"
)

const (
	orphansDelay = 3 * time.Second // for orphans that hold the command's output
	settle       = 3 * time.Second // for what is ending when the command has
)

// work opens the port, says that the lab is ready, and obeys until the port
// ends.
func work() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	r := &reporter{w: port}
	if err := r.send(labwire.Report{Ready: ready()}); err != nil {
		return err
	}
	go r.beat() // as long as the lab lives
	orders := json.NewDecoder(port)
	for {
		var o labwire.Order
		if err := orders.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("reading an order: %w", err)
		}
		if err := r.send(labwire.Report{ID: o.ID, Ended: run(o, r)}); err != nil {
			return err
		}
	}
}

// openPort finds the virtio port by its name. Its reads block a thread: what a
// port without its host does to the poller is nobody's concern here.
func openPort() (*os.File, error) {
	for end := time.Now().Add(diskTimeout); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			text, err := os.ReadFile(n)
			if err != nil || strings.TrimSpace(string(text)) != labwire.PortName {
				continue
			}
			dev := "/dev/" + filepath.Base(filepath.Dir(n))
			fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("opening %s: %w", dev, err)
			}
			return os.NewFile(uintptr(fd), dev), nil
		}
	}
	return nil, errors.New("the port to the lab's host did not appear")
}

func ready() *labwire.Ready {
	r := &labwire.Ready{}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	_, err := os.Stat("/dev/kvm")
	r.KVM = err == nil
	return r
}

// reporter is for several goroutines.
type reporter struct {
	mu sync.Mutex
	w  io.Writer
}

func (r *reporter) send(rep labwire.Report) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return labwire.Write(r.w, rep)
}

func (r *reporter) beat() {
	for range time.Tick(labwire.BeatEvery) {
		if err := r.send(labwire.Report{}); err != nil {
			return
		}
	}
}

// output reports what a command prints.
type output struct {
	r  *reporter
	id int
}

func (o output) Write(p []byte) (int, error) {
	return len(p), o.r.send(labwire.Report{ID: o.id, Out: p})
}

// run runs a command to its end, and looks for what it left.
func run(o labwire.Order, r *reporter) *labwire.Ended {
	if len(o.Argv) == 0 {
		return &labwire.Ended{Status: 127, Error: "no command"}
	}
	before := inventory()
	ctx, cancel := context.WithTimeout(context.Background(), o.Limit)
	defer cancel()
	c := exec.CommandContext(ctx, o.Argv[0], o.Argv[1:]...)
	c.Dir = o.Dir
	c.Env = append(os.Environ(), o.Env...)
	c.Stdout, c.WaitDelay = output{r, o.ID}, orphansDelay
	c.Stderr = c.Stdout
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	e := ended(c.Run(), c.ProcessState)
	e.TimedOut = ctx.Err() != nil
	e.Left = leftovers(before)
	return e
}

func ended(err error, state *os.ProcessState) *labwire.Ended {
	if state == nil {
		return &labwire.Ended{Status: 127, Error: err.Error()}
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return &labwire.Ended{Status: 128 + int(ws.Signal())}
	}
	return &labwire.Ended{Status: state.ExitCode()}
}

// leftovers is what there is beyond before, after a while in which it may
// still go. It ends the processes.
func leftovers(before map[string]int) []string {
	var left map[string]int
	for end := time.Now().Add(settle); ; time.Sleep(50 * time.Millisecond) {
		left = inventory()
		for item := range left {
			if _, had := before[item]; had {
				delete(left, item)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	var out []string
	for item, pid := range left {
		out = append(out, item)
		if pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended meanwhile
		}
	}
	slices.Sort(out)
	return out
}
