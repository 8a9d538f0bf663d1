package hades

import (
	"context"
	"fmt"
	"slices"
	"time"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Join implements tartarus.node.v1.ControlService.
func (r *Registry) Join(ctx context.Context, req *nodev1.JoinRequest) (*nodev1.JoinResponse, error) {
	resp, err := r.join(ctx, req)
	return resp, nodewire.StatusOf(err)
}

func (r *Registry) join(ctx context.Context, req *nodev1.JoinRequest) (*nodev1.JoinResponse, error) {
	n, err := nodewire.DecodeNode(req.GetNode())
	if err != nil {
		return nil, err
	}
	conn, err := r.cfg.Dial(n.ID, req.GetAddress())
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the node cannot be reached at its address")
	}
	epoch, err := r.cfg.Ledger.Join(ctx, n)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("joining node %q: %w", n.ID, err)
	}
	now := r.cfg.Clock()
	r.replace(n.ID, &line{epoch: epoch, joined: now, seen: now, conn: conn, agent: nodev1.NewNodeServiceClient(conn)})
	r.cfg.Logger.Info("node joined", "node", n.ID, "epoch", epoch, "driver", n.Runtime.Driver, "accelerator", n.Runtime.Accelerator)
	return &nodev1.JoinResponse{Epoch: epoch, LeaseMs: r.cfg.Lease.Milliseconds(), Keys: [][]byte{r.cfg.Key.Public()}}, nil
}

func (r *Registry) replace(node string, l *line) {
	r.mu.Lock()
	old := r.nodes[node]
	r.nodes[node] = l
	r.mu.Unlock()
	if old != nil && old.conn != nil {
		_ = old.conn.Close()
	}
}

// Heartbeat implements tartarus.node.v1.ControlService.
func (r *Registry) Heartbeat(ctx context.Context, req *nodev1.HeartbeatRequest) (*nodev1.HeartbeatResponse, error) {
	if err := r.beat(req.GetNode(), req.GetEpoch()); err != nil {
		return nil, nodewire.StatusOf(err)
	}
	mine, err := r.onNode(ctx, req.GetNode())
	if err != nil {
		return nil, nodewire.StatusOf(err)
	}
	resp := &nodev1.HeartbeatResponse{LeaseMs: r.cfg.Lease.Milliseconds()}
	for _, id := range req.GetLive() {
		if !slices.ContainsFunc(mine, func(rec sandbox.Record) bool {
			return string(rec.ID) == id && rec.Epoch == req.GetEpoch()
		}) {
			resp.Forget = append(resp.Forget, id)
		}
	}
	for _, rec := range mine {
		if r.stranded(rec, req) {
			r.cfg.Logger.Warn("a node does not have what it was given", "sandbox", rec.ID, "request_id", rec.RequestID, "node", rec.Node)
			r.lose(ctx, rec, "its node never had it")
			continue
		}
		// A kill that was written but may not have reached the node: say it again.
		if rec.Kill != "" && rec.Epoch == req.GetEpoch() && slices.Contains(req.GetLive(), string(rec.ID)) {
			if err := r.Kill(ctx, rec, repeatedGrace); err != nil {
				r.cfg.Logger.Warn("repeating a kill failed", "sandbox", rec.ID, "request_id", rec.RequestID, "error", err)
			}
		}
	}
	return resp, nil
}

// stranded reports whether rec was bound to the node that says req, and no order
// ever came there: whoever was to send it, or to take the binding back, died or
// failed in between. The node had a lease's time for it. Where an order does come
// after all, the node gets no leave for it.
func (r *Registry) stranded(rec sandbox.Record, req *nodev1.HeartbeatRequest) bool {
	return rec.State == sandbox.Assigned && rec.Epoch == req.GetEpoch() && !slices.Contains(req.GetLive(), string(rec.ID)) &&
		r.cfg.Clock().Sub(rec.AssignedAt) > r.cfg.Lease
}

// repeatedGrace is for a kill whose own grace died with whoever ordered it.
const repeatedGrace = 5 * time.Second

func (r *Registry) beat(node string, epoch int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.nodes[node]
	if l == nil || l.epoch != epoch {
		return fault.New(fault.Conflict, "node %q has no epoch %d", node, epoch).WithHint("join again")
	}
	l.seen, l.told = r.cfg.Clock(), true
	return nil
}

// onNode is every record that takes room on a node, whatever its epoch.
func (r *Registry) onNode(ctx context.Context, node string) ([]sandbox.Record, error) {
	q := ledger.Query{Node: node, States: onNodeStates(), Limit: 1000}
	var all []sandbox.Record
	for {
		page, err := r.cfg.Ledger.List(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("listing the sandboxes of node %q: %w", node, err)
		}
		all = append(all, page.Records...)
		if !page.More {
			return all, nil
		}
		q.Before = page.Records[len(page.Records)-1].ID
	}
}

func onNodeStates() []sandbox.State {
	var out []sandbox.State
	for _, s := range sandbox.States() {
		if s.State.OnNode() {
			out = append(out, s.State)
		}
	}
	return out
}

// Accept implements tartarus.node.v1.ControlService.
func (r *Registry) Accept(ctx context.Context, req *nodev1.AcceptRequest) (*nodev1.AcceptResponse, error) {
	a, err := nodewire.DecodeAssignment(req.GetAssignment())
	if err != nil {
		return nil, nodewire.StatusOf(err)
	}
	err = r.cfg.Ledger.Accept(ctx, a, r.cfg.Clock())
	if fault.Is(err, fault.Conflict) {
		r.endKilled(ctx, a)
	}
	return &nodev1.AcceptResponse{}, nodewire.StatusOf(err)
}

// endKilled ends a sandbox whose kill came before its node accepted it: nobody
// else will, since it never runs.
func (r *Registry) endKilled(ctx context.Context, a sandbox.Assignment) {
	rec, err := r.cfg.Ledger.Get(ctx, a.Sandbox)
	if err != nil || rec.State != sandbox.Assigned || rec.Kill == "" {
		return
	}
	if _, err := r.cfg.Ledger.End(ctx, a, sandbox.End{At: r.cfg.Clock(), Exit: lost(rec)}); err != nil && !fault.Is(err, fault.Conflict) {
		r.cfg.Logger.Warn("ending a killed sandbox failed", "sandbox", a.Sandbox, "request_id", rec.RequestID, "error", err)
	}
}

// Report implements tartarus.node.v1.ControlService.
func (r *Registry) Report(ctx context.Context, req *nodev1.ReportRequest) (*nodev1.ReportResponse, error) {
	return &nodev1.ReportResponse{}, nodewire.StatusOf(r.report(ctx, req))
}

func (r *Registry) report(ctx context.Context, req *nodev1.ReportRequest) error {
	a, err := nodewire.DecodeAssignment(req.GetAssignment())
	if err != nil {
		return err
	}
	if len(req.GetEnd()) == 0 {
		p, err := nodewire.DecodeProgress(req.GetProgress())
		if err != nil {
			return err
		}
		return r.cfg.Ledger.Advance(ctx, a, p)
	}
	end, err := nodewire.DecodeEnd(req.GetEnd())
	if err != nil {
		return err
	}
	_, err = r.cfg.Ledger.End(ctx, a, end)
	return err
}
