package ledger

import (
	"context"
	"sync"
)

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
