package guestdial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Sink takes the output of a process. It is called from one goroutine, in the
// order in which the output came; offset counts the bytes of that stream. A
// sink that blocks holds back the process's output and nothing else. It must
// not keep data or call Close, and must return some time: Close waits for it.
type Sink func(stream guestwire.Flow, offset int64, data []byte)

// Process is a process of the guest. All methods may be called at once, also
// after its end and the session's.
type Process struct {
	s    *Session
	id   uint32
	sink Sink

	finished chan struct{} // closed when Wait has its answer
	more     chan struct{} // 1: deliver has something to look at

	// Guarded by the session's lock from here on.
	started   bool
	abandoned bool // nobody waits for it: its output is discarded
	inbox     inbox
	exit      *guestwire.Exit
	exitGen   uint32 // the generation in which exit was said last
	drainOver bool
	drain     *time.Timer
	err       error // Wait's, with finished closed

	stdin     *guestwire.SendBuffer
	stdinRoom *sync.Cond // there is room in stdin, or it is over
	stdinDone bool       // Close was called
	stdinSaid bool       // its EOF is on the present stream
	stdinGone bool       // nobody reads it any more
}

// Start starts a process and returns when it runs. m.Proc may be 0 for the
// next free number; the first is 1, the run's command, with whose end all
// others end. A command that cannot be started is a *StartError. sink may be
// nil to discard the output.
//
// When ctx ends before the answer, the process may run all the same, unseen.
func (s *Session) Start(ctx context.Context, m guestwire.Start, sink Sink) (*Process, error) {
	if sink == nil {
		sink = func(guestwire.Flow, int64, []byte) {}
	}
	p := &Process{
		s: s, sink: sink,
		finished: make(chan struct{}),
		more:     make(chan struct{}, 1),
		inbox:    newInbox(),
	}
	p.stdinRoom = sync.NewCond(&s.mu)
	if m.StdinOpen {
		p.stdin = guestwire.NewSendBuffer(guestwire.DefaultWindow)
	}
	var frames batch = func(first uint32) ([][]byte, error) {
		if err := s.numberLocked(&m); err != nil {
			return nil, err
		}
		m.Req = first
		return startFrames(&m)
	}
	fits := func(a guestwire.Message) bool {
		switch a := a.(type) {
		case *guestwire.Started:
			return a.Proc == m.Proc
		case *guestwire.StartFailed:
			return a.Proc == m.Proc
		}
		return false
	}
	answer, err := s.ask(ctx, frames, fits, func() { s.adoptLocked(p, m.Proc) })
	if err != nil {
		s.mu.Lock()
		p.abandoned = true
		s.mu.Unlock()
		return nil, fmt.Errorf("starting the command: %w", err)
	}
	if f, ok := answer.(*guestwire.StartFailed); ok {
		return nil, &StartError{Code: int(f.Code), Message: f.Message}
	}
	return p, nil
}

// numberLocked gives m a number that was not used.
func (s *Session) numberLocked(m *guestwire.Start) error {
	if m.Proc == 0 {
		m.Proc = s.lastProc + 1
	}
	if m.Proc <= s.lastProc {
		return fmt.Errorf("process number %d was used already", m.Proc)
	}
	if len(s.procs) >= guestwire.MaxProcesses {
		return fmt.Errorf("the guest has %d processes already", len(s.procs))
	}
	return nil
}

func startFrames(m *guestwire.Start) ([][]byte, error) {
	b, n, err := guestwire.AppendStart(nil, m)
	if err != nil {
		return nil, err
	}
	frames := make([][]byte, 0, n)
	for len(b) > 0 {
		size := guestwire.FrameSize(b)
		frames = append(frames, b[:size:size])
		b = b[size:]
	}
	return frames, nil
}

// adoptLocked takes p into the table; its delivery runs from here on.
func (s *Session) adoptLocked(p *Process, id uint32) {
	p.id = id
	s.lastProc = id
	s.procs[id] = p
	s.order = append(s.order, p)
	s.work.Go(p.deliver)
}

// forgetLocked takes p out of the table and ends its delivery.
func (s *Session) forgetLocked(p *Process) {
	delete(s.procs, p.id)
	for i, q := range s.order {
		if q == p {
			s.order = append(s.order[:i:i], s.order[i+1:]...)
			break
		}
	}
	p.finishLocked(nil)
}

// ID is the process's number.
func (p *Process) ID() uint32 { return p.id }

