// Package lachesis is the filter and score of the scheduler: which nodes may
// take a sandbox, and which are better.
//
// It is a pure function of what it is given. A node that is left out has a
// reason; operators see it with the node's name, tenants by kind and count.
package lachesis

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Kind is why a node is left out, as tenants see it.
type Kind string

// The kinds, in the order they are looked for: what a node can never give
// comes before what it cannot give now.
const (
	Labels    Kind = "labels"
	Isolation Kind = "isolation"
	Network   Kind = "network"
	Size      Kind = "size" // larger than the whole node
	Stale     Kind = "no heartbeat"
	Draining  Kind = "draining"
	Refused   Kind = "refused" // by the node itself, a moment ago
	CPU       Kind = "cpu"
	Memory    Kind = "memory"
	Disk      Kind = "disk"
)

// Ranking is the decision.
type Ranking struct {
	Candidates []sandbox.Node // best first
	LeftOut    []LeftOut      // in the order of the nodes given
}

// LeftOut is a node that may not take it, and why.
type LeftOut struct {
	Node   string
	Kind   Kind
	Reason string
}

// View is what a decision is made from.
type View struct {
	Nodes []sandbox.Node
	Now   time.Time
	Fresh time.Duration // a node that was not heard of for longer is left out
	Avoid map[string]bool
	Most  int // so many candidates are enough; 0: all
}

// Rank decides where a request may go. Candidates are ordered from the least
// to the most loaded after placing it there, equals by ID.
func Rank(want sandbox.Resolved, v View) Ranking {
	var r Ranking
	var fit []fitting
	need := want.Resources.Demand()
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if kind, reason := reject(&want, n, &v); kind != "" {
			r.LeftOut = append(r.LeftOut, LeftOut{Node: n.ID, Kind: kind, Reason: reason})
			continue
		}
		fit = better(fit, fitting{n, load(need, n)}, v.Most)
	}
	if v.Most <= 0 {
		slices.SortFunc(fit, fitting.compare)
	}
	for _, f := range fit {
		r.Candidates = append(r.Candidates, *f.node)
	}
	return r
}

// fitting is a node that may take the request, and how full it would be then.
type fitting struct {
	node *sandbox.Node
	load float64
}

func (f fitting) compare(g fitting) int {
	return cmp.Or(cmp.Compare(f.load, g.load), strings.Compare(f.node.ID, g.node.ID))
}

// better adds f to the best so far: all of them in any order, or the first most
// in order.
func better(best []fitting, f fitting, most int) []fitting {
	if most <= 0 {
		return append(best, f)
	}
	if len(best) == most {
		if f.compare(best[most-1]) >= 0 {
			return best
		}
		best = best[:most-1]
	}
	i, _ := slices.BinarySearchFunc(best, f, fitting.compare)
	return slices.Insert(best, i, f)
}

func reject(want *sandbox.Resolved, n *sandbox.Node, v *View) (Kind, string) {
	for k, val := range want.NodeSelector {
		if have, ok := n.Labels[k]; !ok || have != val {
			return Labels, fmt.Sprintf("label %s is %q, wanted %q", k, have, val)
		}
	}
	if k, why := belowFloor(&want.Isolation, &n.Isolation); k {
		return Isolation, why
	}
	if !want.Network.Empty() && !n.Network {
		return Network, "the node cannot give a sandbox a network card"
	}
	need := want.Resources.Demand()
	if need.VCPUs > n.Capacity.VCPUs || need.MemoryMiB > n.Capacity.MemoryMiB || need.DiskMiB > n.Capacity.DiskMiB {
		return Size, fmt.Sprintf("needs %d vCPUs, %d MiB memory, %d MiB disk; the whole node has %d, %d, %d",
			need.VCPUs, need.MemoryMiB, need.DiskMiB, n.Capacity.VCPUs, n.Capacity.MemoryMiB, n.Capacity.DiskMiB)
	}
	if age := v.Now.Sub(n.SeenAt); age > v.Fresh {
		return Stale, fmt.Sprintf("last heard of %v ago", age.Round(time.Millisecond))
	}
	if n.Draining {
		return Draining, "takes nothing new"
	}
	if v.Avoid[n.ID] {
		return Refused, "refused it a moment ago"
	}
	return full(need, n)
}

func full(need sandbox.Capacity, n *sandbox.Node) (Kind, string) {
	for _, d := range []struct {
		kind             Kind
		need, used, have int64
		unit             string
	}{
		{CPU, int64(need.VCPUs), int64(n.InUse.VCPUs), int64(n.Capacity.VCPUs), "vCPUs"},
		{Memory, need.MemoryMiB, n.InUse.MemoryMiB, n.Capacity.MemoryMiB, "MiB"},
		{Disk, need.DiskMiB, n.InUse.DiskMiB, n.Capacity.DiskMiB, "MiB"},
	} {
		if d.used+d.need > d.have {
			return d.kind, fmt.Sprintf("needs %d %s; %d of %d are in use", d.need, d.unit, d.used, d.have)
		}
	}
	return "", ""
}

func belowFloor(floor *sandbox.IsolationFloor, have *sandbox.Isolation) (bool, string) {
	if floor.Accelerator != "" && floor.Accelerator != have.Accelerator {
		return true, fmt.Sprintf("accelerator is %q, the policy insists on %q", have.Accelerator, floor.Accelerator)
	}
	for _, layer := range floor.Confinement {
		if !slices.Contains(have.Confinement, layer) {
			return true, fmt.Sprintf("confinement lacks %q", layer)
		}
	}
	return false, ""
}

// load is how full the fullest resource of n would be, 0 to 1.
func load(need sandbox.Capacity, n *sandbox.Node) float64 {
	return max(
		frac(int64(n.InUse.VCPUs+need.VCPUs), int64(n.Capacity.VCPUs)),
		frac(n.InUse.MemoryMiB+need.MemoryMiB, n.Capacity.MemoryMiB),
		frac(n.InUse.DiskMiB+need.DiskMiB, n.Capacity.DiskMiB))
}

func frac(a, b int64) float64 {
	if b <= 0 {
		return 1
	}
	return float64(a) / float64(b)
}

// Busy reports whether some node that was left out only has no room at the
// moment: it would take the request once enough of what runs there has ended.
func (r Ranking) Busy() bool {
	return slices.ContainsFunc(r.LeftOut, func(l LeftOut) bool {
		return l.Kind == CPU || l.Kind == Memory || l.Kind == Disk
	})
}

// Summary tells why no node took it, by kind and count: no node names, so
// that a tenant may read it.
func (r Ranking) Summary() []string {
	counts := map[Kind]int{}
	var kinds []Kind
	for _, l := range r.LeftOut {
		if counts[l.Kind] == 0 {
			kinds = append(kinds, l.Kind)
		}
		counts[l.Kind]++
	}
	slices.Sort(kinds)
	out := make([]string, 0, len(kinds))
	for _, k := range kinds {
		out = append(out, fmt.Sprintf("%s: %d", k, counts[k]))
	}
	if len(out) == 0 && len(r.Candidates) == 0 {
		out = append(out, "no nodes")
	}
	return out
}
