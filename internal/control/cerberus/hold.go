package cerberus

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// holdPoll is how often a token that holds a stream open is looked up again,
// for those who revoke it elsewhere.
const holdPoll = 500 * time.Millisecond

// holding is a token that holds streams open.
type holding struct {
	users int             // guarded by Guard.mu
	good  context.Context // ends when the token does
	stop  context.CancelFunc
	done  chan struct{} // closed when its watch has returned
}

// Hold returns ctx, ended early when the token of an Authorization header that
// Authenticate took expires or is revoked: at once if it is revoked here,
// within a second elsewhere. Its cause is then of kind Unauthenticated. A ledger
// that cannot answer ends nothing. The caller calls release.
func (g *Guard) Hold(ctx context.Context, header string) (held context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := fault.New(fault.Unauthenticated, "the token has expired or was revoked").
		WithHint("Have a new one made with `tartarus token create`.")
	token, ok := parseHeader(header)
	if !ok {
		cancel(over)
		return ctx, func() {}
	}
	hash, now := sha256.Sum256([]byte(token)), g.clock()
	// It may be long since the call was let in.
	if t, err := g.find(ctx, hash, now); fault.Is(err, fault.NotFound) || err == nil && !holds(t, now) {
		cancel(over)
		return ctx, func() {}
	}
	h := g.join(hash)
	unhook := context.AfterFunc(h.good, func() { cancel(over) })
	return ctx, func() {
		unhook()
		cancel(nil)
		g.part(hash, h)
	}
}

// join is one more user of a holding, which is made for the first.
func (g *Guard) join(hash [32]byte) *holding {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.held[hash]
	if h == nil || h.good.Err() != nil {
		good, end := context.WithCancel(context.Background())
		watching, stop := context.WithCancel(context.Background())
		h = &holding{good: good, stop: stop, done: make(chan struct{})}
		g.held[hash] = h
		go func() {
			defer close(h.done)
			if g.watch(watching, hash) {
				end()
			}
		}()
	}
	h.users++
	return h
}

// part is one user less; the last one ends the watch.
func (g *Guard) part(hash [32]byte, h *holding) {
	g.mu.Lock()
	h.users--
	last := h.users == 0
	if last && g.held[hash] == h {
		delete(g.held, hash)
	}
	g.mu.Unlock()
	if last {
		h.stop()
		<-h.done
	}
}

// watch looks a token up again and again; true: it is no good any more, false:
// ctx has ended.
func (g *Guard) watch(ctx context.Context, hash [32]byte) bool {
	for {
		g.mu.Lock()
		revoked := g.revoked
		g.mu.Unlock()
		wait := holdPoll
		t, err := g.tokens.TokenByHash(ctx, hash)
		now := g.clock()
		switch {
		case ctx.Err() != nil:
			return false
		case fault.Is(err, fault.NotFound), err == nil && !holds(t, now):
			return true
		case err == nil && !t.ExpiresAt.IsZero():
			wait = min(wait, t.ExpiresAt.Sub(now))
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-revoked:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}
