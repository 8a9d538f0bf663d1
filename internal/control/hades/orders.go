package hades

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// orderLife is how long a signed order may be carried out: long enough for a
// slow node, short enough to be worthless to who finds it later.
const orderLife = time.Minute

// Assign carries an assignment to its node. nil: the node took it into its
// journal and will ask for Accept. Conflict, PolicyDenied, InvalidArgument,
// TooLarge and Unsupported: it refused. Any other error: it is not known
// whether it took it, and the same assignment may be sent again.
func (r *Registry) Assign(ctx context.Context, a sandbox.Assignment, adm sandbox.Admitted) error {
	agent, err := r.agent(a.Node, a.Epoch)
	if err != nil {
		return err
	}
	secrets, err := r.cfg.Box.Open(a.Sandbox, adm.Secrets)
	if err != nil {
		return fmt.Errorf("opening the secrets of %s: %w", a.Sandbox, err)
	}
	now := r.cfg.Clock()
	order, err := r.cfg.Key.SignOrder(seal.Order{
		Kind: seal.OrderAssign, Assignment: a, Verdict: adm.Record.Verdict.Digest,
		Issued: now, Expires: now.Add(orderLife),
	})
	if err != nil {
		return fmt.Errorf("signing the assignment of %s: %w", a.Sandbox, err)
	}
	began := time.Now()
	_, err = agent.Assign(nodewire.WithRequestID(ctx, adm.Record.RequestID), &nodev1.AssignRequest{Order: order, Verdict: adm.Verdict, Secrets: secrets})
	err = nodewire.FromStatus(err)
	r.cfg.Tracer.Stage(tracing.Span{Sandbox: a.Sandbox, Attempt: a.Attempt, Name: "assign", Begin: began, End: time.Now(), Err: err})
	return err
}

// Kill carries the order to end a sandbox to its node, with the cause that the
// record holds. A sandbox that is on no node needs none.
func (r *Registry) Kill(ctx context.Context, rec sandbox.Record, grace time.Duration) error {
	if !rec.State.OnNode() {
		return nil
	}
	agent, err := r.agent(rec.Node, rec.Epoch)
	if err != nil {
		return err
	}
	now := r.cfg.Clock()
	order, err := r.cfg.Key.SignOrder(seal.Order{
		Kind: seal.OrderKill, Verdict: rec.Verdict.Digest, Cause: rec.Kill, Grace: grace,
		Assignment: sandbox.Assignment{Sandbox: rec.ID, Attempt: rec.Runtime.Attempt, Node: rec.Node, Epoch: rec.Epoch},
		Issued:     now, Expires: now.Add(orderLife),
	})
	if err != nil {
		return fmt.Errorf("signing the kill of %s: %w", rec.ID, err)
	}
	_, err = agent.Kill(ctx, &nodev1.KillRequest{Order: order})
	return nodewire.FromStatus(err)
}

// Logs reads the output of a sandbox that is on a node, from offset on, and
// hands each piece to yield until that fails, the output ends or ctx does.
func (r *Registry) Logs(ctx context.Context, rec sandbox.Record, offset int64, follow bool, yield func(hermes.Entry) error) error {
	agent, err := r.agent(rec.Node, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := agent.Logs(ctx, &nodev1.LogsRequest{Sandbox: string(rec.ID), Offset: offset, Follow: follow})
	if err != nil {
		return nodewire.FromStatus(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return nodewire.FromStatus(err)
		}
		if err := yield(hermes.Entry{Offset: m.GetOffset(), Stream: m.GetStream(), Time: time.Unix(0, m.GetTimeUnixNano()), Data: m.GetData()}); err != nil {
			return err
		}
	}
}

// stdinChunk is how much of a caller's standard input goes in one message.
const stdinChunk = 32 << 10

// Stdin passes in to the command of a sandbox, and its end.
func (r *Registry) Stdin(ctx context.Context, rec sandbox.Record, in io.Reader) error {
	if !rec.State.OnNode() {
		return fault.New(fault.Conflict, "the sandbox is %s: it takes no input", rec.State)
	}
	agent, err := r.agent(rec.Node, rec.Epoch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := agent.Stdin(ctx)
	if err != nil {
		return nodewire.FromStatus(err)
	}
	m := &nodev1.StdinRequest{Sandbox: string(rec.ID)}
	buf := make([]byte, stdinChunk)
	for {
		n, rerr := in.Read(buf)
		m.Data = buf[:n]
		if n > 0 || m.Sandbox != "" {
			if err := stream.Send(m); err != nil {
				break // the answer says why
			}
			m = &nodev1.StdinRequest{}
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return fault.Wrap(fault.Unavailable, rerr, "standard input broke off")
		}
	}
	_, err = stream.CloseAndRecv()
	return nodewire.FromStatus(err)
}
