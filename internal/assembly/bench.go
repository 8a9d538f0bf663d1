package assembly

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/tartarus-vm/tartarus/internal/bench"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// benchRounds are those of the figures that are medians.
const benchRounds = 3

// benchPolicy leaves room for whatever is measured.
const benchPolicy = `version: 1
tenants:
  local:
    quota: {live: 1000000, running: %d, vcpus: 1000000, memory_mib: 1000000000, disk_mib: 1000000000, rate_per_minute: 1000000, burst: 1000000}
defaults: {template: %s, queue_timeout: 1h, start_timeout: 10m}
`

// run measures this program on this host, in a home of its own that ends with
// it.
func (b *benching) run(ctx context.Context) (_ *bench.Report, err error) {
	o := b.o
	root, err := stateRoot(o.StateDir)
	if err != nil {
		return nil, err
	}
	p, err := openState(root)
	if err != nil {
		return nil, err
	}
	cfg := bench.Config{
		Figures: o.Figures, Count: o.Count, Concurrency: o.Concurrency, Burst: o.Burst, VMs: o.VMs, MemoryMiB: o.MemoryLimitMiB, Idle: o.Idle, Compare: o.Compare,
		Shape: bench.NewShape(o.Template, o.MemoryMiB), Standby: int(o.Standby), Rounds: benchRounds, Open: b.open,
		Step: func(format string, args ...any) {
			if o.Progress != nil {
				o.Progress(cli.Step{Name: fmt.Sprintf(format, args...)})
			}
		},
	}
	if err := cfg.Validate(); err != nil { // before anything is made
		return nil, err
	}
	h, remove, err := p.newLocal()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	// The kernel closes held when this process dies, and the floor's VMs end.
	lifeline, held, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making the lifeline: %w", err)
	}
	defer func() { err = errors.Join(err, lifeline.Close(), held.Close()) }()
	b.home, b.lifeline, cfg.Dir = h, lifeline, h.root
	r, err := bench.Run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r.Version, r.Command = o.Version, o.Command
	return r, nil
}

// benching opens what is measured.
type benching struct {
	o        cli.BenchOptions
	host     *Host // stands for this machine in tests; nil: it is itself
	home     home  // of the floor, whose VMs are where those of a node are: whoever sweeps finds them
	lifeline *os.File
}

// open is a Tartarus in this process, as of `run --local`, with room, and with a
// socket: callers keep their connections, which net/http does not expect of a
// connection in memory.
func (b *benching) open(ctx context.Context, running int) (_ *bench.Product, err error) {
	policy := filepath.Join(b.home.root, "policy.yaml")
	if err := writeFile(policy, fmt.Appendf(nil, benchPolicy, running, b.o.Template)); err != nil {
		return nil, err
	}
	watched := &watchedVMs{live: map[sandbox.ID]tartarus.VM{}}
	ctx, cancel := context.WithCancel(ctx)
	cfg := Config{
		StateDir: b.o.StateDir, Policy: policy, VMM: b.o.VMM, Standby: int(b.o.Standby), Local: true, Socket: true, Templates: []string{b.o.Template}, Progress: b.o.Progress,
		Logger:   newLogger(stderr(), cli.LogText, b.o.Verbose, slog.LevelError),
		Driver:   func(d tartarus.Driver) tartarus.Driver { watched.Driver = d; return watched },
		Capacity: sandbox.Capacity{VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}, Beside: bench.MaxConcurrency,
	}
	if b.host != nil {
		watched.Driver = b.host.Driver
		cfg.Host = &Host{Driver: watched, Kernel: b.host.Kernel}
	}
	up := make(chan *embedded, 1)
	done := make(chan error, 1)
	go func() { done <- newEmbedded(cfg).run(ctx, func(e *embedded) { up <- e }) }()
	var e *embedded
	select {
	case e = <-up:
	case err := <-done:
		cancel()
		return nil, err
	}
	stop := func() error { cancel(); return <-done }
	floor, err := b.floor(ctx, e, watched.Driver)
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	return &bench.Product{
		API: bench.API{Host: "localhost", Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", e.home.socket())
		}},
		Ledger: e.home.ledger(), VMs: watched.all, Floor: floor, Close: stop,
	}, nil
}

// floor is the same as e's VMs are made of.
func (b *benching) floor(ctx context.Context, e *embedded, d tartarus.Driver) (f bench.Floor, err error) {
	t, err := e.images.Template(ctx, b.o.Template)
	if err != nil {
		return f, err
	}
	bundle, err := e.images.CurrentBundle(ctx)
	if err != nil {
		return f, err
	}
	f = bench.Floor{
		Driver: d, Kernel: bundle.Kernel, Initrd: bundle.Initrd, Cmdline: bundle.Cmdline,
		Dir: filepath.Join(b.home.node(), "sandboxes"), FirstUID: e.beside.First, Lifeline: b.lifeline,
	}
	if f.Root, err = e.images.RootDisk(ctx, t.Digest); err != nil {
		return f, err
	}
	if f.Scratch, err = lethe.Open(lethe.Config{Dir: e.paths.lethe(), Log: e.log}); err != nil {
		return f, err
	}
	f.Memory, f.State, err = b.snapshot(ctx, e, t.Digest, bundle.Digest)
	return f, err
}

// snapshot has the shape's snapshot made if it is not there, as setup does, and
// tells where its files are; "" where the driver makes none.
func (b *benching) snapshot(ctx context.Context, e *embedded, template, bundle sandbox.Digest) (memory, state string, err error) {
	if !e.driver.Info().CanSnapshot {
		return "", "", nil
	}
	if b.o.Progress != nil {
		b.o.Progress(cli.Step{Name: "snapshot of template " + b.o.Template + ": looking for it, or booting one"})
	}
	s := bench.NewShape(b.o.Template, b.o.MemoryMiB)
	shape := e.snapshots.Shape(template, bundle, sandbox.Resources{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB, DiskMiB: s.DiskMiB, Processes: s.Processes})
	if err := e.snapshots.Make(ctx, shape); err != nil {
		return "", "", err
	}
	files, err := e.images.Snapshot(ctx, shape)
	if err != nil {
		return "", "", err
	}
	return files.Memory.Name(), files.State.Name(), files.Close()
}

// watchedVMs is a driver that knows which of its VMs live.
type watchedVMs struct {
	tartarus.Driver

	mu       sync.Mutex
	live     map[sandbox.ID]tartarus.VM
	starting int
}

// Start makes a VM, as tartarus.Driver says.
func (w *watchedVMs) Start(ctx context.Context, s tartarus.Spec) (tartarus.VM, error) {
	w.count(1)
	defer w.count(-1)
	vm, err := w.Driver.Start(ctx, s)
	if err == nil {
		w.mu.Lock()
		w.live[s.ID] = vm
		w.mu.Unlock()
	}
	return vm, err
}

func (w *watchedVMs) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starting += n
}

// all are those that live, and how many more are being started.
func (w *watchedVMs) all() ([]tartarus.VM, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.live, func(_ sandbox.ID, vm tartarus.VM) bool {
		select {
		case <-vm.Done():
			return true
		default:
			return false
		}
	})
	return slices.Collect(maps.Values(w.live)), w.starting
}
