package hecatoncheir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// standby is a VM that waits for its sandbox: restored, set up under a name
// that nobody sees, and stopped. Its guest has run one command that does
// nothing, for what runs first is slowest: an emulator translates it, and all
// of it is read for the first time. It serves one sandbox, once.
type standby struct {
	id    sandbox.ID // of the VM
	shape nyx.Shape
	dir   string // of all it has
	slot  int
	vm    tartarus.VM
	guest Guest
	held  *os.File        // the end of its lifeline that the kernel closes when this process dies
	used  tartarus.Sample // before its sandbox began
}

// standbyName is what the guest of a VM is called that waits.
const standbyName = "standby"

// pool keeps standby VMs of the shapes that are asked for. It is told of each
// start, and follows: a shape that nobody asks for shrinks to nothing.
type pool struct {
	a    *Agent
	kick chan struct{} // there may be something to do
	wg   sync.WaitGroup

	running sync.WaitGroup     // run
	ctx     context.Context    // of run
	stop    context.CancelFunc // ends run

	mu    sync.Mutex
	ready map[nyx.Shape][]*standby // guarded by mu
	asked map[nyx.Shape]*demand    // guarded by mu
}

// demand is who asked for VMs of a shape lately, and what they are made of.
type demand struct {
	request   sandbox.Resolved
	times     []time.Time // the last ones, at most Config.Standby
	notBefore time.Time   // when to try again, after one could not be made
}

const (
	// demandLasts is how long a start counts for the VMs that are to wait.
	demandLasts = time.Minute

	// standbyPause is how long a shape is left alone whose VM could not be
	// made, and how often the pool looks whether it has too many.
	standbyPause = 5 * time.Second

	// standbyWait is the same for a shape without a snapshot yet.
	standbyWait = 250 * time.Millisecond

	// standbyShare is the part of the node's memory that VMs may take while
	// they wait: one in so many.
	standbyShare = 8

	// standbyCalm is between two looks whether sandboxes boot: they go first.
	standbyCalm = 20 * time.Millisecond

	// standbyTimeout bounds the making of one.
	standbyTimeout = 30 * time.Second
)

