// Package runner is the ordered start and stop of long-lived services.
//
// Services start one after the other, each ready before the next begins, and
// stop in reverse, each within its time. When one fails by itself, all stop
// and Run returns why.
package runner

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Service is one long-lived part of a process.
type Service struct {
	Name string

	// Start brings it up and returns when it is ready; it must not keep ctx.
	// nil means nothing to do.
	Start func(ctx context.Context) error

	// Run does its work until ctx ends or it fails; nil means it has no work
	// of its own. Returning nil before ctx ends is not a failure.
	Run func(ctx context.Context) error

	// Stop ends it and waits for all it started; it is called once, after Run
	// has been told to end. nil means nothing to do.
	Stop func(ctx context.Context) error

	// StopTimeout bounds Stop and the end of Run; 10 s if zero.
	StopTimeout time.Duration
}

const defaultStopTimeout = 10 * time.Second

// Run starts the services in order, calls ready (which may be nil) when all
// are up, waits until ctx ends or one fails, and stops them in reverse. It
// returns the failures, joined; the end of ctx is none.
func Run(ctx context.Context, ready func(), services ...Service) error {
	var up []*running
	failed := make(chan error, len(services)) // each Run fails once at most
	var startErr error
	for i := range services {
		s := &services[i]
		if s.Start != nil {
			if err := s.Start(ctx); err != nil {
				startErr = fmt.Errorf("starting %s: %w", s.Name, err)
				break
			}
		}
		up = append(up, launch(ctx, s, failed))
	}
	if startErr == nil {
		if ready != nil {
			ready()
		}
		select {
		case <-ctx.Done():
		case startErr = <-failed:
		}
	}
	errs := []error{startErr}
	for i := len(up) - 1; i >= 0; i-- {
		errs = append(errs, up[i].stop(ctx))
	}
	return errors.Join(errs...)
}

// running is a service that has started.
type running struct {
	s      *Service
	cancel context.CancelFunc
	done   chan struct{} // closed when Run returned
}

func launch(ctx context.Context, s *Service, failed chan<- error) *running {
	// The work outlives ctx until its own turn to stop comes.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{s: s, cancel: cancel, done: make(chan struct{})}
	if s.Run == nil {
		close(r.done)
		return r
	}
	go func() {
		defer close(r.done)
		if err := s.Run(work); err != nil && work.Err() == nil {
			failed <- fmt.Errorf("%s: %w", s.Name, err)
		}
	}()
	return r
}

func (r *running) stop(ctx context.Context) error {
	timeout := r.s.StopTimeout
	if timeout == 0 {
		timeout = defaultStopTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	r.cancel()
	var err error
	if r.s.Stop != nil {
		if err = r.s.Stop(ctx); err != nil {
			err = fmt.Errorf("stopping %s: %w", r.s.Name, err)
		}
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("stopping %s: still busy after %v", r.s.Name, timeout))
	}
	return err
}
