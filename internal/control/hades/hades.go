// Package hades is the node registry: which nodes there are, what room and
// labels they have, when they were last heard of, and the line to each of them.
//
// It serves what nodes ask of the control plane (join, heartbeat, accept,
// report) and carries the control plane's signed orders to them (assign, kill)
// and the callers' bytes (logs, stdin). What a node has in use is never kept
// here: it is the ledger's sum over live records.
package hades

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// Ledger is what the registry needs of the book.
type Ledger interface {
	ledger.Placements
	ledger.Book
}

// Config is what a Registry is made of. Ledger, Key, Box and Dial are required.
type Config struct {
	Ledger Ledger
	Key    *seal.Key // signs orders
	Box    *seal.Box // opens the sealed secrets for their way to the node

	// Dial opens the line to a node's NodeService. The registry keeps one
	// connection a node and closes it.
	Dial func(node, address string) (*grpc.ClientConn, error)

	Lease  time.Duration    // how long a node may go on without a heartbeat; 10 s if zero
	Margin time.Duration    // what is waited beyond Lease before a node counts as lost; half of Lease if zero
	Clock  func() time.Time // time.Now if nil
	Logger *slog.Logger     // nil: none
	Tracer *tracing.Tracer  // nil: no traces
}

// Registry is the node registry. Make one with New.
type Registry struct {
	nodev1.UnimplementedControlServiceServer
	cfg Config

	mu    sync.Mutex
	nodes map[string]*line // by node ID
}

// line is what is known of a node that joined since this process began.
type line struct {
	epoch  int64
	joined time.Time
	seen   time.Time // monotonic
	told   bool      // its first heartbeat of this epoch has come
	conn   *grpc.ClientConn
	agent  nodev1.NodeServiceClient
}

// New makes a Registry.
func New(cfg Config) (*Registry, error) {
	if cfg.Ledger == nil || cfg.Key == nil || cfg.Box == nil || cfg.Dial == nil {
		return nil, errors.New("hades: Ledger, Key, Box and Dial are required")
	}
	if cfg.Lease == 0 {
		cfg.Lease = 10 * time.Second
	}
	if cfg.Margin == 0 {
		cfg.Margin = cfg.Lease / 2
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Registry{cfg: cfg, nodes: map[string]*line{}}, nil
}

// Fresh is the age of a heartbeat after which a node gets nothing new.
func (r *Registry) Fresh() time.Duration { return r.cfg.Lease }

// Nodes returns every node with what is in use of it and when it was last
// heard of. A node that has not joined since this process began was never
// heard of.
func (r *Registry) Nodes(ctx context.Context) ([]sandbox.Node, error) {
	nodes, err := r.cfg.Ledger.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading nodes: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range nodes {
		nodes[i].SeenAt = time.Time{}
		if l := r.nodes[nodes[i].ID]; l != nil && l.epoch == nodes[i].Epoch {
			nodes[i].SeenAt = l.seen
		}
	}
	return nodes, nil
}

// agent is the line to a node, for orders of one epoch; 0 is any.
func (r *Registry) agent(node string, epoch int64) (nodev1.NodeServiceClient, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.nodes[node]
	if l == nil || l.agent == nil {
		return nil, fault.New(fault.Unavailable, "the sandbox's node is not connected")
	}
	if epoch != 0 && l.epoch != epoch {
		return nil, fault.New(fault.Conflict, "the node has joined anew since")
	}
	return l.agent, nil
}

// Close ends the lines to all nodes.
func (r *Registry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, l := range r.nodes {
		if l.conn != nil {
			errs = append(errs, l.conn.Close())
		}
	}
	r.nodes = map[string]*line{}
	return errors.Join(errs...)
}
