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

	wish chan struct{} // holds a value when somebody decided by what was not fresh

	mu    sync.Mutex
	seen  []sandbox.Node // guarded by mu; ours, but for what its fields point to
	at    map[string]int // guarded by mu; in seen, by ID
	fresh time.Time      // guarded by mu; from then on a new look is wished for
	until time.Time      // guarded by mu; from then on nobody decides by seen
}

// Looking at all nodes takes no more than a tenth of the time, and nobody
// decides by what is older than oldestSight.
const (
	leastSight   = 20 * time.Millisecond
	oldestSight  = 250 * time.Millisecond
	sightPerLook = 10
)

// run looks beside those who decide, when they wish for it, so that they need
// not wait for thousands of nodes to be read.
func (s *sight) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wish:
		}
		l, err := s.look(ctx)
		s.mu.Lock()
		if err == nil {
			s.take(l)
		} else {
			s.until = time.Time{} // whoever decides next is told
		}
		s.mu.Unlock()
	}
}

// firstChoices is how many candidates one decision names: each but the first
// is for when the one before it turns out to have no room.
const firstChoices = 8

// rank decides by what was seen a moment ago, or by a look of now where that is
// asked for or needed; looked says that it was. It counts the request as placed
// on the first candidate; placed tells what became of that.
func (s *sight) rank(ctx context.Context, want sandbox.Resolved, avoid map[string]bool, now bool) (r lachesis.Ranking, looked bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.clock()
	if looked = now || !at.Before(s.until); looked {
		l, err := s.look(ctx)
		if err != nil {
			return r, looked, err
		}
		s.take(l)
	} else if !at.Before(s.fresh) {
		select {
		case s.wish <- struct{}{}:
		default: // it is wished for
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

// looked is what one look saw.
type looked struct {
	nodes []sandbox.Node
	at    map[string]int
	began time.Time // by the clock
	took  time.Duration
}

// look reads all nodes.
func (s *sight) look(ctx context.Context) (looked, error) {
	l, began := looked{began: s.clock()}, time.Now()
	var err error
	if l.nodes, err = s.nodes.Nodes(ctx); err != nil {
		return l, err
	}
	l.at = make(map[string]int, len(l.nodes))
	for i := range l.nodes {
		l.at[l.nodes[i].ID] = i
	}
	l.took = time.Since(began)
	return l, nil
}

// take decides by l from now on.
func (s *sight) take(l looked) {
	s.seen, s.at = l.nodes, l.at
	s.fresh = l.began.Add(min(oldestSight/2, max(leastSight, sightPerLook*l.took)))
	s.until = l.began.Add(oldestSight)
}
