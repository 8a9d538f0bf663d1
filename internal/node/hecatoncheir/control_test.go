package hecatoncheir

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// told is what the control plane knows of a sandbox.
type told struct {
	accepted bool
	states   []sandbox.State
	started  time.Time
	facts    sandbox.Progress
	end      *sandbox.End
	ends     int // how often it was told
}

// control is a small control plane. Its hooks, if not nil, may refuse or hold
// a call back.
type control struct {
	key   *seal.Key
	lease time.Duration

	onAccept func(sandbox.Assignment) error
	onReport func(sandbox.Assignment) error
	onBeat   func() error

	mu      sync.Mutex
	epoch   int64
	joins   int
	node    sandbox.Node // as it joined last
	beats   int
	dumb    bool // out of reach
	forget  []string
	told    map[sandbox.Assignment]*told
	changed chan struct{}
}

func newControl(t testing.TB) *control {
	key, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return &control{key: key, lease: 30 * time.Second, told: map[sandbox.Assignment]*told{}, changed: make(chan struct{})}
}

// change changes the state and wakes await.
func (c *control) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// of is for c.mu's holder.
func (c *control) of(a sandbox.Assignment) *told {
	if c.told[a] == nil {
		c.told[a] = &told{}
	}
	return c.told[a]
}

func (c *control) reachable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dumb {
		return nodewire.StatusOf(fault.New(fault.Unavailable, "out of reach"))
	}
	return nil
}

func (c *control) setDumb(dumb bool) { c.change(func() { c.dumb = dumb }) }

func (c *control) Join(_ context.Context, req *nodev1.JoinRequest, _ ...grpc.CallOption) (*nodev1.JoinResponse, error) {
	if err := c.reachable(); err != nil {
		return nil, err
	}
	n, err := nodewire.DecodeNode(req.GetNode())
	if err != nil || n.ID != nodeID {
		return nil, nodewire.StatusOf(fault.New(fault.InvalidArgument, "what node is that: %v", err))
	}
	c.change(func() { c.epoch++; c.joins++; c.node = n })
	return &nodev1.JoinResponse{Epoch: c.epoch, LeaseMs: c.lease.Milliseconds(), Keys: [][]byte{c.key.Public()}}, nil
}

func (c *control) Heartbeat(_ context.Context, req *nodev1.HeartbeatRequest, _ ...grpc.CallOption) (*nodev1.HeartbeatResponse, error) {
	if err := c.reachable(); err != nil {
		return nil, err
	}
	if c.onBeat != nil {
		if err := c.onBeat(); err != nil {
			return nil, nodewire.StatusOf(err)
		}
	}
	resp := &nodev1.HeartbeatResponse{LeaseMs: c.lease.Milliseconds()}
	var err error
	c.change(func() {
		c.beats++
		if req.GetEpoch() != c.epoch {
			err = nodewire.StatusOf(fault.New(fault.Conflict, "fenced"))
		}
		for _, id := range req.GetLive() {
			if slices.Contains(c.forget, id) {
				resp.Forget = append(resp.Forget, id)
			}
		}
	})
	return resp, err
}

func (c *control) Accept(_ context.Context, req *nodev1.AcceptRequest, _ ...grpc.CallOption) (*nodev1.AcceptResponse, error) {
	if err := c.reachable(); err != nil {
		return nil, err
	}
	a, err := nodewire.DecodeAssignment(req.GetAssignment())
	if err == nil && c.onAccept != nil {
		err = c.onAccept(a)
	}
	if err != nil {
		return nil, nodewire.StatusOf(err)
	}
	c.change(func() { c.of(a).accepted = true })
	return &nodev1.AcceptResponse{}, nil
}

func (c *control) Report(_ context.Context, req *nodev1.ReportRequest, _ ...grpc.CallOption) (*nodev1.ReportResponse, error) {
	if err := c.reachable(); err != nil {
		return nil, err
	}
	a, err := nodewire.DecodeAssignment(req.GetAssignment())
	if err == nil && c.onReport != nil {
		err = c.onReport(a)
	}
	if err == nil {
		err = c.report(a, req)
	}
	return &nodev1.ReportResponse{}, nodewire.StatusOf(err)
}

// report goes by the table of states, as the ledger does.
func (c *control) report(a sandbox.Assignment, req *nodev1.ReportRequest) (err error) {
	var p sandbox.Progress
	var end *sandbox.End
	if len(req.GetEnd()) > 0 {
		e, derr := nodewire.DecodeEnd(req.GetEnd())
		end, p, err = &e, e.Progress, derr
	} else {
		p, err = nodewire.DecodeProgress(req.GetProgress())
	}
	if err != nil {
		return err
	}
	c.change(func() {
		t := c.of(a)
		if t.end != nil {
			if end == nil {
				err = fault.New(fault.Conflict, "it has ended")
			} else {
				t.ends++
			}
			return
		}
		if end == nil && !t.accepted {
			err = fault.New(fault.Conflict, "it was not accepted")
			return
		}
		if p.State != "" {
			t.states = append(t.states, p.State)
		}
		if p.State == sandbox.Running {
			t.started = p.At
		}
		t.facts = p
		if end != nil {
			t.end, t.ends = end, t.ends+1
		}
	})
	return err
}

// await waits until ok holds of what was told of a.
func (c *control) await(t testing.TB, a sandbox.Assignment, what string, ok func(told) bool) told {
	t.Helper()
	deadline := time.After(patient)
	for {
		c.mu.Lock()
		now, changed := *c.of(a), c.changed
		c.mu.Unlock()
		if ok(now) {
			return now
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: %s in %v: %+v", a.Sandbox, what, patient, now)
		}
	}
}

func (c *control) awaitEnd(t testing.TB, a sandbox.Assignment) told {
	t.Helper()
	return c.await(t, a, "no end", func(s told) bool { return s.end != nil })
}

func (c *control) awaitState(t testing.TB, a sandbox.Assignment, s sandbox.State) {
	t.Helper()
	c.await(t, a, "not "+string(s), func(x told) bool { return slices.Contains(x.states, s) })
}
