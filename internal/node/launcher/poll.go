package launcher

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// waitPidfd waits until the process of a pidfd has ended, or ctx does.
func waitPidfd(ctx context.Context, fd int) error {
	_, err := waitEvent(ctx, fd)
	return err
}

// waitHangup waits until the other end of fd has closed, or ctx ends. What
// arrives on fd before that is thrown away.
func waitHangup(ctx context.Context, fd int) error {
	for {
		events, err := waitEvent(ctx, fd)
		if err != nil {
			return err
		}
		if events&unix.POLLIN == 0 {
			return nil // POLLHUP, POLLERR or POLLNVAL alone: there is nobody
		}
		var b [512]byte
		n, err := unix.Read(fd, b[:])
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if n <= 0 || err != nil {
			return nil
		}
	}
}

// waitEvent waits until something can be read from fd or it has hung up. It
// leaves the mode of fd alone, which may be shared with another process.
func waitEvent(ctx context.Context, fd int) (int16, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return 0, fmt.Errorf("making an eventfd: %w", err)
	}
	defer unix.Close(wake)
	written := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(written)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-written // it must not write to a closed descriptor
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("polling: %w", err)
		}
		if fds[0].Revents != 0 {
			return fds[0].Revents, nil
		}
		if fds[1].Revents != 0 {
			return 0, ctx.Err()
		}
	}
}
