// Package fakevm is the driver of scripted fake VMs, for tests: no process
// runs and nothing is isolated, but it speaks the guest's protocol and passes
// the suite of the real drivers.
//
// A fake costs a few goroutines and one small file, so that tests can have
// thousands. What one does is data: a Script.
package fakevm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Name is the driver's name in records and handles.
const Name = "fakevm"

// marker is the file that a VM has in its folder, as a real one has sockets.
const marker = "fakevm"

// Script says what a VM does. The zero value is a VM that boots at once and
// behaves.
type Script struct {
	StartDelay time.Duration // Start takes so long
	StartErr   error         // and then fails with this
	BootDelay  time.Duration // from Start until the guest listens
	NeverBoots bool          // the guest never listens
	SetupErr   string        // the guest refuses Setup with this message
	PutFileErr string        // and PutFile with this

	EndAfter time.Duration // the VMM ends by itself after so long; 0 is never
	End      tartarus.Exit // how; the zero value is exit status 0

	// Commands are what Start can run, by argv[0], on top of Builtins.
	Commands map[string]Command

	// Guest, if not nil, speaks on each stream instead of the fake's own
	// guest, until ctx ends; it owns conn.
	Guest func(ctx context.Context, conn net.Conn)

	// Sample, if not nil, makes up the samples; age is the VM's.
	Sample func(age time.Duration) tartarus.Sample

	// SaveErr is what Save fails with.
	SaveErr error

	// KillDelay is how long Kill takes.
	KillDelay time.Duration
}

// Config is how a driver's VMs behave. The zero value is usable.
type Config struct {
	// Script is that of the n-th VM the driver starts, from 1; nil is the zero
	// Script for all.
	Script func(n int, s tartarus.Spec) Script

	// Snapshots lets VMs be saved and go on from there.
	Snapshots bool

	// Network makes the driver take network cards, in which nothing is plugged.
	Network bool

	// OnExecute, if not nil, is told of each process that a guest starts.
	OnExecute func(id sandbox.ID, proc uint32, argv []string)
}

// Driver makes fake VMs.
type Driver struct {
	cfg Config

	mu      sync.Mutex
	started int                   // guarded by mu
	most    int                   // guarded by mu
	live    map[string]*VM        // guarded by mu; by folder
	scratch map[string]sandbox.ID // guarded by mu; disks in use
}

var _ tartarus.Driver = (*Driver)(nil)

// New makes a driver.
func New(cfg Config) *Driver {
	return &Driver{cfg: cfg, live: map[string]*VM{}, scratch: map[string]sandbox.ID{}}
}

// Info says what the driver is: a fake.
func (d *Driver) Info() tartarus.Info {
	return tartarus.Info{
		Name: Name, Version: "1", Accelerator: "none",
		Isolation: fakeIsolation(), CanPause: true, CanSnapshot: d.cfg.Snapshots, CanNetwork: d.cfg.Network, MaxVCPUs: 64,
		Machine: "fake",
	}
}

func fakeIsolation() sandbox.Isolation {
	return sandbox.Isolation{Accelerator: "none", Missing: []string{"vm: this is a fake for tests, nothing is isolated"}}
}

// Live is how many VMs run now, and Most how many ran at once.
func (d *Driver) Live() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.live)
}

// Most is how many VMs ran at once at most.
func (d *Driver) Most() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.most
}

// Started is how many VMs were started.
func (d *Driver) Started() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.started
}

// Start makes a fake VM.
func (d *Driver) Start(ctx context.Context, s tartarus.Spec) (tartarus.VM, error) {
	v, err := d.start(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("starting vm %q: %w", s.ID, err)
	}
	return v, nil
}

func (d *Driver) start(ctx context.Context, s tartarus.Spec) (*VM, error) {
	if err := errors.Join(s.Validate(), d.Info().CheckNIC(s.NIC), d.Info().CheckSnapshot(s), ctx.Err()); err != nil {
		return nil, err
	}
	if err := s.CheckFiles(); err != nil {
		return nil, err
	}
	if most := d.Info().MaxVCPUs; s.VCPUs > most {
		return nil, fault.Invalid("vcpus", fmt.Sprintf("give at most %d", most), "%d vCPUs are more than this driver can give", s.VCPUs)
	}
	d.mu.Lock()
	d.started++
	n := d.started
	d.mu.Unlock()
	var script Script
	if d.cfg.Script != nil {
		script = d.cfg.Script(n, s)
	}
	if err := sleep(ctx, script.StartDelay); err != nil {
		return nil, err
	}
	if script.StartErr != nil {
		return nil, script.StartErr
	}
	v := newVM(d, s, script)
	if s.Restore != nil {
		if err := v.restore(); err != nil {
			return nil, err
		}
	}
	if err := d.enter(v); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(s.Dir, marker), nil, 0o600); err != nil {
		d.leave(v)
		return nil, err
	}
	if err := v.begin(); err != nil {
		d.leave(v)
		return nil, errors.Join(err, removeMarker(s.Dir))
	}
	return v, nil
}

// enter takes a VM up, and refuses what a real VMM would: two on one disk.
func (d *Driver) enter(v *VM) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id, taken := d.scratch[v.spec.Scratch]; taken {
		return fmt.Errorf("the scratch disk is in use by vm %q", id)
	}
	if _, taken := d.live[v.spec.Dir]; taken {
		return fmt.Errorf("the folder %s is in use", v.spec.Dir)
	}
	d.scratch[v.spec.Scratch], d.live[v.spec.Dir] = v.spec.ID, v
	d.most = max(d.most, len(d.live))
	return nil
}

func (d *Driver) leave(v *VM) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.live, v.spec.Dir)
	delete(d.scratch, v.spec.Scratch)
}

// Reap ends a VM of this driver in that folder, and removes its marker. One of
// another process has ended with it.
func (d *Driver) Reap(ctx context.Context, dir string, _ tartarus.Handle) error {
	d.mu.Lock()
	v := d.live[dir]
	d.mu.Unlock()
	if v != nil {
		return v.Kill(ctx)
	}
	return removeMarker(dir)
}

func removeMarker(dir string) error {
	if err := os.Remove(filepath.Join(dir, marker)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ring keeps the last bytes written to it.
type ring struct {
	mu sync.Mutex
	b  []byte // guarded by mu
}

func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b = append(r.b, p[max(0, len(p)-tartarus.ConsoleBytes):]...)
	if over := len(r.b) - tartarus.ConsoleBytes; over > 0 {
		r.b = append(r.b[:0], r.b[over:]...)
	}
	return len(p), nil
}

func (r *ring) copyTo(w io.Writer) error {
	r.mu.Lock()
	b := append([]byte(nil), r.b...)
	r.mu.Unlock()
	_, err := w.Write(b)
	return err
}
