package lachesis_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/moirai/lachesis"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func node(id string, edit func(*sandbox.Node)) sandbox.Node {
	n := sandbox.Node{
		ID: id, Epoch: 1, SeenAt: now,
		Capacity:  sandbox.Capacity{VCPUs: 8, MemoryMiB: 4096, DiskMiB: 8192},
		Labels:    map[string]string{"zone": "a"},
		Isolation: sandbox.Isolation{Accelerator: "tcg", Confinement: []string{"seccomp"}},
	}
	if edit != nil {
		edit(&n)
	}
	return n
}

func want(edit func(*sandbox.Resolved)) sandbox.Resolved {
	r := sandbox.Resolved{Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 256, Processes: 64}}
	if edit != nil {
		edit(&r)
	}
	return r
}

func rank(r sandbox.Resolved, nodes ...sandbox.Node) lachesis.Ranking {
	return lachesis.Rank(r, lachesis.View{Nodes: nodes, Now: now, Fresh: 10 * time.Second})
}

func TestEachReason(t *testing.T) {
	for _, tc := range []struct {
		kind lachesis.Kind
		want func(*sandbox.Resolved)
		node func(*sandbox.Node)
	}{
		{lachesis.Labels, func(r *sandbox.Resolved) { r.NodeSelector = map[string]string{"zone": "b"} }, nil},
		{lachesis.Labels, func(r *sandbox.Resolved) { r.NodeSelector = map[string]string{"gpu": ""} }, func(n *sandbox.Node) { n.Labels["gpu"] = "no" }},
		{lachesis.Isolation, func(r *sandbox.Resolved) { r.Isolation.Accelerator = "kvm" }, nil},
		{lachesis.Isolation, func(r *sandbox.Resolved) { r.Isolation.Confinement = []string{"jailer"} }, nil},
		{lachesis.Network, func(r *sandbox.Resolved) { r.Network.Allow = []sandbox.Grant{{CIDR: "198.51.100.0/24"}} }, nil},
		{lachesis.Size, func(r *sandbox.Resolved) { r.Resources.MemoryMiB = 4096 }, nil}, // overhead counts
		{lachesis.Stale, nil, func(n *sandbox.Node) { n.SeenAt = now.Add(-time.Minute) }},
		{lachesis.Draining, nil, func(n *sandbox.Node) { n.Draining = true }},
		{lachesis.CPU, nil, func(n *sandbox.Node) { n.InUse.VCPUs = 8 }},
		{lachesis.Memory, nil, func(n *sandbox.Node) { n.InUse.MemoryMiB = 4000 }},
		{lachesis.Disk, nil, func(n *sandbox.Node) { n.InUse.DiskMiB = 8000 }},
	} {
		got := rank(want(tc.want), node("n1", tc.node))
		if len(got.Candidates) != 0 || len(got.LeftOut) != 1 || got.LeftOut[0].Kind != tc.kind || got.LeftOut[0].Reason == "" {
			t.Errorf("%s: got %+v", tc.kind, got)
		}
		if busy := tc.kind == lachesis.CPU || tc.kind == lachesis.Memory || tc.kind == lachesis.Disk; got.Busy() != busy {
			t.Errorf("%s: Busy is %v", tc.kind, got.Busy())
		}
	}
	avoid := lachesis.View{Nodes: []sandbox.Node{node("n1", nil)}, Now: now, Fresh: time.Minute, Avoid: map[string]bool{"n1": true}}
	if got := lachesis.Rank(want(nil), avoid); len(got.LeftOut) != 1 || got.LeftOut[0].Kind != lachesis.Refused || got.Busy() {
		t.Errorf("a node that refused: %+v", got)
	}
	if got := rank(want(nil), node("n1", nil)); len(got.Candidates) != 1 || len(got.LeftOut) != 0 {
		t.Errorf("a node that fits was left out: %+v", got)
	}
}

func TestLeastLoadedFirst(t *testing.T) {
	got := rank(want(nil),
		node("c", func(n *sandbox.Node) { n.InUse.MemoryMiB = 1000 }),
		node("b", nil),
		node("a", nil),
		node("d", func(n *sandbox.Node) { n.InUse.VCPUs = 1 }))
	var order []string
	for _, n := range got.Candidates {
		order = append(order, n.ID)
	}
	if diff := cmp.Diff([]string{"a", "b", "d", "c"}, order); diff != "" {
		t.Error(diff)
	}
}

func TestSummaryNamesNoNode(t *testing.T) {
	got := rank(want(nil),
		node("secret-1", func(n *sandbox.Node) { n.InUse.MemoryMiB = 4096 }),
		node("secret-2", func(n *sandbox.Node) { n.InUse.MemoryMiB = 4096 }),
		node("secret-3", func(n *sandbox.Node) { n.Draining = true })).Summary()
	if diff := cmp.Diff([]string{"draining: 1", "memory: 2"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"no nodes"}, rank(want(nil)).Summary()); diff != "" {
		t.Error(diff)
	}
}

// Every node is either a candidate or left out with a reason, and a candidate
// has the room.
func TestEveryNodeIsAccountedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []sandbox.Node
		for i := range rapid.IntRange(0, 20).Draw(t, "nodes") {
			nodes = append(nodes, node(string(rune('a'+i)), func(n *sandbox.Node) {
				n.InUse = sandbox.Capacity{
					VCPUs:     rapid.IntRange(0, 9).Draw(t, "cpu"),
					MemoryMiB: rapid.Int64Range(0, 4200).Draw(t, "mem"),
					DiskMiB:   rapid.Int64Range(0, 8200).Draw(t, "disk"),
				}
			}))
		}
		w := want(func(r *sandbox.Resolved) {
			r.Resources.VCPUs = rapid.IntRange(1, 9).Draw(t, "wcpu")
			r.Resources.MemoryMiB = rapid.Int64Range(1, 4200).Draw(t, "wmem")
		})
		got := rank(w, nodes...)
		if len(got.Candidates)+len(got.LeftOut) != len(nodes) {
			t.Fatalf("%d nodes, %d candidates, %d left out", len(nodes), len(got.Candidates), len(got.LeftOut))
		}
		for _, most := range []int{1, 3, 30} {
			few := lachesis.Rank(w, lachesis.View{Nodes: nodes, Now: now, Fresh: 10 * time.Second, Most: most})
			if diff := cmp.Diff(got.Candidates[:min(most, len(got.Candidates))], few.Candidates); diff != "" || len(few.LeftOut) != len(got.LeftOut) {
				t.Fatalf("the best %d are not the first of all: %s", most, diff)
			}
		}
		need := w.Resources.Demand()
		for _, n := range got.Candidates {
			if n.InUse.VCPUs+need.VCPUs > n.Capacity.VCPUs || n.InUse.MemoryMiB+need.MemoryMiB > n.Capacity.MemoryMiB {
				t.Fatalf("%+v has no room for %+v", n, need)
			}
		}
	})
}
