package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// How often a broken connection is tried again, one try after the other
// without anything having come: about half a minute in all.
const (
	maxTries  = 10
	firstWait = 100 * time.Millisecond
	maxWait   = 5 * time.Second
)

// retry tells whether to go on after a connection broke.
type retry struct{ tries int }

// again waits before the next try; false: err is not of the connection, or it
// was tried too often.
func (r *retry) again(ctx context.Context, err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Code != Unavailable || ctx.Err() != nil || r.tries == maxTries {
		return false
	}
	wait := max(min(firstWait<<r.tries, maxWait), min(e.RetryAfter, maxWait))
	r.tries++
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Logs reads a sandbox's output. With Follow it goes on until the output has
// ended, over broken connections too. The last pair has the error, if any.
func (c *Client) Logs(ctx context.Context, req *apiv1.LogsRequest) iter.Seq2[*apiv1.LogEntry, error] {
	req = proto.CloneOf(req)
	open := func(ctx context.Context) (receiver[apiv1.LogEntry], error) { return c.sandboxes.Logs(ctx, req) }
	return follow(ctx, req.GetFollow(), open, func(e *apiv1.LogEntry) {
		req.Offset, req.Tail = e.GetOffset()+float64(len(e.GetData())), nil
	})
}

// Events reads a sandbox's changes of state. With Follow it goes on until the
// sandbox has ended, over broken connections too. The last pair has the error,
// if any.
func (c *Client) Events(ctx context.Context, req *apiv1.EventsRequest) iter.Seq2[*apiv1.Event, error] {
	req = proto.CloneOf(req)
	open := func(ctx context.Context) (receiver[apiv1.Event], error) { return c.sandboxes.Events(ctx, req) }
	return follow(ctx, req.GetFollow(), open, func(e *apiv1.Event) { req.After = e.GetSeq() })
}

type receiver[T any] interface{ Recv() (*T, error) }

// follow yields what a stream brings; passed notes where the next one goes on.
func follow[T any](ctx context.Context, again bool, open func(context.Context) (receiver[T], error), passed func(*T)) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var r retry
		for {
			err := drain(ctx, open, func(v *T) bool {
				r.tries = 0
				passed(v)
				return yield(v, nil)
			})
			if err == nil || errors.Is(err, errEnough) {
				return
			}
			if !again || !r.again(ctx, err) {
				yield(nil, err)
				return
			}
		}
	}
}

// errEnough says that the receiver wants no more.
var errEnough = errors.New("enough")

func drain[T any](ctx context.Context, open func(context.Context) (receiver[T], error), yield func(*T) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(ctx)
	if err != nil {
		return err
	}
	for {
		v, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !yield(v) {
			return errEnough
		}
	}
}

// Wait waits for the end of a sandbox and returns its record.
func (c *Client) Wait(ctx context.Context, id string) (*apiv1.Sandbox, error) {
	var r retry
	for {
		for _, err := range c.Events(ctx, &apiv1.EventsRequest{Id: id, Follow: true}) {
			if err != nil {
				return nil, err
			}
		}
		sb, err := c.Get(ctx, id)
		if err == nil && Ended(sb) {
			return sb, nil
		}
		if err == nil { // the events ended without it: as if the connection broke
			err = &Error{Code: Unavailable, Message: "the events ended before the sandbox did"}
		}
		if !r.again(ctx, err) {
			return sb, err
		}
	}
}
