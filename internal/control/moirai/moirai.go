// Package moirai is the scheduler: clotho takes requests in, lachesis decides
// where they may go, atropos binds them.
package moirai

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/moirai/atropos"
	"github.com/tartarus-vm/tartarus/internal/control/moirai/clotho"
	"github.com/tartarus-vm/tartarus/internal/control/moirai/lachesis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Queue is where requests come from and where they go back to.
type Queue interface {
	clotho.Queue
	// Return gives a claim back. tenantLimited: it waits for its tenant's own
	// limit, and the tenant's others need not be tried before something of it ends.
	Return(ctx context.Context, c ledger.Claim, w ledger.Waiting, tenantLimited bool) error
	// Drop ends a claimed request.
	Drop(ctx context.Context, c ledger.Claim, cause sandbox.Cause, message string) (sandbox.Record, error)
}

// Nodes is the registry (hades).
type Nodes interface {
	atropos.Orders
	Nodes(ctx context.Context) ([]sandbox.Node, error)
	Fresh() time.Duration
}

// Config is what a Scheduler is made of.
type Config struct {
	Queue    Queue
	Ledger   atropos.Ledger
	Nodes    Nodes
	Verdicts clotho.Verdicts
	Workers  int              // how many requests are placed at once; DefaultWorkers if zero
	Clock    func() time.Time // time.Now if nil
	Logger   *slog.Logger     // nil: none
}

// DefaultWorkers is how many requests are placed at once. Each waits for the
// disk most of the time, and those that wait together share a commit.
const DefaultWorkers = 8

// Scheduler places requests.
type Scheduler struct {
	cfg    Config
	intake clotho.Intake
	binder atropos.Binder
	sight  sight

	mu    sync.Mutex
	avoid map[sandbox.ID]refusals
}

// refusals are the nodes that refused a sandbox, until the memory fades.
type refusals struct {
	until time.Time
	nodes map[string]bool
}

// avoidFor is how long a node that refused a sandbox is not asked again.
const avoidFor = 5 * time.Second

// New makes a Scheduler.
func New(cfg Config) (*Scheduler, error) {
	if cfg.Queue == nil || cfg.Ledger == nil || cfg.Nodes == nil || cfg.Verdicts == nil {
		return nil, errors.New("moirai: Queue, Ledger, Nodes and Verdicts are required")
	}
	if cfg.Workers == 0 {
		cfg.Workers = DefaultWorkers
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Scheduler{
		cfg:    cfg,
		intake: clotho.Intake{Queue: cfg.Queue, Verdicts: cfg.Verdicts, Clock: cfg.Clock},
		binder: atropos.Binder{Ledger: cfg.Ledger, Orders: cfg.Nodes, Clock: cfg.Clock, Logger: cfg.Logger},
		sight:  sight{nodes: cfg.Nodes, clock: cfg.Clock, wish: make(chan struct{}, 1)},
		avoid:  map[sandbox.ID]refusals{},
	}, nil
}

// Run places requests until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range s.cfg.Workers {
		g.Go(func() error { return s.work(ctx) })
	}
	g.Go(func() error { return s.sight.run(ctx) })
	return g.Wait()
}

// pauseAfterFault keeps a broken store from being asked in a tight circle.
const pauseAfterFault = 500 * time.Millisecond

func (s *Scheduler) work(ctx context.Context) error {
	for {
		th, err := s.intake.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case errors.Is(err, clotho.ErrUnsigned):
			s.loggerOf(th).Error("a queued request is not signed by us", "error", err)
			err = s.end(ctx, th.Claim, sandbox.Internal, "its verdict does not hold any more")
		case err == nil:
			err = s.place(ctx, th)
		}
		if err != nil && ctx.Err() == nil {
			s.loggerOf(th).Error("placing failed", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pauseAfterFault):
			}
		}
	}
}

// loggerOf logs what concerns one request.
func (s *Scheduler) loggerOf(th clotho.Thread) *slog.Logger {
	rec := th.Claim.Admitted.Record
	if rec.ID == "" { // the queue itself failed
		return s.cfg.Logger
	}
	return s.cfg.Logger.With("sandbox", rec.ID, "request_id", rec.RequestID)
}

