package hecatoncheir

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// step is one thing that a sandbox needs before it can execute. Both funcs may
// be repeated, and undo works on what a failed or interrupted do left.
type step struct {
	name string
	do   func(l *life, ctx context.Context) error
	undo func(l *life, ctx context.Context) error // nil: it leaves nothing
}

// preparation is the way to a VM that waits for the order to execute. The
// journal's entry comes before it (assign) and goes last (end).
var preparation = []step{
	{"folder", (*life).makeFolder, (*life).removeFolder},
	{"network", (*life).attachCard, (*life).detachCard},
	{"log", (*life).makeLog, (*life).removeLog},
	{"standby", (*life).takeStandby, (*life).dropStandby},
	{"images", (*life).findImages, nil},
	{"scratch", (*life).makeScratch, (*life).wipeScratch},
	{"vm", (*life).boot, (*life).endVM},
	{"setup", (*life).setup, nil},
}

// undoTimeout bounds the undoing of one step.
const undoTimeout = 20 * time.Second

// guestReserveMiB is what the commands of a guest may not use of its memory,
// so that its kernel and init are never starved.
const guestReserveMiB = 24

// prepare does the steps in order. What was begun is undone by undoAll.
func (l *life) prepare(ctx context.Context) (err error) {
	began := time.Now()
	defer func() { l.trace(tracing.Span{Name: tracing.Prepare, Begin: began, Err: err}) }()
	for _, s := range preparation {
		if err := ctx.Err(); err != nil {
			return err
		}
		l.done = append(l.done, s)
		began := time.Now()
		err := l.a.pass(s.name, l.id, func() error { return s.do(l, ctx) })
		l.a.metrics.Prepared(s.name, time.Since(began))
		l.trace(tracing.Span{Name: s.name, Below: tracing.Prepare, Begin: began, Err: err})
		if err != nil {
			return fmt.Errorf("step %s: %w", s.name, err)
		}
	}
	return nil
}

// trace makes the span of a stage that ends now, unless its end is given.
func (l *life) trace(s tracing.Span) {
	s.Sandbox, s.Attempt = l.id, l.assignment.Attempt
	if s.End.IsZero() {
		s.End = time.Now()
	}
	l.a.cfg.Tracer.Stage(s)
}

// undoAll undoes what was begun, the last first. What cannot be undone is left
// to the agent's next start.
func (l *life) undoAll(ctx context.Context) {
	for len(l.done) > 0 {
		s := l.done[len(l.done)-1]
		l.done = l.done[:len(l.done)-1]
		if s.undo == nil {
			continue
		}
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		if err := l.a.pass("undo "+s.name, l.id, func() error { return s.undo(l, uctx) }); err != nil {
			l.logger.Error("undoing a step failed", "step", s.name, "error", err)
			l.a.metrics.UndoFailed(s.name)
		}
		cancel()
	}
}

func (l *life) makeFolder(context.Context) error {
	return os.MkdirAll(l.a.vmDir(l.id), 0o700)
}

func (l *life) removeFolder(context.Context) error {
	return os.RemoveAll(l.a.sandboxDir(l.id))
}

func (l *life) makeLog(ctx context.Context) error {
	if err := l.removeLog(ctx); err != nil {
		return err
	}
	output, err := hermes.Create(l.a.logPath(l.id), l.req.LogBytes)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.output = output
	select {
	case <-l.logged: // the step is repeated
	default:
		close(l.logged)
	}
	return nil
}

