package hecatoncheir

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/thanatos"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// defaultLease is for a control plane that names none.
const defaultLease = 10 * time.Second

// pauses are how long is waited between tries of the same call.
func pauses() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 50*time.Millisecond, 2*time.Second
	return b
}

// call is one call to the control plane.
func call[Req, Resp any](ctx context.Context, a *Agent, do func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	cctx, cancel := context.WithTimeout(ctx, a.cfg.CallTimeout)
	defer cancel()
	resp, err := do(cctx, req)
	return resp, nodewire.FromStatus(err)
}

// definite reports whether err is the control plane's answer, which asking
// again would not change.
func definite(err error) bool {
	switch fault.KindOf(err) {
	case fault.Conflict, fault.NotFound, fault.InvalidArgument, fault.PolicyDenied, fault.TooLarge:
		return true
	}
	return false
}

// join makes the node known, again and again until it is or ctx ends, and
// then tells the ends that nobody acknowledged before.
func (a *Agent) join(ctx context.Context) error {
	info := a.cfg.Driver.Info()
	node, err := nodewire.EncodeNode(sandbox.Node{
		ID: a.cfg.NodeID, Capacity: a.cfg.Capacity, Labels: a.cfg.Labels, Isolation: info.Isolation, Network: a.networked(),
		Runtime: sandbox.Runtime{Driver: info.Name, Version: info.Version, Accelerator: info.Accelerator, Start: startCold},
	})
	if err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	try := func() (struct{}, error) {
		sent := time.Now()
		var resp *nodev1.JoinResponse
		err := a.pass("join", "", func() (err error) {
			resp, err = call(ctx, a, a.joinCall, &nodev1.JoinRequest{Node: node, Address: a.cfg.Address})
			return err
		})
		if err != nil {
			a.cfg.Logger.Warn("joining failed", "error", err)
			if definite(err) && !fault.Is(err, fault.Conflict) {
				return struct{}{}, backoff.Permanent(err)
			}
			return struct{}{}, err
		}
		return struct{}{}, a.admit(resp, sent)
	}
	if _, err := backoff.Retry(ctx, try, backoff.WithBackOff(pauses()), backoff.WithMaxElapsedTime(0)); err != nil {
		return fmt.Errorf("joining: %w", err)
	}
	return a.tellOld(ctx)
}

func (a *Agent) joinCall(ctx context.Context, req *nodev1.JoinRequest) (*nodev1.JoinResponse, error) {
	return a.cfg.Control.Join(ctx, req)
}

// admit takes the control plane's answer to a join that left at sent.
func (a *Agent) admit(resp *nodev1.JoinResponse, sent time.Time) error {
	ring, err := seal.NewRing(resp.GetKeys()...)
	if err != nil {
		return backoff.Permanent(fmt.Errorf("the control plane's keys: %w", err))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ring, a.epoch, a.renewed, a.joined = ring, resp.GetEpoch(), sent, true
	a.setLease(resp.GetLeaseMs())
	return nil
}

// setLease is for a.mu's holder.
func (a *Agent) setLease(ms int64) {
	if a.lease = time.Duration(ms) * time.Millisecond; a.lease <= 0 {
		a.lease = defaultLease
	}
}

// Run renews the lease until ctx ends. When that fails for as long as the
// lease, all sandboxes are ended and the node joins anew.
func (a *Agent) Run(ctx context.Context) error {
	for {
		t := time.NewTimer(a.untilBeat())
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		if a.beat(ctx) || ctx.Err() != nil {
			continue
		}
		if err := a.rejoin(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// untilBeat is how long to wait before the next heartbeat, and how long that
// may take: so that the end of the lease is never slept over.
func (a *Agent) untilBeat() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(min(a.lease/3, a.lease-time.Since(a.renewed)), time.Millisecond)
}

// beat is one heartbeat. It returns false once the lease is lost.
func (a *Agent) beat(ctx context.Context) bool {
	a.mu.Lock()
	req := &nodev1.HeartbeatRequest{Node: a.cfg.NodeID, Epoch: a.epoch}
	for id, l := range a.byID {
		// The others end already; whatever is answered would change nothing.
		if _, _, dying := l.death.First(); !dying {
			req.Live = append(req.Live, string(id))
		}
	}
	a.mu.Unlock()
	cctx, cancel := context.WithTimeout(ctx, min(a.untilBeat(), a.cfg.CallTimeout))
	defer cancel()
	sent := time.Now()
	resp, err := a.cfg.Control.Heartbeat(cctx, req)
	if err = nodewire.FromStatus(err); err != nil {
		a.cfg.Logger.Warn("a heartbeat failed", "error", err)
		return !definite(err) && a.holdsLease()
	}
	a.mu.Lock()
	a.renewed = sent
	a.setLease(resp.GetLeaseMs())
	a.mu.Unlock()
	for _, id := range resp.GetForget() {
		if l, err := a.get(sandbox.ID(id)); err == nil {
			l.forget()
		}
	}
	return true
}

// holdsLease reports whether the control plane still counts on this node.
func (a *Agent) holdsLease() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.joined && time.Since(a.renewed) < a.lease
}

// rejoin ends everything and begins anew.
func (a *Agent) rejoin(ctx context.Context) error {
	a.mu.Lock()
	a.joined = false
	patience := a.lease
	a.mu.Unlock()
	a.cfg.Logger.Error("the lease is lost; ending all sandboxes")
	a.endAll("its node lost the control plane")
	// Their ends should be told before the first heartbeat of a new epoch,
	// which lets the control plane write them off. The wait is bounded, for it
	// may never have heard of them.
	wctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, l := range a.all() {
		select {
		case <-l.cut:
		case <-wctx.Done():
		}
	}
	if err := a.join(ctx); err != nil {
		return err
	}
	wctx, cancel = context.WithTimeout(ctx, patience/2)
	defer cancel()
	for _, l := range a.all() {
		if _, _, dying := l.death.First(); dying {
			select {
			case <-l.over:
			case <-wctx.Done():
			}
		}
	}
	return nil
}

// forget ends a sandbox that the control plane does not count as this node's.
func (l *life) forget() {
	l.disown()
	l.death.Take(thanatos.Order{Cause: sandbox.NodeLost, Message: "the control plane had given it up"})
}
