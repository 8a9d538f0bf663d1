package cli

import (
	"context"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/client"
)

// killGrace is what Ctrl-C gives the command to end by itself.
const killGrace = 5 * time.Second

// killer turns interrupts into the end of a sandbox: the first asks it to end,
// the second ends it at once, the third gives up on waiting. One that comes
// before the server has answered counts as soon as it has.
type killer struct {
	ctx    context.Context         // of the calls
	giveUp context.CancelCauseFunc // of everything that waits for the sandbox
	c      *client.Client
	fail   func(error) // told of a kill that did not work

	mu    sync.Mutex
	id    string // "" until the sandbox is known
	heard int    // interrupts so far
	calls sync.WaitGroup
}

// interrupt is what a signal does.
func (k *killer) interrupt(s interrupted) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.heard++
	switch {
	case k.heard == 1 && k.id == "": // born will see it
	case k.heard == 1:
		k.kill(killGrace)
	case k.heard == 2 && k.id != "":
		k.kill(0)
	default:
		k.giveUp(s)
	}
}

// born says which sandbox it is about.
func (k *killer) born(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.id = id
	if k.heard > 0 {
		k.kill(killGrace)
	}
}

// now ends the sandbox at once.
func (k *killer) now() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kill(0)
}

// kill has mu held. The call goes on by itself, so that the next interrupt is
// heard while a server does not answer.
func (k *killer) kill(grace time.Duration) {
	id := k.id
	k.calls.Go(func() {
		if _, err := k.c.Kill(k.ctx, id, grace); err != nil && k.ctx.Err() == nil {
			k.fail(err)
		}
	})
}
