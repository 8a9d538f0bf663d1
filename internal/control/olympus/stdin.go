package olympus

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Stdin passes a stream to the command's standard input.
func (x *sandboxes) Stdin(stream grpc.ClientStreamingServer[apiv1.StdinRequest, apiv1.StdinResponse]) error {
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return fault.Invalid("id", "The first message names the sandbox.", "the stream is empty")
	}
	if err != nil {
		return err
	}
	if err := checkKnown(first); err != nil {
		return err
	}
	in := &messages{stream: stream, id: first.GetId(), rest: first.GetData()}
	n, err := x.s.stdin(stream.Context(), first.GetId(), in, nil)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&apiv1.StdinResponse{Bytes: float64(n)})
}

// messages reads the data of a gRPC stream.
type messages struct {
	stream grpc.ClientStreamingServer[apiv1.StdinRequest, apiv1.StdinResponse]
	id     string
	rest   []byte
}

func (m *messages) Read(p []byte) (int, error) {
	for len(m.rest) == 0 {
		next, err := m.stream.Recv()
		if err != nil {
			return 0, err
		}
		if id := next.GetId(); id != "" && id != m.id {
			return 0, fault.Invalid("id", "Only the first message names the sandbox.", "the stream names another sandbox")
		}
		m.rest = next.GetData()
	}
	n := copy(p, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

// stdin passes in to a sandbox and returns how much was taken. in may block
// for as long as its caller likes, so it is read aside, by a pump. unblock ends
// a read that blocks, and the pump is waited for; without it (nil) the pump
// ends with the call that in belongs to.
func (s *Server) stdin(ctx context.Context, id string, in io.Reader, unblock func()) (int64, error) {
	var taken atomic.Int64
	err := s.held(ctx, func(ctx context.Context) error {
		rec, err := s.takesInput(ctx, id)
		if err != nil {
			return err
		}
		r, w := io.Pipe()
		pumped := make(chan struct{})
		s.pumps.Go(func() {
			defer close(pumped)
			n, err := io.CopyBuffer(w, onlyReader{in}, make([]byte, 32<<10))
			taken.Store(n)
			if err == nil || errors.Is(err, io.ErrClosedPipe) {
				_ = w.Close() // never fails
				return
			}
			_ = w.CloseWithError(err)
		})
		err = s.feed(ctx, rec, r)
		_ = r.Close() // never fails
		if unblock == nil {
			return err
		}
		select {
		case <-pumped: // the input has ended
		default:
			unblock()
			<-pumped
		}
		return err
	})
	return taken.Load(), err
}

// onlyReader hides everything but Read, so that a copy goes piece by piece.
type onlyReader struct{ io.Reader }

// takesInput waits until the sandbox runs.
func (s *Server) takesInput(ctx context.Context, id string) (sandbox.Record, error) {
	rec, err := s.visible(ctx, id)
	if err != nil {
		return rec, err
	}
	if !rec.Request.StdinOpen {
		return rec, fault.New(fault.Conflict, "the sandbox's standard input is closed").
			WithHint("Run it with stdin_open to write to it while it runs.")
	}
	rec, err = s.await(ctx, rec.ID, func(r sandbox.Record) bool {
		return r.State == sandbox.Running || !r.State.Live() || r.State == sandbox.Stopping
	})
	if err == nil && rec.State != sandbox.Running {
		return rec, fault.New(fault.Conflict, "the sandbox is %s: it takes no input", rec.State)
	}
	return rec, err
}

// feed hands r to the node until its end, or the sandbox's.
func (s *Server) feed(ctx context.Context, rec sandbox.Record, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fed := make(chan error, 1)
	s.pumps.Go(func() { fed <- s.cfg.Nodes.Stdin(ctx, rec, r) })
	over := make(chan struct{})
	s.pumps.Go(func() {
		defer close(over)
		_, _ = s.await(ctx, rec.ID, func(r sandbox.Record) bool { return !r.State.Live() }) // ctx ends it, too
	})
	select {
	case err := <-fed:
		return err
	case <-over:
	}
	if ctx.Err() != nil {
		return ended(ctx)
	}
	select {
	case err := <-fed:
		return err
	default:
		return fault.New(fault.Conflict, "the sandbox ended before its input did")
	}
}
