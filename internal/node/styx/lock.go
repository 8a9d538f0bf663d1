package styx

import (
	"context"
	"fmt"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/hostlock"
)

// lockPause is how long to wait before asking for the lock again.
const lockPause = 2 * time.Millisecond

// alone calls f while no other goroutine or process changes the network.
func (n *Network) alone(ctx context.Context, f func() error) error {
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		lock, err := hostlock.Try(n.lock)
		if err != nil {
			return fmt.Errorf("waiting for the network's lock: %w", err)
		}
		if lock != nil {
			return n.with(lock, f)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// with calls f and gives the lock back. Its file is for what is there.
func (n *Network) with(lock *hostlock.Lock, f func() error) error {
	err := f()
	give := lock.Close
	if b, _ := n.host.bridge(); b == nil {
		give = lock.Drop
	}
	if gerr := give(); gerr != nil && err == nil {
		err = fmt.Errorf("giving the network's lock back: %w", gerr)
	}
	return err
}
