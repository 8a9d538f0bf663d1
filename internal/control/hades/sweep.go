package hades

import (
	"context"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Run watches over the nodes until ctx ends: what was bound to a node that is
// gone, or to an epoch of it that is over, is given back to the queue where
// the node had not accepted it, and ends as node_lost where it had.
func (r *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(max(r.cfg.Lease/5, 10*time.Millisecond))
	defer tick.Stop()
	began := r.cfg.Clock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.sweep(ctx, began); err != nil && ctx.Err() == nil {
				r.cfg.Logger.Warn("sweeping lost nodes failed", "error", err)
			}
		}
	}
}

// sweep is one round. began is when this process did: a node that has not
// joined since then gets as long as one that fell silent.
func (r *Registry) sweep(ctx context.Context, began time.Time) error {
	nodes, err := r.cfg.Ledger.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		gone, fenced := r.judge(n.ID, began)
		if !gone && fenced == 0 {
			continue
		}
		recs, err := r.onNode(ctx, n.ID)
		if err != nil {
			return err
		}
		for _, rec := range recs {
			if gone || rec.Epoch < fenced {
				r.lose(ctx, rec, "its node was lost before it accepted")
			}
		}
	}
	return nil
}

// judge says whether a node counts as gone, and below which epoch everything
// of it is over (0: nothing is). A node tells the ends it knows of before its
// first heartbeat, so older epochs are over once that has come.
func (r *Registry) judge(node string, began time.Time) (gone bool, fenced int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	patience := r.cfg.Lease + r.cfg.Margin
	l := r.nodes[node]
	if l == nil {
		return r.cfg.Clock().Sub(began) > patience, 0
	}
	if r.cfg.Clock().Sub(l.seen) > patience {
		return true, 0
	}
	if l.told {
		return false, l.epoch
	}
	return false, 0
}

// lose gives rec back to the queue, because of why, or ends it where its node had
// accepted it.
func (r *Registry) lose(ctx context.Context, rec sandbox.Record, why string) {
	a := sandbox.Assignment{Sandbox: rec.ID, Attempt: rec.Runtime.Attempt, Node: rec.Node, Epoch: rec.Epoch}
	var err error
	if rec.State == sandbox.Assigned && rec.Kill == "" {
		err = r.cfg.Ledger.Requeue(ctx, a, r.cfg.Clock(), why)
	} else {
		_, err = r.cfg.Ledger.End(ctx, a, sandbox.End{At: r.cfg.Clock(), Exit: lost(rec)})
	}
	if err != nil && !fault.Is(err, fault.Conflict) && ctx.Err() == nil {
		r.cfg.Logger.Warn("fencing a sandbox failed", "sandbox", rec.ID, "request_id", rec.RequestID, "error", err)
	}
}

func lost(rec sandbox.Record) sandbox.ExitRecord {
	if rec.State == sandbox.Assigned {
		return sandbox.ExitRecord{Cause: rec.Kill, Source: rec.Kill.Source(), Message: "ended before its node had accepted it"}
	}
	return sandbox.ExitRecord{
		Cause: sandbox.NodeLost, Source: sandbox.FromHost,
		Message: "the node died, or lost the control plane, after it had accepted the sandbox",
	}
}
