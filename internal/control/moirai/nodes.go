package moirai

import (
	"context"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/moirai/lachesis"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// sight is the nodes as they were seen a moment ago, and what was placed on
// them since. It saves reading all nodes for each request, and keeps workers
// that decide at the same time from all choosing the same node.
//
// It may be wrong, which costs a try and nothing else: the ledger binds by what
// it holds itself, and a request finds no place only by a look of now.
type sight struct {
	nodes Nodes
	clock func() time.Time

	mu    sync.Mutex
	seen  []sandbox.Node // guarded by mu; ours, but for what its fields point to
	at    map[string]int // guarded by mu; in seen, by ID
	fresh time.Time      // guarded by mu; until then seen is good enough
}

// Looking at all nodes takes no more than a tenth of the time, and what is seen
// is never older than oldestSight.
const (
	leastSight   = 20 * time.Millisecond
	oldestSight  = 250 * time.Millisecond
	sightPerLook = 10
)

// firstChoices is how many candidates one decision names: each but the first
// is for when the one before it turns out to have no room.
const firstChoices = 8

// rank decides by what was seen a moment ago, or by a look of now where that is
// asked for or due; looked says that it was. It counts the request as placed on
// the first candidate; placed tells what became of that.
func (s *sight) rank(ctx context.Context, want sandbox.Resolved, avoid map[string]bool, now bool) (r lachesis.Ranking, looked bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if looked = now || !s.clock().Before(s.fresh); looked {
		if err := s.look(ctx); err != nil {
			return r, looked, err
		}
	}
	r = lachesis.Rank(want, lachesis.View{Nodes: s.seen, Now: s.clock(), Fresh: s.nodes.Fresh(), Avoid: avoid, Most: firstChoices})
	if len(r.Candidates) > 0 {
		s.add(r.Candidates[0].ID, want.Resources.Demand(), 1)
	}
	return r, looked, nil
}

// placed tells where a request went that rank had counted on another node; ""
// for nowhere.
func (s *sight) placed(counted, node string, need sandbox.Capacity) {
	if counted == node {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(counted, need, -1)
	s.add(node, need, 1)
}

func (s *sight) add(node string, need sandbox.Capacity, times int) {
	i, ok := s.at[node]
	if !ok {
		return
	}
	u := &s.seen[i].InUse
	u.VCPUs += times * need.VCPUs
	u.MemoryMiB += int64(times) * need.MemoryMiB
	u.DiskMiB += int64(times) * need.DiskMiB
}

// look reads all nodes.
func (s *sight) look(ctx context.Context) error {
	began := time.Now()
	nodes, err := s.nodes.Nodes(ctx)
	if err != nil {
		return err
	}
	s.seen, s.at = nodes, make(map[string]int, len(nodes))
	for i := range nodes {
		s.at[nodes[i].ID] = i
	}
	s.fresh = s.clock().Add(min(oldestSight, max(leastSight, sightPerLook*time.Since(began))))
	return nil
}
