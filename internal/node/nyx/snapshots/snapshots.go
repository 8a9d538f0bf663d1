// Package snapshots is the maker of memory snapshots: it boots a VM of a shape
// to where its guest waits for orders, before any code of a template has run,
// and keeps it, so that sandboxes of that shape go on from there.
package snapshots

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Scratch makes and wipes writable layers (lethe).
type Scratch interface {
	Create(ctx context.Context, path string, mib int64) error
	Wipe(ctx context.Context, path string) error
}

// Images keep snapshots, and what VMs are made of (nyx.Store).
type Images interface {
	RootDisk(ctx context.Context, d sandbox.Digest) (path string, err error)
	Bundle(ctx context.Context, d sandbox.Digest) (nyx.Bundle, error)
	Snapshot(ctx context.Context, s nyx.Shape) (*nyx.Snapshot, error)
	MakeSnapshot(ctx context.Context, s nyx.Shape, take func(ctx context.Context, memory, state *os.File) error) error
	DropSnapshot(s nyx.Shape) error
}

// Config is what a Maker is made of; all but Boot, Logger and Passing is required.
type Config struct {
	Driver  tartarus.Driver
	Images  Images
	Scratch Scratch
	Dir     string // for the VMs that are saved, this process's alone; made if it is not there
	Boot    tartarus.BootPolicy
	Logger  *slog.Logger // nil discards

	// Passing, if not nil, is called before each named step, and with done
	// after it has succeeded; what it returns becomes the step's error. Tests
	// let steps fail and processes die with it.
	Passing func(step string, of sandbox.ID, done bool) error
}

// Maker makes snapshots, one at a time. Make one with New.
type Maker struct {
	cfg  Config
	info tartarus.Info
	kick chan struct{} // there may be something to make

	mu     sync.Mutex
	wanted []nyx.Shape             // in the order they were asked for; guarded by mu
	failed map[nyx.Shape]time.Time // when making them failed; guarded by mu
}

const (
	// maxWanted bounds how many shapes wait to be made: whoever asks for more
	// gets cold starts.
	maxWanted = 64

	// failedFor is how long a shape whose snapshot could not be made is left
	// alone.
	failedFor = 10 * time.Minute

	// undoTimeout bounds the end of a VM that was saved, or was not.
	undoTimeout = 30 * time.Second
)

// New makes a Maker. It starts nothing; Run makes what is asked for.
func New(cfg Config) (*Maker, error) {
	if cfg.Driver == nil || cfg.Images == nil || cfg.Scratch == nil || !filepath.IsAbs(cfg.Dir) {
		return nil, errors.New("snapshots: Driver, Images, Scratch and an absolute Dir are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the maker of snapshots: %w", err)
	}
	return &Maker{cfg: cfg, info: cfg.Driver.Info(), kick: make(chan struct{}, 1), failed: map[nyx.Shape]time.Time{}}, nil
}

// Shape is that of a sandbox on this node, without a network card.
func (m *Maker) Shape(template, bundle sandbox.Digest, r sandbox.Resources) nyx.Shape {
	return nyx.Shape{
		Template: template, Bundle: bundle,
		Driver: m.info.Name, Version: m.info.Version, Accelerator: m.info.Accelerator, Machine: m.info.Machine,
		VCPUs: r.VCPUs, MemoryMiB: r.MemoryMiB, DiskMiB: r.DiskMiB,
	}
}

// Open is the snapshot of a shape. Where there is none it returns nil, and Run
// will make it. The caller closes it.
func (m *Maker) Open(ctx context.Context, s nyx.Shape) *nyx.Snapshot {
	if !m.info.CanSnapshot {
		return nil
	}
	snapshot, err := m.cfg.Images.Snapshot(ctx, s)
	if err == nil {
		return snapshot
	}
	if !fault.Is(err, fault.NotFound) {
		m.cfg.Logger.Warn("a snapshot cannot be used", "error", err)
		return nil
	}
	m.ask(s)
	return nil
}

// Forget is for a snapshot that a VM could not go on from: nobody gets it any
// more, and Run will make another.
func (m *Maker) Forget(s nyx.Shape) {
	if err := m.cfg.Images.DropSnapshot(s); err != nil {
		m.cfg.Logger.Error("a damaged snapshot cannot be removed", "error", err)
		return
	}
	m.ask(s)
}

func (m *Maker) ask(s nyx.Shape) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.wanted {
		if w == s {
			return
		}
	}
	if at, ok := m.failed[s]; ok && time.Since(at) < failedFor || len(m.wanted) == maxWanted {
		return
	}
	m.wanted = append(m.wanted, s)
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run removes what an earlier process left, and makes what is asked for until
// ctx ends.
func (m *Maker) Run(ctx context.Context) error {
	if err := m.Sweep(ctx); err != nil {
		m.cfg.Logger.Warn("what was left of snapshots in the making could not be removed", "error", err)
	}
	for {
		s, ok := m.next()
		if !ok {
			select {
			case <-ctx.Done():
				return nil
			case <-m.kick:
				continue
			}
		}
		began := time.Now()
		err := m.Make(ctx, s)
		m.finished(s, err)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			m.cfg.Logger.Warn("a snapshot could not be made", "template", s.Template, "memory_mib", s.MemoryMiB, "error", err)
			continue
		}
		m.cfg.Logger.Info("snapshot made", "template", s.Template, "vcpus", s.VCPUs, "memory_mib", s.MemoryMiB, "disk_mib", s.DiskMiB, "took", time.Since(began).Round(time.Millisecond))
	}
}

