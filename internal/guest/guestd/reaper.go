package guestd

import (
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper waits for children, in goroutines of its own because that blocks, and
// hands what it found to the loop through an eventfd.
type reaper struct {
	wake int
	all  bool
	work sync.WaitGroup
	kick chan struct{} // there may be children again

	mu     sync.Mutex
	found  []waited
	closed bool // the eventfd is gone
}

type waited struct {
	pid    int
	status syscall.WaitStatus
}

func (r *reaper) start(wake int, all bool) {
	r.wake, r.all = wake, all
	r.kick = make(chan struct{}, 1)
	if all {
		r.work.Go(r.reapAll)
	}
}

// started says that there is a new child.
func (r *reaper) started(pid int) {
	if !r.all {
		r.work.Go(func() { _ = r.wait(pid) }) // it can only be reaped already, by a failed exec
		return
	}
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// reapAll waits for whatever child ends, orphans that fell to us included.
func (r *reaper) reapAll() {
	for {
		switch err := r.wait(-1); {
		case err == nil:
		case errors.Is(err, syscall.ECHILD):
			if _, ok := <-r.kick; !ok {
				return
			}
		default:
			return
		}
	}
}

func (r *reaper) wait(pid int) error {
	var status syscall.WaitStatus
	got, err := syscall.Wait4(pid, &status, 0, nil)
	for err == syscall.EINTR {
		got, err = syscall.Wait4(pid, &status, 0, nil)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.found = append(r.found, waited{got, status})
	_, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return nil
}

func (r *reaper) take() []waited {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.found
	r.found = nil
	return found
}

// close waits until all children have been waited for; they have been killed.
func (r *reaper) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	if r.all {
		close(r.kick)
	}
	r.work.Wait()
}
