package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/styx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/thanatos"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// Images are the disks and guests that VMs are made of (nyx.Store).
type Images interface {
	RootDisk(ctx context.Context, d sandbox.Digest) (path string, err error)
	Bundle(ctx context.Context, d sandbox.Digest) (nyx.Bundle, error)
}

// Scratch makes and wipes writable layers (lethe). Wiping what is not there is
// no error.
type Scratch interface {
	Create(ctx context.Context, path string, mib int64) error
	Wipe(ctx context.Context, path string) error
}

// Network gives sandboxes network cards (styx.Network). Detaching what is not
// there is no error.
type Network interface {
	Attach(ctx context.Context, w styx.Want) (*styx.Card, error)
	Detach(ctx context.Context, name string) error
	Traffic(name string) (rx, tx uint64, err error)
}

// Snapshots are what VMs go on from instead of booting (snapshots.Maker).
type Snapshots interface {
	Shape(template, bundle sandbox.Digest, r sandbox.Resources) nyx.Shape

	// Open is the snapshot of a shape, for the caller to close; nil where there
	// is none yet.
	Open(ctx context.Context, s nyx.Shape) *nyx.Snapshot

	// Forget is for one that a VM could not go on from.
	Forget(s nyx.Shape)
}

// Blobs keep ended logs (erebus).
type Blobs interface {
	Put(ctx context.Context, r io.Reader) (sandbox.Digest, error)
}

// Guest is the host's side of one guest (guestdial.Session).
type Guest interface {
	Setup(ctx context.Context, s guestwire.Setup) error
	PutFile(ctx context.Context, path string, mode uint32, data []byte) error

	// Start starts a process. sink gets its output, in order for each flow;
	// blocking it holds the output back.
	Start(ctx context.Context, s guestwire.Start, sink func(f guestwire.Flow, offset int64, data []byte)) (Process, error)
	Close() error
}

// Process is a process in the guest (guestdial.Process).
type Process interface {
	Signal(ctx context.Context, sig int) error
	Stdin() io.WriteCloser
	// Wait returns after the process ended and its output was handed over.
	Wait(ctx context.Context) (guestwire.Exit, error)
	// Undelivered is how much of the announced output never came.
	Undelivered() int64
}

// Config is what an Agent is made of. NodeID, Dir, Driver, Images, Scratch,
// Blobs, Control and Capacity are required.
type Config struct {
	NodeID  string
	Dir     string // the node's state, this process's alone
	Driver  tartarus.Driver
	Images  Images
	Scratch Scratch
	Blobs   Blobs
	Control nodev1.ControlServiceClient

	Network   Network   // nil: this node gives no network cards
	Snapshots Snapshots // nil: every VM boots

	// Standby is how many VMs of a shape wait for its sandboxes at most; as
	// many are made as were asked for lately. It needs Snapshots.
	Standby int

	Capacity sandbox.Capacity
	Labels   map[string]string
	Address  string // where the control plane reaches NodeService

	// Connect reaches a VM's guest; guestdial if nil.
	Connect func(ctx context.Context, vm tartarus.VM, log *slog.Logger) (Guest, error)

	Lifeline *os.File // nil, or as in tartarus.Spec; stays the caller's
	UIDs     UIDRange // of VMMs; with none they run as the driver says
	Boots    int      // VMs that boot at the same time; twice the host's CPUs if 0
	Boot     tartarus.BootPolicy
	Death    thanatos.Config

	TimeUpGrace time.Duration // between asking and telling when max_duration is over; 1 s if 0
	SampleEvery time.Duration // 1 s if 0
	CallTimeout time.Duration // of one call to the control plane; 5 s if 0

	Metrics prometheus.Registerer // nil: none
	Tracer  *tracing.Tracer       // nil: no traces
	Logger  *slog.Logger          // nil: discard

	// Passing, if not nil, is called before each named step, and with Done
	// after it has succeeded; what it returns becomes the step's error. Tests
	// let steps fail and processes die with it.
	Passing func(Passing) error
}