// Signal sends a signal to the process and its group. One that has ended is no
// error.
func (p *Process) Signal(ctx context.Context, sig int) error {
	if sig < 1 || sig > 64 {
		return fmt.Errorf("%d is no signal", sig)
	}
	select {
	case <-p.finished:
		return nil
	default:
	}
	err := p.s.do(ctx, fmt.Sprintf("sending signal %d", sig), one(func(req uint32) guestwire.Message {
		return &guestwire.Signal{Req: req, Proc: p.id, Signal: uint8(sig)}
	}))
	var refused *RequestError
	if errors.As(err, &refused) && p.ended() {
		return nil
	}
	return err
}

func (p *Process) ended() bool {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.exit != nil
}

// Wait returns how the process ended, once its output was delivered up to the
// final offsets, or the drain time is over (Undelivered tells), or the session
// is. The session's end is an error only if it came before the exit.
func (p *Process) Wait(ctx context.Context) (guestwire.Exit, error) {
	select {
	case <-p.finished:
	case <-ctx.Done():
		return guestwire.Exit{}, context.Cause(ctx)
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.exit == nil {
		return guestwire.Exit{}, fmt.Errorf("waiting for process %d: %w", p.id, p.err)
	}
	return *p.exit, nil
}

// Exited returns the exit as soon as the guest has said it, even if output is
// still to come; false before.
func (p *Process) Exited() (guestwire.Exit, bool) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.exit == nil {
		return guestwire.Exit{}, false
	}
	return *p.exit, true
}

// Undelivered is how many bytes of output the guest announced with the exit
// that were not delivered.
func (p *Process) Undelivered() int64 {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.inbox.missing()
}

// sessionEndedLocked: what came is still delivered, and then it is over.
func (p *Process) sessionEndedLocked() {
	p.stdinGone = true
	p.stdinRoom.Broadcast()
	p.poke()
}

func (p *Process) poke() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// finishLocked lets Wait return.
func (p *Process) finishLocked(err error) {
	select {
	case <-p.finished:
		return
	default:
	}
	p.err = err
	if p.drain != nil {
		p.drain.Stop()
	}
	p.stdinGone = true
	p.stdinRoom.Broadcast()
	close(p.finished)
	p.poke()
}

// deliver calls the sink until the process is finished.
func (p *Process) deliver() {
	for {
		p.s.mu.Lock()
		flow, offset, data := p.inbox.next()
		if p.s.closed || p.drainOver {
			data = nil
		}
		if len(data) == 0 && p.settleLocked() {
			p.s.mu.Unlock()
			return
		}
		discard := p.abandoned
		p.s.mu.Unlock()
		if len(data) == 0 {
			<-p.more
			continue
		}
		if !discard {
			p.sink(flow, offset, data)
		}
		p.s.mu.Lock()
		if p.inbox.took(flow, len(data)) {
			p.s.poke()
		}
		p.s.mu.Unlock()
	}
}

// settleLocked finishes the process if nothing more is to be delivered.
func (p *Process) settleLocked() bool {
	select {
	case <-p.finished:
		return true
	default:
	}
	if p.exit != nil && (p.inbox.done() || p.drainOver) || p.s.err != nil {
		p.finishLocked(p.s.err)
		if p.s.err == nil {
			p.releaseLocked()
		}
		return true
	}
	return false
}

// releaseLocked lets the guest forget the process. Its entry stays until the
// guest has surely done that, for what it may still say of it.
func (p *Process) releaseLocked() {
	q := &p.s.requests
	b, err := guestwire.Append(nil, &guestwire.Release{Req: q.last + 1, Proc: p.id})
	if err != nil {
		return
	}
	q.last++
	q.list = append(q.list, &request{req: q.last, frame: b, gone: func() { p.s.forgetLocked(p) }})
	p.s.poke()
}

// exitLocked takes the guest's Exit. The first one stays; it may be said again
// only on a new stream, and then the same.
func (p *Process) exitLocked(m *guestwire.Exit) error {
	if p.exit != nil {
		if p.exitGen == p.s.generation || *p.exit != *m {
			return errors.New("a second exit")
		}
		p.exitGen = p.s.generation
		return nil
	}
	if err := p.inbox.finish(guestwire.Out, m.Out); err != nil {
		return err
	}
	if err := p.inbox.finish(guestwire.Err, m.Err); err != nil {
		return err
	}
	e := *m
	p.exit, p.exitGen = &e, p.s.generation
	p.stdinGone = true
	p.stdinRoom.Broadcast()
	p.drain = time.AfterFunc(p.s.cfg.DrainTimeout, func() {
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		p.drainOver = true
		p.settleLocked() // not later, if the sink blocks
	})
	p.poke()
	return nil
}

