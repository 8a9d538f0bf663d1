package olympus

import (
	"context"
	"time"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// eventsOf is the record whose changes of state are asked for.
func (s *Server) eventsOf(ctx context.Context, req *apiv1.EventsRequest) (sandbox.Record, error) {
	if req.GetAfter() < 0 {
		return sandbox.Record{}, fault.Invalid("after", "Send the seq of the last event that you have.", "after is below zero")
	}
	return s.visible(ctx, req.GetId())
}

// events hands the changes of state of a sandbox to yield.
func (s *Server) events(ctx context.Context, req *apiv1.EventsRequest, yield func(sandbox.Event) error) error {
	rec, err := s.eventsOf(ctx, req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var changed <-chan struct{}
	if req.GetFollow() {
		changed = s.cfg.Records.Watch(ctx)
		if rec, err = s.cfg.Records.Get(ctx, rec.ID); err != nil { // it may have changed before we watched
			return err
		}
	}
	after := int64(req.GetAfter())
	for {
		// The record was read first: when it has ended, its last event is there.
		events, err := s.cfg.Records.Events(ctx, rec.ID, after)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := yield(e); err != nil {
				return err
			}
			after = e.Seq
		}
		if !rec.State.Live() || !req.GetFollow() {
			return nil
		}
		if err := pause(ctx, changed, pollRecord); err != nil {
			return err
		}
		if rec, err = s.cfg.Records.Get(ctx, rec.ID); err != nil {
			return err
		}
	}
}

// await reads a record until done says so, or ctx ends; the record is the last
// that was read in any case.
func (s *Server) await(ctx context.Context, id sandbox.ID, done func(sandbox.Record) bool) (sandbox.Record, error) {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := s.cfg.Records.Watch(watching)
	for {
		rec, err := s.cfg.Records.Get(ctx, id)
		if err != nil || done(rec) {
			return rec, err
		}
		if err := pause(ctx, changed, pollRecord); err != nil {
			return rec, err
		}
	}
}

// waitEnd waits for the end of a sandbox, and returns the record as it is by
// then: ended or not.
func (s *Server) waitEnd(ctx context.Context, rec sandbox.Record, d time.Duration) (sandbox.Record, error) {
	out := rec
	err := s.held(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		last, err := s.await(ctx, rec.ID, func(r sandbox.Record) bool { return !r.State.Live() })
		if last.ID != "" {
			out = last
		}
		switch {
		case fault.Is(context.Cause(ctx), fault.Unauthenticated):
			return context.Cause(ctx)
		case ctx.Err() != nil:
			return nil // out of time, or stopping: the caller gets the record as it is
		}
		return err
	})
	return out, err
}