// Passing is a named step that is passed.
type Passing struct {
	Step string
	Of   sandbox.ID // "" for the node's own
	Done bool
}

// UIDRange are user IDs, and the same group IDs, that nothing else on the host
// has: each VMM runs as one of them that no other VMM has then.
type UIDRange struct{ First, Count int }

// withDefaults also checks what has none.
func (c Config) withDefaults() (Config, error) {
	switch {
	case c.NodeID == "":
		return c, errors.New("hecatoncheir: a node needs an ID")
	case !filepath.IsAbs(c.Dir):
		return c, fmt.Errorf("hecatoncheir: %q is no absolute folder", c.Dir)
	case c.Driver == nil || c.Images == nil || c.Scratch == nil || c.Blobs == nil || c.Control == nil:
		return c, errors.New("hecatoncheir: Driver, Images, Scratch, Blobs and Control are required")
	case c.Capacity.VCPUs <= 0 || c.Capacity.MemoryMiB <= 0 || c.Capacity.DiskMiB <= 0:
		return c, fmt.Errorf("hecatoncheir: a node with a capacity of %+v can run nothing", c.Capacity)
	}
	if c.Boots <= 0 {
		c.Boots = 2 * runtime.NumCPU()
	}
	for _, d := range []struct {
		to  *time.Duration
		def time.Duration
	}{{&c.TimeUpGrace, time.Second}, {&c.SampleEvery, time.Second}, {&c.CallTimeout, 5 * time.Second}} {
		if *d.to <= 0 {
			*d.to = d.def
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Connect == nil {
		c.Connect = dialGuest
	}
	return c, nil
}

// Agent is the node agent. Make one with New, Start it, let Run work, Stop it.
type Agent struct {
	nodev1.UnimplementedNodeServiceServer
	cfg     Config
	journal *journal.Journal // set by Start
	metrics *hermes.Metrics
	pool    *pool
	boots   chan struct{} // holds a value for each VM that boots
	lives   sync.WaitGroup
	base    context.Context // of all lives; ends when Stop runs out of patience
	abandon context.CancelFunc

	mu       sync.Mutex
	byID     map[sandbox.ID]*life // until the control plane has heard of the end
	slots    map[int]bool         // in use; a slot is the number of a user ID in the range, from 0
	old      map[sandbox.ID]bool  // ends of an earlier process that are being told
	ring     *seal.Ring           // nil until joined
	epoch    int64
	lease    time.Duration
	renewed  time.Time // when the last heartbeat that was answered had left
	joined   bool      // false also while the lease is lost
	stopping bool
}

// New makes an Agent that has not started.
func New(cfg Config) (*Agent, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, boots: make(chan struct{}, cfg.Boots),
		byID: map[sandbox.ID]*life{}, slots: map[int]bool{}, old: map[sandbox.ID]bool{},
	}
	if cfg.Metrics != nil {
		if a.metrics, err = hermes.NewMetrics(cfg.Metrics, a.use); err != nil {
			return nil, fmt.Errorf("hecatoncheir: %w", err)
		}
	}
	a.base, a.abandon = context.WithCancel(context.Background())
	a.pool = newPool(a)
	return a, nil
}

func (a *Agent) journalDir() string               { return filepath.Join(a.cfg.Dir, "journal") }
func (a *Agent) sandboxesDir() string             { return filepath.Join(a.cfg.Dir, "sandboxes") }
func (a *Agent) sandboxDir(id sandbox.ID) string  { return filepath.Join(a.sandboxesDir(), string(id)) }
func (a *Agent) vmDir(id sandbox.ID) string       { return filepath.Join(a.sandboxDir(id), "vm") }
func (a *Agent) scratchPath(id sandbox.ID) string { return filepath.Join(a.sandboxDir(id), "scratch") }
func (a *Agent) logPath(id sandbox.ID) string     { return filepath.Join(a.sandboxDir(id), "log") }

// Start ends what an earlier process left, joins, and tells the control plane
// what had happened. NodeService must be reachable by then. It keeps trying
// until ctx ends. When it fails nothing of it is left running.
func (a *Agent) Start(ctx context.Context) error {
	for _, dir := range []string{a.cfg.Dir, a.sandboxesDir(), a.standbysDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the node's folders: %w", err)
		}
	}
	j, left, err := journal.Open(a.journalDir(), a.cfg.Logger)
	if err != nil {
		return err
	}
	a.journal = j
	if err = a.recover(ctx, left); err == nil {
		err = a.sweepStandbys(ctx)
	}
	if err == nil {
		err = a.join(ctx)
	}
	if err != nil {
		a.abandon()
		a.lives.Wait()
		return errors.Join(err, j.Close())
	}
	a.beat(ctx)
	a.pool.start()
	return nil
}