func (p *Process) dataLocked(m *guestwire.Data) error {
	if m.Flow == guestwire.In {
		return errors.New("data on stdin")
	}
	if err := p.inbox.put(m.Flow, m.Offset, m.Bytes); err != nil {
		return err
	}
	p.poke()
	return nil
}

func (p *Process) eofLocked(m *guestwire.EOF) error {
	if m.Flow != guestwire.In {
		return p.inbox.finish(m.Flow, m.Offset)
	}
	if p.stdin == nil || m.Offset > p.stdin.End() {
		return errors.New("an end of stdin that makes no sense")
	}
	p.stdinGone = true
	p.stdinRoom.Broadcast()
	return nil
}

func (p *Process) creditLocked(m *guestwire.Credit) error {
	if m.Flow != guestwire.In || p.stdin == nil {
		return errors.New("credit for what is not sent")
	}
	if err := p.stdin.Credit(m.Acked, m.Limit); err != nil {
		return err
	}
	p.stdinRoom.Broadcast()
	p.s.poke()
	return nil
}

// creditsLocked appends the credits that are due to b.
func (p *Process) creditsLocked(b []byte) []byte {
	if !p.started || p.drainOver {
		return b
	}
	for _, f := range [...]guestwire.Flow{guestwire.Out, guestwire.Err} {
		if m := p.inbox.credit(f); m != nil {
			m.Proc = p.id
			b, _ = guestwire.Append(b, m)
		}
	}
	return b
}

// stdinLocked appends the next piece of standard input, or its end, to b.
func (p *Process) stdinLocked(b []byte) ([]byte, bool) {
	if p.stdin == nil || !p.started || p.stdinGone {
		return b, false
	}
	if off, data := p.stdin.Next(guestwire.MaxData); len(data) > 0 {
		b, _ = guestwire.Append(b, &guestwire.Data{Proc: p.id, Flow: guestwire.In, Offset: off, Bytes: data})
		p.stdin.Sent(len(data))
		return b, true
	}
	if p.stdinDone && p.stdin.Drained() && !p.stdinSaid {
		p.stdinSaid = true
		b, _ = guestwire.Append(b, &guestwire.EOF{Proc: p.id, Flow: guestwire.In, Offset: p.stdin.End()})
		return b, true
	}
	return b, false
}

// offsetsLocked is how far each flow of the process was received.
func (p *Process) offsetsLocked() []guestwire.FlowOffset {
	return []guestwire.FlowOffset{
		{Proc: p.id, Flow: guestwire.Out, Offset: p.inbox.received(guestwire.Out)},
		{Proc: p.id, Flow: guestwire.Err, Offset: p.inbox.received(guestwire.Err)},
	}
}

// resumeLocked begins again where the guest's hello says.
func (p *Process) resumeLocked(flows []guestwire.FlowOffset) error {
	p.inbox.resume()
	p.stdinSaid = false
	if p.stdin == nil || p.stdinGone {
		return nil
	}
	known := false
	for _, f := range flows {
		if f.Proc == p.id && f.Flow == guestwire.In {
			known = true
			if err := p.stdin.Resume(f.Offset); err != nil {
				return fmt.Errorf("%w: process %d: %w", ErrGuest, p.id, err)
			}
		}
	}
	if p.started && !known { // it has ended
		p.stdinGone = true
		p.stdinRoom.Broadcast()
	}
	return nil
}

// Stdin is the process's standard input. Write blocks until the bytes are
// taken into a bounded buffer, and fails with io.ErrClosedPipe once the
// process has ended or closed its end. Close ends the input after what was
// written. Of a process without an open stdin every Write fails.
func (p *Process) Stdin() io.WriteCloser { return stdinWriter{p} }

type stdinWriter struct{ p *Process }

func (w stdinWriter) Write(b []byte) (int, error) {
	p := w.p
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	n := 0
	for {
		switch {
		case p.stdinDone:
			return n, os.ErrClosed
		case p.stdin == nil || p.stdinGone:
			return n, io.ErrClosedPipe
		case len(b) == 0:
			return n, nil
		}
		c := copy(p.stdin.Space(), b)
		if c == 0 {
			p.stdinRoom.Wait()
			continue
		}
		p.stdin.Commit(c)
		b = b[c:]
		n += c
		p.s.poke()
	}
}

func (w stdinWriter) Close() error {
	p := w.p
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.stdinDone = true
	p.stdinRoom.Broadcast()
	p.s.poke()
	return nil
}
