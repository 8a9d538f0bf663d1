package hecatoncheir

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/styx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// network is a network without devices.
type network struct {
	mu       sync.Mutex
	err      error // of Attach
	attached []string
	detached []string
	wanted   []styx.Want
	files    map[string]*os.File
}

func (n *network) Attach(_ context.Context, w styx.Want) (*styx.Card, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil, n.err
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	n.wanted = append(n.wanted, w)
	name := "port" + string(rune('a'+len(n.wanted)))
	n.attached = append(n.attached, name)
	if n.files == nil {
		n.files = map[string]*os.File{}
	}
	n.files[name] = f
	return &styx.Card{
		Name: name, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}, Address: netip.MustParsePrefix("172.16.0.9/16"),
		Gateway: netip.MustParseAddr("172.16.0.1"), TAP: f,
	}, nil
}

func (n *network) Detach(_ context.Context, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.detached = append(n.detached, name)
	n.attached = slices.DeleteFunc(n.attached, func(a string) bool { return a == name })
	return nil
}

func (n *network) Traffic(string) (rx, tx uint64, err error) { return 11, 22, nil }

// nothingLeft fails when a card is attached or its descriptor open.
func (n *network) nothingLeft(t testing.TB) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.attached {
		t.Errorf("still attached: %s", a)
	}
	for name, f := range n.files {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the device of %s is still open", name)
		}
	}
}

// withGrants is a request with a contract.
func withGrants(r *sandbox.Resolved) {
	r.Network.Allow = []sandbox.Grant{{CIDR: "198.51.100.10/32", Protocol: "tcp", Ports: []int{80}}}
}

// seen collects what guests are told.
type seen struct {
	mu  sync.Mutex
	all []*guestwire.Network
}

// spied wraps the guest's side to see the setup.
type spied struct {
	Guest
	seen *seen
}

func (g spied) Setup(ctx context.Context, s guestwire.Setup) error {
	g.seen.mu.Lock()
	g.seen.all = append(g.seen.all, s.Network)
	g.seen.mu.Unlock()
	return g.Guest.Setup(ctx, s)
}

// TestCards: a sandbox with a contract gets a card with that contract, its
// guest the address, its record the traffic; one without gets none.
func TestCards(t *testing.T) {
	var saw seen
	w := newWorld(t, options{config: func(c *Config) { c.UIDs = UIDRange{First: 5001, Count: 10} }})
	dial := w.a.cfg.Connect
	w.a.cfg.Connect = func(ctx context.Context, vm tartarus.VM, log *slog.Logger) (Guest, error) {
		g, err := dial(ctx, vm, log)
		return spied{g, &saw}, err
	}
	if !w.c.node.Network {
		t.Error("the node does not say that it has a network")
	}
	as := w.assign(job{command: []string{"exit", "0"}, change: withGrants})
	e := w.c.awaitEnd(t, as).end.Exit
	if e.Cause != sandbox.Exited || e.Usage.NetworkRxBytes != 11 || e.Usage.NetworkTxBytes != 22 {
		t.Errorf("exit %+v", e)
	}
	w.nothingLeft()
	if n := w.network; len(n.wanted) != 1 || len(n.wanted[0].Contract.Allow) != 1 || n.wanted[0].UID != 5001 || n.wanted[0].Inside {
		t.Errorf("attached %+v", n.wanted)
	}
	want := guestwire.Network{MAC: [6]byte{2, 0, 0, 0, 0, 9}, Address: [4]byte{172, 16, 0, 9}, Bits: 16, Gateway: [4]byte{172, 16, 0, 1}}
	if len(saw.all) != 1 || saw.all[0] == nil || *saw.all[0] != want {
		t.Errorf("the guest was told %+v", saw.all)
	}
	e = w.c.awaitEnd(t, w.assign(job{command: []string{"exit", "0"}})).end.Exit
	if e.Usage.NetworkRxBytes != 0 || len(w.network.wanted) != 1 || saw.all[1] != nil {
		t.Errorf("a sandbox without a contract: %+v, %+v, told %+v", e.Usage, w.network.wanted, saw.all[1])
	}
}

// TestNoNetworkNoCard: a node without a network refuses contracts, and says so
// when it joins.
func TestNoNetworkNoCard(t *testing.T) {
	w := newWorld(t, options{config: func(c *Config) { c.Network = nil }})
	if w.c.node.Network {
		t.Error("the node says that it has a network")
	}
	req, _ := w.request(job{command: []string{"true"}, change: withGrants})
	w.refused(req, fault.Unsupported)
	w.nothingLeft()
}

// TestACardThatCannotBeMade is a start that failed.
func TestACardThatCannotBeMade(t *testing.T) {
	w := newWorld(t, options{})
	w.network.err = fault.New(fault.Unavailable, "no address is free")
	e := w.c.awaitEnd(t, w.assign(job{command: []string{"true"}, change: withGrants})).end.Exit
	if e.Cause != sandbox.StartFailed {
		t.Errorf("exit %+v", e)
	}
	w.nothingLeft()
}

// TestACardThatWasLeftIsDetached by the agent that follows.
func TestACardThatWasLeftIsDetached(t *testing.T) {
	w := newWorld(t, options{})
	w.stop()
	w.leave(journal.Entry{
		Assignment: sandbox.Assignment{Sandbox: "sb-01jdzzzzzzzzzzzzzzzzzzzzzz", Attempt: 1, Node: nodeID, Epoch: 1},
		Expires:    time.Now().Add(time.Hour), AssignedAt: time.Now(), Card: "portz",
	}, false)
	w.start(nil)
	w.awaitEmptyJournal()
	if !slices.Equal(w.network.detached, []string{"portz"}) {
		t.Errorf("detached %v", w.network.detached)
	}
	w.nothingLeft()
}
