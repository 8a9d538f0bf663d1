// Package hostlock is the lock files by which the processes of a host take
// turns, or own what there is only once.
//
// The kernel gives a lock back when its process ends, however that happens. A
// file may go with its lock, so that nothing is left on the host; whoever locks
// one that is there no more has nothing.
package hostlock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is where root's processes have their locks. It goes with the last file.
const Dir = "/run/tartarus"

// Lock is a file that this process has locked.
type Lock struct {
	f    *os.File
	path string
}

// Try makes and locks a file; nil without an error if another process has it,
// or is just letting go of it.
func Try(path string) (*Lock, error) {
	f, err := try(path)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if f == nil {
		return nil, nil
	}
	return &Lock{f, path}, nil
}

func try(path string) (*os.File, error) {
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

// Close gives the lock back and leaves its file.
func (l *Lock) Close() error { return l.f.Close() }

// Drop gives the lock back and removes its file, and Dir if that was the last
// one in it.
func (l *Lock) Drop() error {
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if dir := filepath.Dir(l.path); dir == Dir {
		_ = os.Remove(dir) // others may have files there
	}
	return errors.Join(err, l.f.Close())
}
