package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/nyx/guestbundle"
	"github.com/tartarus-vm/tartarus/test/lab/labwire"
)

// options say what the lab is.
type options struct {
	cpus, memoryMiB, diskMiB int
	adds                     []addition
	programs                 []string // of this machine, with their libraries
	console                  io.Writer
	say                      func(format string, args ...any) // what goes on, a line each
}

// lab is a lab that is booted when it is first needed, and again when it was
// lost.
type lab struct {
	opts   options
	config machineConfig
	tmp    string
	m      *machine
	orders int
}

// newLab prepares a lab. close removes what it made.
func newLab(ctx context.Context, o options) (_ *lab, err error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	l := &lab{opts: o}
	if l.tmp, err = os.MkdirTemp("", "tartarus-lab-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	k, err := getKernel(ctx, cache, o.say)
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(l.tmp, "initrd")
	if err := buildInitrd(ctx, l.tmp, initrd, k); err != nil {
		return nil, err
	}
	disk, err := buildDisk(ctx, l.tmp, o.diskMiB, o.adds, o.programs)
	if err != nil {
		return nil, err
	}
	l.config = machineConfig{cpus: o.cpus, memoryMiB: o.memoryMiB, image: k.image, initrd: initrd, disk: disk, console: o.console}
	return l, nil
}

// cacheDir is where what was downloaded is kept; made if it is not there.
func cacheDir() (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(user, "tartarus", "lab")
	return dir, os.MkdirAll(dir, 0o700)
}

// buildInitrd builds the lab's init and packs it with the modules.
func buildInitrd(ctx context.Context, tmp, to string, k *kernel) error {
	program := filepath.Join(tmp, "init")
	if err := goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", program, modulePath+"/test/lab/labinit"); err != nil {
		return err
	}
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(guestbundle.WriteInitramfs(f, init, k.modules), f.Close(), os.Remove(program))
}

const modulePath = "github.com/tartarus-vm/tartarus"

// goTool runs the go command for static programs.
func goTool(ctx context.Context, args ...string) error {
	c := exec.CommandContext(ctx, "go", args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// runTries is how often a command is run in a lab that is lost meanwhile.
const runTries = 2

// run runs a command. Where the lab is lost, by a hang of its kernel say, the
// command is run once more in a new one, and out, if it can be reset, is.
func (l *lab) run(ctx context.Context, o labwire.Order, out io.Writer) (labwire.Ended, error) {
	for try := 1; ; try++ {
		if err := l.boot(ctx); err != nil {
			return labwire.Ended{}, err
		}
		l.orders++
		o.ID = l.orders
		e, err := l.m.run(ctx, o, out)
		if err == nil {
			return e, nil
		}
		l.m.close()
		err = l.m.explain(err)
		l.m = nil
		if ctx.Err() != nil || try == runTries || !errors.Is(err, errLost) {
			return labwire.Ended{}, err
		}
		l.opts.say("running %q once more: %v", o.Argv[0], err)
		if r, ok := out.(interface{ reset() }); ok {
			r.reset()
		}
	}
}

func (l *lab) boot(ctx context.Context) error {
	if l.m != nil {
		return nil
	}
	began := time.Now()
	m, err := boot(ctx, l.config, l.opts.say)
	if err != nil {
		return err
	}
	l.m = m
	l.opts.say("the lab is up: Linux %s with /dev/kvm, after %.1f s", m.ready.Kernel, time.Since(began).Seconds())
	return nil
}

// close ends the lab and removes what was made for it.
func (l *lab) close() {
	if l.m != nil {
		l.m.close()
	}
	os.RemoveAll(l.tmp)
}
