package styx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
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
		lock, err := tryLock(n.lock)
		if err != nil {
			return fmt.Errorf("waiting for the network's lock: %w", err)
		}
		if lock != nil {
			err := f()
			if b, _ := n.host.bridge(); b == nil { // the lock is for what is no more
				err = errors.Join(err, n.dropLock())
			}
			return errors.Join(err, lock.Close()) // which gives it back
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryLock makes and locks a file; nil if another process has it. The file goes
// with the network (dropLock), so one that is locked may be there no more.
func tryLock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // its folder went just now
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && current(f, path) {
		return f, nil
	}
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
		return nil, errors.Join(err, f.Close())
	}
	return nil, f.Close()
}

// current reports whether f still is the file of that path.
func current(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

// dropLock removes the lock's file, and its folder if that was for it alone.
// Only who has the lock may.
func (n *Network) dropLock() error {
	if err := os.Remove(n.lock); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the network's lock: %w", err)
	}
	if n.lock == DefaultLock {
		_ = os.Remove(filepath.Dir(n.lock)) // others may have files there
	}
	return nil
}
