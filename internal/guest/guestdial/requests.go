package guestdial

import (
	"context"
	"errors"
	"fmt"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// requests are what the guest was asked and has not confirmed, in the order of
// their numbers. The session's lock guards it.
type requests struct {
	last  uint32 // the highest number given out
	acked uint32 // the last one with an answer
	list  []*request
	sent  int // how many of list are on the present stream
	ended error
}

// request is one frame. Frames without an answer of their own are confirmed by
// the next answer.
type request struct {
	req   uint32
	frame []byte
	fits  func(guestwire.Message) bool // nil: it has no answer
	done  chan guestwire.Message       // gets the answer; closed without one at the session's end
	gone  func()                       // nil, or runs under the lock once the guest has surely carried it out
}

// take appends frames that were not sent yet to b, until it is about that big.
func (r *requests) take(b []byte, size int) []byte {
	for r.sent < len(r.list) && len(b) < size {
		b = append(b, r.list[r.sent].frame...)
		r.sent++
	}
	return b
}

// answer hands m to the request it is for, which must be the next one due.
func (r *requests) answer(req uint32, m guestwire.Message) error {
	for i, q := range r.list {
		if q.fits == nil {
			continue
		}
		if i >= r.sent || q.req != req || !q.fits(m) {
			break
		}
		q.done <- m
		r.acked = req
		for _, before := range r.list[:i] {
			if before.gone != nil {
				before.gone()
			}
		}
		r.list = r.list[i+1:]
		r.sent -= i + 1
		return nil
	}
	return fmt.Errorf("%w: a %v that answers nothing", ErrGuest, m.Type())
}

// resume goes on behind last, which the guest says it has carried out.
func (r *requests) resume(last uint32) error {
	if last > r.last || last < r.acked {
		return fmt.Errorf("%w: it says it carried out request %d, of %d to %d", ErrGuest, last, r.acked, r.last)
	}
	for r.sent = 0; r.sent < len(r.list) && r.list[r.sent].req <= last; r.sent++ {
	}
	return nil
}

func (r *requests) fail(err error) {
	r.ended = err
	for _, q := range r.list {
		if q.done != nil {
			close(q.done)
		}
	}
	r.list, r.sent = nil, 0
}

// batch makes the frames of one piece of work, numbered from first; the last
// one has the answer.
type batch func(first uint32) ([][]byte, error)

// ask sends a batch and waits for its answer. When ctx ends the guest may
// still carry it out. onSend, which may be nil, runs under the lock with the
// batch's place in the order fixed. A slot is held until the answer comes,
// whether or not anybody still waits for it.
func (s *Session) ask(ctx context.Context, make batch, fits func(guestwire.Message) bool, onSend func()) (guestwire.Message, error) {
	select {
	case s.slot <- struct{}{}:
	case <-s.done:
		return nil, s.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	q, err := s.enqueue(make, fits, onSend)
	if err != nil {
		<-s.slot
		return nil, err
	}
	select {
	case m, ok := <-q.done:
		if !ok {
			return nil, s.Err()
		}
		return m, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *Session) enqueue(make batch, fits func(guestwire.Message) bool, onSend func()) (*request, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	frames, err := make(s.requests.last + 1)
	if err != nil {
		return nil, err
	}
	var q *request
	for i, f := range frames {
		s.requests.last++
		q = &request{req: s.requests.last, frame: f}
		if i == len(frames)-1 && fits != nil {
			q.fits, q.done = fits, makeAnswer()
		}
		s.requests.list = append(s.requests.list, q)
	}
	if onSend != nil {
		onSend()
	}
	s.poke()
	return q, nil
}

// makeAnswer has room for the answer, so that the reader never waits.
func makeAnswer() chan guestwire.Message { return make(chan guestwire.Message, 1) }

func (s *Session) answerLocked(req uint32, m guestwire.Message) error {
	if err := s.requests.answer(req, m); err != nil {
		return err
	}
	<-s.slot
	// A process exists from its Started on, before the next frame is read.
	switch m := m.(type) {
	case *guestwire.Started:
		s.procs[m.Proc].started = true
		s.poke() // for its first credit
	case *guestwire.StartFailed:
		s.forgetLocked(s.procs[m.Proc])
	}
	return nil
}

// one is a batch of a single message.
func one(m func(req uint32) guestwire.Message) batch {
	return func(first uint32) ([][]byte, error) {
		b, err := guestwire.Append(nil, m(first))
		return [][]byte{b}, err
	}
}

func isReply(m guestwire.Message) bool { _, ok := m.(*guestwire.Reply); return ok }

func isStats(m guestwire.Message) bool { _, ok := m.(*guestwire.Stats); return ok }

// do asks for something that is answered with a Reply.
func (s *Session) do(ctx context.Context, doing string, make batch) error {
	m, err := s.ask(ctx, make, isReply, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if r := m.(*guestwire.Reply); r.Status != guestwire.StatusOK {
		return &RequestError{Doing: doing, Message: r.Message}
	}
	return nil
}

// Setup gives the guest its identity and limits, and returns when it is ready.
// It comes before everything else. A guest that is too old for a network card
// is fault.Unsupported.
func (s *Session) Setup(ctx context.Context, m guestwire.Setup) error {
	s.mu.Lock()
	version := s.version
	s.mu.Unlock()
	if m.Network != nil && version < guestwire.VersionNetwork {
		return fault.New(fault.Unsupported, "the guest speaks version %d of the protocol, and sets up no network card", version).
			WithHint("build the guest bundle again with this version of Tartarus")
	}
	return s.do(ctx, "setting the guest up", one(func(req uint32) guestwire.Message {
		m.Req = req
		return &m
	}))
}

// PutFile writes a file of the guest, the user's of the setup.
func (s *Session) PutFile(ctx context.Context, path string, mode uint32, data []byte) error {
	return s.do(ctx, fmt.Sprintf("putting file %q", path), func(first uint32) ([][]byte, error) {
		head, err := guestwire.Append(nil, &guestwire.PutFile{Req: first, Path: path, Mode: mode, Size: int64(len(data))})
		if err != nil {
			return nil, err
		}
		frames := [][]byte{head}
		for len(data) > 0 {
			n := min(len(data), guestwire.MaxData)
			b, err := guestwire.Append(nil, &guestwire.FileData{Req: first + uint32(len(frames)), Data: data[:n]})
			if err != nil {
				return nil, err
			}
			frames = append(frames, b)
			data = data[n:]
		}
		return frames, nil
	})
}

// Stats asks what the commands used so far.
func (s *Session) Stats(ctx context.Context) (guestwire.Stats, error) {
	m, err := s.ask(ctx, one(func(req uint32) guestwire.Message {
		return &guestwire.StatsRequest{Req: req}
	}), isStats, nil)
	if err != nil {
		return guestwire.Stats{}, fmt.Errorf("asking the guest for its use: %w", err)
	}
	return *m.(*guestwire.Stats), nil
}

// Shutdown ends all processes of the guest and powers it off. A stream that
// ends instead of the answer is no error: the guest was quick.
func (s *Session) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	err := s.do(ctx, "shutting the guest down", one(func(req uint32) guestwire.Message {
		return &guestwire.Shutdown{Req: req}
	}))
	if err != nil && ctx.Err() == nil && errors.Is(s.Err(), ErrLost) {
		return nil
	}
	if err == nil {
		s.mu.Lock()
		s.endLocked(fmt.Errorf("%w: it was shut down", ErrLost))
		s.mu.Unlock()
	}
	return err
}