// place decides and binds one request.
func (s *Scheduler) place(ctx context.Context, th clotho.Thread) error {
	id := th.Claim.Admitted.Record.ID
	for now := false; ; now = true {
		ranking, looked, err := s.sight.rank(ctx, th.Want, s.avoided(id), now)
		if err != nil {
			return errors.Join(err, s.cfg.Queue.Return(ctx, th.Claim, th.Claim.Waiting, false))
		}
		outcome, err := s.bind(ctx, th, ranking.Candidates)
		switch {
		case err != nil:
			return fmt.Errorf("binding %s: %w", id, err)
		case outcome == atropos.TenantLimit:
			return s.giveBack(ctx, th.Claim, ledger.Waiting{Reasons: []string{"waits for the tenant's own limit"}}, true)
		case outcome != atropos.NodesFull:
			return nil
		case looked:
			return s.wait(ctx, th, ranking)
		}
	}
}

// bind binds a request to one of the candidates.
func (s *Scheduler) bind(ctx context.Context, th clotho.Thread, candidates []sandbox.Node) (atropos.Outcome, error) {
	if len(candidates) == 0 {
		return atropos.NodesFull, nil
	}
	id, need := th.Claim.Admitted.Record.ID, th.Want.Resources.Demand()
	outcome, node, err := s.binder.Bind(ctx, th.Claim, candidates)
	if err == nil && outcome == atropos.Bound {
		s.sight.placed(candidates[0].ID, node, need)
	} else {
		s.sight.placed(candidates[0].ID, "", need)
	}
	switch {
	case err != nil:
	case outcome == atropos.Bound, outcome == atropos.Overtaken:
		s.forgive(id)
	case outcome == atropos.Refused:
		s.refused(id, node)
	}
	return outcome, err
}

// wait gives back a request that found no place. Where a node is only full it
// waits its turn, for as long as queue_timeout allows; where none could take
// it even when empty, it ends once that has been so for too long.
func (s *Scheduler) wait(ctx context.Context, th clotho.Thread, ranking lachesis.Ranking) error {
	w := ledger.Waiting{Reasons: ranking.Summary()}
	if ranking.Busy() || len(ranking.Candidates) > 0 { // the latter filled up meanwhile
		return s.giveBack(ctx, th.Claim, w, false)
	}
	now := s.cfg.Clock()
	if w.NoNodeSince = th.Claim.Waiting.NoNodeSince; w.NoNodeSince.IsZero() {
		w.NoNodeSince = now
	}
	if now.Sub(w.NoNodeSince) >= th.Want.CapacityWait {
		return s.end(ctx, th.Claim, sandbox.NoCapacity, fmt.Sprintf("no node fitted for %v: %s", th.Want.CapacityWait, strings.Join(w.Reasons, ", ")))
	}
	return s.giveBack(ctx, th.Claim, w, false)
}

func (s *Scheduler) giveBack(ctx context.Context, c ledger.Claim, w ledger.Waiting, tenantLimited bool) error {
	return unlessOvertaken(s.cfg.Queue.Return(ctx, c, w, tenantLimited))
}

func (s *Scheduler) end(ctx context.Context, c ledger.Claim, cause sandbox.Cause, message string) error {
	s.forgive(c.Admitted.Record.ID)
	_, err := s.cfg.Queue.Drop(ctx, c, cause, message)
	return unlessOvertaken(err)
}

// unlessOvertaken passes over that somebody else decided meanwhile.
func unlessOvertaken(err error) error {
	if fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func (s *Scheduler) avoided(id sandbox.ID) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock()
	for k, r := range s.avoid {
		if now.After(r.until) {
			delete(s.avoid, k)
		}
	}
	out := map[string]bool{}
	for n := range s.avoid[id].nodes {
		out[n] = true
	}
	return out
}

func (s *Scheduler) refused(id sandbox.ID, node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.avoid[id]
	if !ok {
		r.nodes = map[string]bool{}
	}
	r.nodes[node], r.until = true, s.cfg.Clock().Add(avoidFor)
	s.avoid[id] = r
}

func (s *Scheduler) forgive(id sandbox.ID) {
	s.mu.Lock()
	delete(s.avoid, id)
	s.mu.Unlock()
}