// Stop ends all sandboxes and waits until they are gone and the control plane
// knows, or ctx ends; what it does not know then, the journal does.
func (a *Agent) Stop(ctx context.Context) error {
	a.mu.Lock()
	a.stopping = true
	a.mu.Unlock()
	a.pool.stop()
	a.endAll("its node was stopped")
	gone := make(chan struct{})
	go func() {
		a.lives.Wait()
		close(gone)
	}()
	var err error
	select {
	case <-gone:
	case <-ctx.Done():
		err = fmt.Errorf("ending all sandboxes: %w", ctx.Err())
	}
	a.abandon()
	<-gone // bounded by thanatos
	a.pool.running.Wait()
	if a.journal != nil {
		err = errors.Join(err, a.journal.Close())
	}
	return err
}

// endAll ends every sandbox because this node gives up. Those without leave to
// execute never ran: no end of them is told, so that they run elsewhere, or
// here once the node has joined anew.
func (a *Agent) endAll(why string) {
	for _, l := range a.all() {
		l.disownUnlessAccepted()
		l.death.Take(thanatos.Order{Cause: sandbox.NodeLost, Message: why})
	}
}

// pass does a named step of a sandbox, or of the node.
func (a *Agent) pass(step string, of sandbox.ID, do func() error) error {
	if a.cfg.Passing == nil {
		return do()
	}
	if err := a.cfg.Passing(Passing{step, of, false}); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return a.cfg.Passing(Passing{step, of, true})
}

// write is the step of changing an entry of the journal.
func (a *Agent) write(what string, id sandbox.ID, change func(*journal.Entry)) error {
	return a.pass("journal "+what, id, func() error { return a.journal.Update(id, change) })
}

// strike is the step of taking an entry out of the journal.
func (a *Agent) strike(id sandbox.ID) error {
	return a.pass("journal remove", id, func() error { return a.journal.Remove(id) })
}

func (a *Agent) all() []*life {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*life, 0, len(a.byID))
	for _, l := range a.byID {
		out = append(out, l)
	}
	return out
}

// use is what the sandboxes use together, as sampled last.
func (a *Agent) use() hermes.Use {
	var u hermes.Use
	for _, l := range a.all() {
		l.mu.Lock()
		u.Sandboxes++
		u.MemoryBytes += l.last.MemoryBytes
		u.LargestBytes = max(u.LargestBytes, l.last.MemoryBytes)
		l.mu.Unlock()
	}
	return u
}

// loggerOf logs what concerns one sandbox, for the request that ctx is of.
func (a *Agent) loggerOf(ctx context.Context, as sandbox.Assignment) *slog.Logger {
	l := a.cfg.Logger.With("sandbox", as.Sandbox, "attempt", as.Attempt)
	if id := nodewire.RequestID(ctx); id != "" {
		l = l.With("request_id", id)
	}
	return l
}

func (a *Agent) get(id sandbox.ID) (*life, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.byID[id]
	if !ok {
		return nil, fault.New(fault.NotFound, "this node has no sandbox %q", id)
	}
	return l, nil
}