func newPool(a *Agent) *pool {
	p := &pool{a: a, kick: make(chan struct{}, 1), ready: map[nyx.Shape][]*standby{}, asked: map[nyx.Shape]*demand{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// start begins to keep VMs. stop ends those that wait, and running with them.
func (p *pool) start() { p.running.Go(func() { p.run(p.ctx) }) }

func (a *Agent) standbysDir() string { return filepath.Join(a.cfg.Dir, "standby") }

// take is a VM for a request; nil where none waits. It goes on already.
func (p *pool) take(ctx context.Context, r sandbox.Resolved) *standby {
	if p.a.cfg.Standby == 0 || p.a.cfg.Snapshots == nil || !r.Network.Empty() {
		return nil
	}
	shape := p.a.cfg.Snapshots.Shape(r.TemplateDigest, r.GuestDigest, r.Resources)
	for {
		s := p.pop(shape, r)
		if s == nil {
			return nil
		}
		err := s.vm.Resume(ctx)
		if err == nil {
			return s
		}
		p.a.cfg.Logger.Warn("a standby VM is lost", "vm", s.id, "error", err)
		p.discard(s)
	}
}

// pop takes one out, and notes that it was asked for.
func (p *pool) pop(shape nyx.Shape, r sandbox.Resolved) *standby {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.asked[shape]
	if d == nil {
		d = &demand{request: r}
		p.asked[shape] = d
	}
	d.times = append(d.times, time.Now())
	d.times = d.times[max(0, len(d.times)-p.a.cfg.Standby):]
	p.poke()
	waiting := p.ready[shape]
	if len(waiting) == 0 {
		return nil
	}
	p.ready[shape] = waiting[1:]
	return waiting[0]
}

func (p *pool) poke() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// run keeps the pool until ctx ends; then it ends those that wait.
func (p *pool) run(ctx context.Context) {
	tick := time.NewTicker(standbyPause)
	defer tick.Stop()
	for ctx.Err() == nil {
		p.shrink()
		d, shape := p.wanted()
		if d == nil {
			select {
			case <-ctx.Done():
			case <-tick.C:
			case <-p.kick:
			}
			continue
		}
		if !p.calm(ctx) {
			break
		}
		s, err := p.make(ctx, shape, d.request)
		if s == nil {
			p.postpone(d, err)
			if err != nil && ctx.Err() == nil {
				p.a.cfg.Logger.Warn("a standby VM could not be made", "error", err)
			}
			continue
		}
		p.add(s)
	}
	p.mu.Lock()
	var all []*standby
	for _, waiting := range p.ready {
		all = append(all, waiting...)
	}
	clear(p.ready)
	p.mu.Unlock()
	for _, s := range all {
		p.discard(s)
	}
	p.wg.Wait()
}

// calm waits until no sandbox boots.
func (p *pool) calm(ctx context.Context) bool {
	t := time.NewTicker(standbyCalm)
	defer t.Stop()
	for len(p.a.boots) > 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// target is how many VMs of a shape are to wait, for mu's holder.
func (p *pool) target(d *demand) int {
	n := 0
	for _, at := range d.times {
		if time.Since(at) < demandLasts {
			n++
		}
	}
	return n
}

// wanted is a shape of which too few wait; nil if there is none, or no room.
func (p *pool) wanted() (*demand, nyx.Shape) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var used int64
	for shape, waiting := range p.ready {
		used += int64(len(waiting)) * (shape.MemoryMiB + sandbox.VMOverheadMiB)
	}
	for shape, d := range p.asked {
		if time.Now().Before(d.notBefore) || len(p.ready[shape]) >= p.target(d) {
			continue
		}
		if used+shape.MemoryMiB+sandbox.VMOverheadMiB <= p.a.cfg.Capacity.MemoryMiB/standbyShare {
			return d, shape
		}
	}
	return nil, nyx.Shape{}
}

// shrink ends what waits for nobody.
func (p *pool) shrink() {
	p.mu.Lock()
	var surplus []*standby
	for shape, d := range p.asked {
		n := p.target(d)
		waiting := p.ready[shape]
		for len(waiting) > n {
			surplus = append(surplus, waiting[0])
			waiting = waiting[1:]
		}
		p.ready[shape] = waiting
		if n == 0 {
			delete(p.asked, shape)
			delete(p.ready, shape)
		}
	}
	p.mu.Unlock()
	for _, s := range surplus {
		p.discard(s)
	}
}

// postpone leaves a shape alone for a while: a short one where its snapshot is
// being made.
func (p *pool) postpone(d *demand, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.notBefore = time.Now().Add(standbyPause)
	if err == nil {
		d.notBefore = time.Now().Add(standbyWait)
		time.AfterFunc(standbyWait, p.poke)
	}
}

// add has one wait, until it is taken or ends by itself.
func (p *pool) add(s *standby) {
	p.mu.Lock()
	p.ready[s.shape] = append(p.ready[s.shape], s)
	p.mu.Unlock()
	p.wg.Go(func() {
		select {
		case <-s.vm.Done():
		case <-p.ctx.Done(): // run ends those that wait, and lives those that serve
			return
		}
		p.mu.Lock()
		i := slices.Index(p.ready[s.shape], s)
		if i >= 0 {
			p.ready[s.shape] = slices.Delete(slices.Clone(p.ready[s.shape]), i, i+1)
		}
		p.mu.Unlock()
		if i >= 0 {
			p.a.cfg.Logger.Warn("a standby VM ended while it waited", "vm", s.id, "exit", s.vm.Exit().String())
			p.discard(s)
			p.poke()
		}
	})
}

// make restores a VM and warms it; nil without an error where there is no
// snapshot yet.
func (p *pool) make(ctx context.Context, shape nyx.Shape, r sandbox.Resolved) (_ *standby, err error) {
	snapshot := p.a.cfg.Snapshots.Open(ctx, shape)
	if snapshot == nil {
		return nil, nil
	}
	defer snapshot.Close()
	ctx, cancel := context.WithTimeout(ctx, standbyTimeout)
	defer cancel()
	s := &standby{id: sandbox.MakeID(strings.ToLower(ulid.MustNew(ulid.Now(), rand.Reader).String())), shape: shape}
	s.dir = filepath.Join(p.a.standbysDir(), string(s.id))
	p.a.mu.Lock()
	s.slot, err = p.a.takeSlot()
	p.a.mu.Unlock()
	if err != nil {
		return nil, nil // sandboxes need them all
	}
	defer func() {
		if err != nil {
			p.discard(s)
		}
	}()
	if err = p.a.pass("standby make", s.id, func() error { return p.restore(ctx, s, r, snapshot) }); err != nil {
		return nil, err
	}
	return s, nil
}

func (p *pool) restore(ctx context.Context, s *standby, r sandbox.Resolved, snapshot *nyx.Snapshot) error {
	files, err := p.a.vmFiles(ctx, r)
	if err != nil {
		return err
	}
	vmDir := filepath.Join(s.dir, "vm")
	if err := os.MkdirAll(vmDir, 0o700); err != nil {
		return err
	}
	if err := p.a.cfg.Scratch.Create(ctx, s.scratch(), r.Resources.DiskMiB); err != nil {
		return err
	}
	lifeline, held, err := os.Pipe()
	if err != nil {
		return err
	}
	s.held = held
	defer lifeline.Close()
	spec := tartarus.Spec{
		ID: s.id, Dir: vmDir, Kernel: files.bundle.Kernel, Initrd: files.bundle.Initrd, Cmdline: files.bundle.Cmdline,
		Root: files.root, Scratch: s.scratch(), VCPUs: r.Resources.VCPUs, MemoryMiB: r.Resources.MemoryMiB, Lifeline: lifeline,
		UID: p.a.uid(s.slot), GID: p.a.uid(s.slot),
		Restore: &tartarus.SnapshotFiles{Memory: snapshot.Memory, State: snapshot.State},
	}
	s.vm, _, err = tartarus.Boot(ctx, p.a.cfg.Driver, spec, func(ctx context.Context, vm tartarus.VM) error {
		s.guest, err = p.a.cfg.Connect(ctx, vm, p.a.cfg.Logger)
		return err
	}, restorePolicy)
	if err != nil {
		if ctx.Err() == nil {
			p.a.cfg.Snapshots.Forget(s.shape)
		}
		return err
	}
	if err := s.warm(ctx, r); err != nil {
		return fmt.Errorf("warming: %w", err)
	}
	if s.used, err = s.vm.Sample(); err != nil {
		return err
	}
	return s.vm.Pause(ctx)
}

// warm has the guest do once what it will do for its sandbox.
func (s *standby) warm(ctx context.Context, r sandbox.Resolved) error {
	if err := s.guest.Setup(ctx, setupOf(standbyName, r)); err != nil {
		return err
	}
	proc, err := s.guest.Start(ctx, guestwire.Start{Argv: []string{"true"}}, func(guestwire.Flow, int64, []byte) {})
	var no *CommandError
	if errors.As(err, &no) {
		return nil // a template without it
	}
	if err != nil {
		return err
	}
	_, err = proc.Wait(ctx)
	return err
}

func (s *standby) scratch() string { return filepath.Join(s.dir, "scratch") }

// discard ends a standby, which may have ended already, and removes all of it.
func (p *pool) discard(s *standby) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if s.guest != nil {
		_ = s.guest.Close() // nothing is said any more
	}
	var err error
	if s.vm != nil {
		err = s.vm.Kill(ctx)
	}
	if s.held != nil {
		_ = s.held.Close()
	}
	if err == nil {
		err = p.a.pass("standby end", s.id, func() error { return p.a.removeStandby(ctx, s.dir) })
	}
	if err != nil {
		p.a.cfg.Logger.Error("a standby VM could not be removed", "vm", s.id, "error", err)
		return // its slot stays taken: something may still have it
	}
	p.a.mu.Lock()
	delete(p.a.slots, s.slot)
	p.a.mu.Unlock()
}

// removeStandby removes what a standby has besides its VM, which has ended.
func (a *Agent) removeStandby(ctx context.Context, dir string) error {
	if err := a.cfg.Scratch.Wipe(ctx, filepath.Join(dir, "scratch")); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// sweepStandbys ends and removes those of an earlier process, whether they
// waited or served.
func (a *Agent) sweepStandbys(ctx context.Context) error {
	entries, err := os.ReadDir(a.standbysDir())
	if err != nil {
		return fmt.Errorf("looking for standby VMs that were left: %w", err)
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(a.standbysDir(), e.Name())
		err := a.cfg.Driver.Reap(ctx, filepath.Join(dir, "vm"), tartarus.Handle{})
		if err == nil {
			err = a.removeStandby(ctx, dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// takeStandby is the step that saves the others their work.
func (l *life) takeStandby(ctx context.Context) error {
	l.standby = l.a.pool.take(ctx, l.req)
	return nil
}

// dropStandby comes after the end of the VM.
func (l *life) dropStandby(context.Context) error {
	if s := l.standby; s != nil {
		l.standby = nil
		l.a.pool.discard(s)
	}
	return nil
}
