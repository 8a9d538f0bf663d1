package hecatoncheir

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/thanatos"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// Assign implements NodeService.
func (a *Agent) Assign(ctx context.Context, req *nodev1.AssignRequest) (*nodev1.AssignResponse, error) {
	return &nodev1.AssignResponse{}, nodewire.StatusOf(a.assign(ctx, req))
}

// Kill implements NodeService.
func (a *Agent) Kill(ctx context.Context, req *nodev1.KillRequest) (*nodev1.KillResponse, error) {
	return &nodev1.KillResponse{}, nodewire.StatusOf(a.kill(ctx, req.GetOrder()))
}

func (a *Agent) kill(ctx context.Context, order []byte) error {
	a.mu.Lock()
	ring, here := a.ring, seal.Here{Node: a.cfg.NodeID, Epoch: a.epoch, Now: time.Now()}
	a.mu.Unlock()
	if ring == nil {
		return fault.New(fault.Unavailable, "the node has not joined yet").WithRetryAfter(time.Second)
	}
	o, err := ring.OpenKill(order, here)
	if err != nil {
		return err
	}
	l, err := a.get(o.Assignment.Sandbox)
	if err != nil {
		return nil //nolint:nilerr // one that is not here is ended
	}
	if o.Verdict != l.verdict || o.Assignment != l.assignment {
		return fault.New(fault.Conflict, "the order is for another attempt of sandbox %q", l.id)
	}
	a.loggerOf(ctx, o.Assignment).Info("ordered to end it", "cause", o.Cause, "grace", o.Grace)
	l.death.Take(thanatos.Order{Cause: o.Cause, Grace: o.Grace})
	return nil
}

// Logs implements NodeService.
func (a *Agent) Logs(req *nodev1.LogsRequest, stream grpc.ServerStreamingServer[nodev1.LogsResponse]) error {
	return nodewire.StatusOf(a.logs(req, stream))
}

// logRetry is when to ask again for a log that is on its way to the blob
// store.
const logRetry = 100 * time.Millisecond

func (a *Agent) logs(req *nodev1.LogsRequest, stream grpc.ServerStreamingServer[nodev1.LogsResponse]) error {
	l, err := a.get(sandbox.ID(req.GetSandbox()))
	if err != nil {
		return err
	}
	if req.GetFollow() {
		select {
		case <-l.logged:
		case <-l.cut:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
	l.mu.Lock()
	output := l.output
	l.mu.Unlock()
	if output == nil {
		return fault.New(fault.Unavailable, "there is no log of sandbox %q on this node now", l.id).WithRetryAfter(logRetry)
	}
	for e, err := range output.Read(stream.Context(), req.GetOffset(), req.GetFollow()) {
		if err != nil {
			return err
		}
		m := &nodev1.LogsResponse{Offset: e.Offset, Stream: e.Stream, TimeUnixNano: e.Time.UnixNano(), Data: e.Data}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Stdin implements NodeService.
func (a *Agent) Stdin(stream grpc.ClientStreamingServer[nodev1.StdinRequest, nodev1.StdinResponse]) error {
	if err := a.stdin(stream); err != nil {
		return nodewire.StatusOf(err)
	}
	return stream.SendAndClose(&nodev1.StdinResponse{})
}

// stdin passes bytes on. The end of the stream is the end of the input; a
// stream that breaks is not, so a caller may come back.
func (a *Agent) stdin(stream grpc.ClientStreamingServer[nodev1.StdinRequest, nodev1.StdinResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	l, err := a.get(sandbox.ID(m.GetSandbox()))
	if err != nil {
		return err
	}
	if !l.req.StdinOpen {
		return fault.New(fault.Conflict, "sandbox %q takes no input", l.id).WithHint("ask for it with stdin_open when it is run")
	}
	in, release, err := l.input(stream.Context())
	if err != nil {
		return err
	}
	defer release()
	for {
		if len(m.GetData()) > 0 {
			if _, err := in.Write(m.GetData()); err != nil {
				return fault.Wrap(fault.Conflict, err, "the command of sandbox %q takes no more input", l.id)
			}
		}
		if m, err = stream.Recv(); errors.Is(err, io.EOF) {
			return in.Close()
		} else if err != nil {
			return err
		}
	}
}

// input is the command's standard input, for one caller at a time, once the
// request's own is in.
func (l *life) input(ctx context.Context) (io.WriteCloser, func(), error) {
	select {
	case <-l.fed:
	case <-l.death.Taken():
		return nil, nil, fault.New(fault.Conflict, "sandbox %q ends", l.id)
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	if !l.stdin.TryLock() {
		return nil, nil, fault.New(fault.Conflict, "somebody else writes to sandbox %q", l.id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.proc.Stdin(), l.stdin.Unlock, nil
}
