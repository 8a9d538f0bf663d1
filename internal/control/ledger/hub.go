package ledger

import (
	"context"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Observer is told what this process does to a ledger, by the back ends that
// are made with one: after it is durable, and before whoever asked is answered.
// Its methods must neither block nor take steps.
type Observer interface {
	// Changed: one step wrote these events of a sandbox, which is now rec.
	Changed(rec sandbox.Record, events []sandbox.Event)

	// Committed: so many steps were made durable together, or with an error
	// none of them was.
	Committed(steps int, took time.Duration, err error)
}

// Hub tells the watchers of one process of changes; back ends use it for
// Watch. The zero value is ready.
type Hub struct {
	mu   sync.Mutex
	subs map[chan struct{}]struct{} // guarded by mu; each has room for one value
}

// Watch returns a channel as Book.Watch promises it.
func (h *Hub) Watch(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	h.mu.Lock()
	if h.subs == nil {
		h.subs = map[chan struct{}]struct{}{}
	}
	h.subs[c] = struct{}{}
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs, c)
		close(c)
	})
	return c
}

// Notify tells every watcher that something changed. It never blocks.
func (h *Hub) Notify() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.subs {
		select {
		case c <- struct{}{}:
		default: // it has not received the last one yet, and that covers this
		}
	}
}