func (l *life) removeLog(context.Context) error {
	l.mu.Lock()
	output := l.output
	l.output = nil
	l.mu.Unlock()
	var err error
	if output != nil {
		err = output.Finish()
	}
	if rerr := os.Remove(l.a.logPath(l.id)); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// vmFiles are what a VM is made of.
type vmFiles struct {
	root   string
	bundle nyx.Bundle
}

func (a *Agent) vmFiles(ctx context.Context, r sandbox.Resolved) (f vmFiles, err error) {
	if f.root, err = a.cfg.Images.RootDisk(ctx, r.TemplateDigest); err != nil {
		return f, fmt.Errorf("the template's disk: %w", err)
	}
	if f.bundle, err = a.cfg.Images.Bundle(ctx, r.GuestDigest); err != nil {
		return f, fmt.Errorf("the guest bundle: %w", err)
	}
	return f, nil
}

func (l *life) findImages(ctx context.Context) (err error) {
	if l.standby != nil {
		return nil
	}
	l.files, err = l.a.vmFiles(ctx, l.req)
	return err
}

func (l *life) makeScratch(ctx context.Context) error {
	if l.standby != nil {
		return nil
	}
	if err := l.wipeScratch(ctx); err != nil {
		return err
	}
	return l.a.cfg.Scratch.Create(ctx, l.a.scratchPath(l.id), l.req.Resources.DiskMiB)
}

func (l *life) wipeScratch(ctx context.Context) error {
	return l.a.cfg.Scratch.Wipe(ctx, l.a.scratchPath(l.id))
}

// boot starts the VM and reaches its guest. A boot that fails leaves no VM.
func (l *life) boot(ctx context.Context) error {
	if s := l.standby; s != nil {
		l.vm, l.guest = s.vm, s.guest
		if err := l.a.write("vm", l.id, func(e *journal.Entry) { e.VM, e.Start = s.vm.Handle(), startStandby }); err != nil {
			return err
		}
		l.tell.vmReady(time.Now(), startStandby, s.vm.Isolation())
		return nil
	}
	select {
	case l.a.boots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.a.boots }()
	spec := tartarus.Spec{
		ID: l.id, Dir: l.a.vmDir(l.id), Kernel: l.files.bundle.Kernel, Initrd: l.files.bundle.Initrd, Cmdline: l.files.bundle.Cmdline,
		Root: l.files.root, Scratch: l.a.scratchPath(l.id),
		VCPUs: l.req.Resources.VCPUs, MemoryMiB: l.req.Resources.MemoryMiB, Lifeline: l.a.cfg.Lifeline,
	}
	spec.UID = l.uid()
	spec.GID = spec.UID
	if c := l.card; c != nil {
		spec.NIC = &tartarus.NIC{MAC: c.MAC, TAP: c.TAP, Namespace: c.Namespace, Device: c.Device}
	}
	if up, err := l.goOn(ctx, spec); up || err != nil {
		return err
	}
	return l.bring(ctx, spec, startCold, l.a.cfg.Boot)
}

// restorePolicy is for a VM that goes on from a snapshot: it answers within
// some hundredths of a second, on a busy host within seconds, and a boot is
// what comes next.
var restorePolicy = tartarus.BootPolicy{Attempts: 1, Timeout: 15 * time.Second, CPU: 10 * time.Second}

// goOn starts the VM from the snapshot of its shape; false without an error
// where there is none, or none that it can go on from.
func (l *life) goOn(ctx context.Context, spec tartarus.Spec) (up bool, err error) {
	if l.a.cfg.Snapshots == nil || spec.NIC != nil {
		return false, nil
	}
	shape := l.a.cfg.Snapshots.Shape(l.req.TemplateDigest, l.req.GuestDigest, l.req.Resources)
	snapshot := l.a.cfg.Snapshots.Open(ctx, shape)
	if snapshot == nil {
		return false, nil
	}
	defer snapshot.Close()
	spec.Restore = &tartarus.SnapshotFiles{Memory: snapshot.Memory, State: snapshot.State}
	err = l.bring(ctx, spec, startRestored, restorePolicy)
	if err == nil || ctx.Err() != nil {
		return err == nil, err
	}
	l.logger.Warn("a VM cannot go on from its snapshot", "error", err)
	l.a.cfg.Snapshots.Forget(shape)
	return false, nil
}

// bring starts the VM and reaches its guest. When it fails no VM is left.
func (l *life) bring(ctx context.Context, spec tartarus.Spec, start string, policy tartarus.BootPolicy) error {
	var guest Guest
	connect := func(ctx context.Context, vm tartarus.VM) error {
		// A VM that the journal does not know of could not be found again.
		handle := vm.Handle()
		if err := l.a.write("vm", l.id, func(e *journal.Entry) { e.VM, e.Start = handle, start }); err != nil {
			return err
		}
		var err error
		guest, err = l.a.cfg.Connect(ctx, vm, l.logger)
		return err
	}
	policy.GivenUp = func(attempt int, vm tartarus.VM, why error) { l.bootGivenUp(attempt, vm, why) }
	vm, _, err := tartarus.Boot(ctx, l.a.cfg.Driver, spec, connect, policy)
	if err != nil {
		return err
	}
	l.vm, l.guest = vm, guest
	l.tell.vmReady(time.Now(), start, vm.Isolation())
	return nil
}

// bootGivenUp keeps the console's last words, quoted: the guest may have
// written anything.
func (l *life) bootGivenUp(attempt int, vm tartarus.VM, why error) {
	var console tail
	if err := vm.Console(&console); err != nil {
		l.logger.Debug("no console", "error", err)
	}
	l.a.metrics.BootGivenUp()
	l.logger.Warn("a boot was given up", "boot", attempt, "error", why, "console", fmt.Sprintf("%q", console.b))
	if l.a.cfg.Boot.GivenUp != nil {
		l.a.cfg.Boot.GivenUp(attempt, vm, why)
	}
}

// tail keeps the last 2 KiB written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	const keep = 2 << 10
	t.b = append(t.b, p...)
	if n := len(t.b) - keep; n > 0 {
		t.b = append([]byte(nil), t.b[n:]...)
	}
	return len(p), nil
}

// endVM is for a VM that thanatos has ended already, or that could not be
// ended by it.
func (l *life) endVM(ctx context.Context) error {
	if l.guest != nil {
		_ = l.guest.Close() // nothing is said any more
		l.guest = nil
	}
	if l.vm == nil {
		return nil
	}
	return l.vm.Kill(ctx)
}

// setupOf is what a guest is told of itself, with fresh randomness.
func setupOf(hostname string, r sandbox.Resolved) guestwire.Setup {
	var entropy [256]byte
	var machine [16]byte
	rand.Read(entropy[:]) // never fails
	rand.Read(machine[:])
	return guestwire.Setup{
		Hostname: hostname, WallClock: time.Now().UnixNano(), Entropy: entropy[:], MachineID: hex.EncodeToString(machine[:]),
		User: r.User, MemoryBytes: (r.Resources.MemoryMiB - guestReserveMiB) << 20, Processes: int64(r.Resources.Processes),
	}
}

// setup gives the guest its identity and the files.
func (l *life) setup(ctx context.Context) error {
	s := setupOf(string(l.id), l.req)
	s.Network = l.guestNetwork()
	err := l.guest.Setup(ctx, s)
	if err != nil {
		return fmt.Errorf("setting the guest up: %w", err)
	}
	for i, f := range l.secrets.Files {
		if err := l.guest.PutFile(ctx, f.Path, f.Mode, f.Data); err != nil {
			return fmt.Errorf("putting file %d in: %w", i, err)
		}
	}
	return nil
}