// next is what was asked for first. It stays asked for until it is finished.
func (m *Maker) next() (nyx.Shape, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.wanted) == 0 {
		return nyx.Shape{}, false
	}
	return m.wanted[0], true
}

func (m *Maker) finished(s nyx.Shape, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = m.wanted[1:]
	for of, at := range m.failed {
		if time.Since(at) >= failedFor {
			delete(m.failed, of)
		}
	}
	if err != nil {
		m.failed[s] = time.Now()
	}
}

// Make makes the snapshot of a shape, unless it is there.
func (m *Maker) Make(ctx context.Context, s nyx.Shape) error {
	return m.pass("snapshot", "", func() error {
		return m.cfg.Images.MakeSnapshot(ctx, s, func(ctx context.Context, memory, state *os.File) error {
			return m.take(ctx, s, &tartarus.SnapshotFiles{Memory: memory, State: state})
		})
	})
}

// pass does a named step, of a VM or of none.
func (m *Maker) pass(step string, of sandbox.ID, do func() error) error {
	if m.cfg.Passing == nil {
		return do()
	}
	if err := m.cfg.Passing(step, of, false); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return m.cfg.Passing(step, of, true)
}

// take boots a VM, saves it and ends it.
func (m *Maker) take(ctx context.Context, s nyx.Shape, to *tartarus.SnapshotFiles) (err error) {
	root, err := m.cfg.Images.RootDisk(ctx, s.Template)
	if err != nil {
		return err
	}
	bundle, err := m.cfg.Images.Bundle(ctx, s.Bundle)
	if err != nil {
		return err
	}
	id := sandbox.MakeID(strings.ToLower(ulid.MustNew(ulid.Now(), rand.Reader).String()))
	dir := filepath.Join(m.cfg.Dir, string(id))
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	vmDir, scratch := filepath.Join(dir, vmFolder), filepath.Join(dir, "scratch")
	if err := os.MkdirAll(vmDir, 0o700); err != nil {
		return err
	}
	if err := m.cfg.Scratch.Create(ctx, scratch, s.DiskMiB); err != nil {
		return err
	}
	// held is closed by the kernel when this process dies.
	lifeline, held, err := os.Pipe()
	if err != nil {
		return err
	}
	defer held.Close()
	defer lifeline.Close()
	var vm tartarus.VM
	err = m.pass("snapshot boot", id, func() error {
		vm, err = m.boot(ctx, tartarus.Spec{
			ID: id, Dir: vmDir, Kernel: bundle.Kernel, Initrd: bundle.Initrd, Cmdline: strings.TrimSpace(bundle.Cmdline + " " + guestwire.WordWarm), Root: root, Scratch: scratch,
			VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, Lifeline: lifeline, Save: to,
		})
		return err
	})
	if err == nil {
		err = m.pass("snapshot save", id, func() error { return vm.Save(ctx) })
	}
	if vm == nil {
		return err
	}
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return errors.Join(err, vm.Kill(kctx))
}

// exactAttempts is how often a guest with an exact clock is tried for, before
// any is good enough: on a busy host some boots have none.
const exactAttempts = 3

// boot brings a VM up to where its guest waits for orders.
func (m *Maker) boot(ctx context.Context, s tartarus.Spec) (tartarus.VM, error) {
	hello := func(ctx context.Context, vm tartarus.VM) error {
		return guestdial.Hello(ctx, guestdial.Config{Dial: vm.Dial, Logger: m.cfg.Logger})
	}
	exact, few := s, m.cfg.Boot
	exact.Cmdline, few.Attempts = s.Cmdline+" "+guestwire.WordExactClock, exactAttempts
	vm, _, err := tartarus.Boot(ctx, m.cfg.Driver, exact, hello, few)
	if err == nil || ctx.Err() != nil || !fault.Is(err, fault.Unavailable) {
		return vm, err
	}
	m.cfg.Logger.Warn("no guest with an exact clock could be booted for a snapshot", "error", err)
	vm, _, err = tartarus.Boot(ctx, m.cfg.Driver, s, hello, m.cfg.Boot)
	return vm, err
}

const vmFolder = "vm"

// Sweep ends and removes what an earlier process left half made.
func (m *Maker) Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(m.cfg.Dir, e.Name())
		if vmDir := filepath.Join(dir, vmFolder); exists(vmDir) {
			if err := m.cfg.Driver.Reap(ctx, vmDir, tartarus.Handle{}); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
