package guestdial

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// connect opens a stream and speaks the hellos on it. A stream that breaks
// before the guest answered is opened again until ctx ends, for the first one
// may reach a guest that is not listening yet.
func (s *Session) connect(ctx context.Context) (net.Conn, *guestwire.Reader, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		conn, err := s.cfg.Dial(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("dialing the guest: %w", err)
		}
		reader, err := s.greet(ctx, conn)
		if err == nil {
			return conn, reader, nil
		}
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, nil, fmt.Errorf("waiting for the guest's hello: %w", context.Cause(ctx))
		}
		if !broke(err) {
			return nil, nil, err
		}
		s.cfg.Logger.Debug("the stream broke before the guest's hello", "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// broke reports whether err is the stream's own, so that another may do.
func broke(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &op)
}

// greet speaks the hellos on a stream and takes it into use.
func (s *Session) greet(ctx context.Context, conn net.Conn) (*guestwire.Reader, error) {
	// Closing ends reads and writes on whatever kind of stream this is.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var random [8]byte
	_, _ = rand.Read(random[:])
	s.mu.Lock()
	s.generation++
	torn := s.greeted
	s.greeted = true
	hello := &guestwire.HelloHost{
		Nonce:      binary.LittleEndian.Uint64(random[:]),
		MinVersion: guestwire.MinVersion,
		MaxVersion: guestwire.Version,
		Generation: s.generation,
		Acked:      s.requests.acked,
	}
	for _, p := range s.order {
		hello.Flows = append(hello.Flows, p.offsetsLocked()...)
	}
	s.mu.Unlock()
	var b []byte
	if torn {
		b = guestwire.Pad()
	}
	b, err := guestwire.Append(b, hello)
	if err != nil {
		return nil, err
	}
	// The guest may be busy saying what belongs to an older stream: read
	// while writing.
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(b)
		wrote <- err
		if err != nil {
			_ = conn.Close()
		}
	}()
	reader, answer, err := s.answer(conn, hello)
	if err != nil {
		_ = conn.Close()
	}
	if werr := <-wrote; werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		return nil, err
	}
	return reader, s.resume(conn, answer)
}

// answer finds the guest's hello on the stream.
func (s *Session) answer(conn net.Conn, hello *guestwire.HelloHost) (*guestwire.Reader, *guestwire.HelloGuest, error) {
	reader := guestwire.NewReader(conn, false)
	if err := reader.Seek(guestwire.HelloGuestPrefix(hello.Nonce), maxStale); err != nil {
		return nil, nil, guestErr(err)
	}
	t, payload, err := reader.Next()
	if err != nil {
		return nil, nil, guestErr(err)
	}
	m, err := guestwire.DecodeFromGuest(t, payload)
	if err != nil {
		return nil, nil, guestErr(err)
	}
	answer, ok := m.(*guestwire.HelloGuest)
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("%w: a %v instead of a hello", ErrGuest, t)
	case answer.Generation != hello.Generation:
		return nil, nil, fmt.Errorf("%w: another host speaks to it (generation %d, not %d)", ErrGuest, answer.Generation, hello.Generation)
	case answer.Version == 0:
		return nil, nil, fault.New(fault.Unsupported, "the guest speaks none of the protocol versions %d to %d",
			guestwire.MinVersion, guestwire.Version).WithHint("build the guest bundle again with this version of Tartarus")
	case answer.Version < guestwire.MinVersion || answer.Version > guestwire.Version:
		return nil, nil, fmt.Errorf("%w: it chose version %d, which was not offered", ErrGuest, answer.Version)
	}
	return reader, answer, nil
}

// guestErr marks malformed bytes as the guest's doing.
func guestErr(err error) error {
	if errors.Is(err, guestwire.ErrMalformed) {
		return fmt.Errorf("%w: %w", ErrGuest, err)
	}
	return err
}

// resume takes up the session where the guest's hello says.
func (s *Session) resume(conn net.Conn, m *guestwire.HelloGuest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if err := s.requests.resume(m.LastReq); err != nil {
		return err
	}
	for _, p := range s.order {
		if err := p.resumeLocked(m.Flows); err != nil {
			return err
		}
	}
	s.conn, s.version = conn, m.Version
	s.poke()
	return nil
}
