// Package guestdial is the host's end of the guest protocol: a session with
// one guest for the whole life of its VM.
//
// The guest is hostile. Everything it sends is bounded and checked against
// what it may say at that moment; what it may not say ends the session with
// ErrGuest. What it says of a process is a claim. Memory is bounded by the
// windows of the flows, however the guest behaves and however slow the sinks
// are.
//
// A stream that breaks while the VM lives is opened again, and nothing is lost
// or said twice; callers see only the delay.
package guestdial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// ErrGuest is in the chain of errors about a guest that broke the protocol.
// Such a guest is not spoken to again.
var ErrGuest = errors.New("the guest broke the protocol")

// ErrLost is in the chain of errors about a stream that broke and could not be
// opened again.
var ErrLost = errors.New("the guest is out of reach")

// ErrClosed is in the chain of errors after Close.
var ErrClosed = errors.New("the session is closed")

// RequestError is a request that the guest could not carry out. The message is
// the guest's word, bounded but otherwise raw.
type RequestError struct {
	Doing   string
	Message string
}

func (e *RequestError) Error() string { return e.Doing + ": " + e.Message }

// StartError is a command that could not be started. The message is the
// guest's word, bounded but otherwise raw.
type StartError struct {
	Code    int // as a shell's: 127 not found, 126 not executable, 125 all else
	Message string
}

func (e *StartError) Error() string { return "starting the command: " + e.Message }

// Config is what a session needs.
type Config struct {
	// Dial opens the stream; it is called again when the stream breaks, and
	// fails for good once the VM is gone.
	Dial func(context.Context) (net.Conn, error)

	Logger *slog.Logger // nil discards

	// RedialTimeout bounds opening a broken stream again; 5 s if zero.
	RedialTimeout time.Duration

	// DrainTimeout bounds the wait for output that a guest announced with an
	// exit; 10 s if zero.
	DrainTimeout time.Duration
}

const (
	defaultRedialTimeout = 5 * time.Second
	defaultDrainTimeout  = 10 * time.Second

	// maxRedials bounds how many streams in a row may break on which the
	// guest said nothing but its hello.
	maxRedials = 16

	// maxStale bounds what of an old stream may come before a hello.
	maxStale = 8 << 20
)

// Validate says what is missing, and fills in defaults.
func (c *Config) Validate() error {
	if c.Dial == nil {
		return errors.New("guestdial: Config.Dial is nil")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.RedialTimeout == 0 {
		c.RedialTimeout = defaultRedialTimeout
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = defaultDrainTimeout
	}
	return nil
}

// Session is a session with a guest. All methods may be called at once.
type Session struct {
	cfg  Config
	work sync.WaitGroup // all goroutines of the session
	wake chan struct{}  // 1: the writer has something to do
	done chan struct{}  // closed at the end
	slot chan struct{}  // one for each request that waits for its answer

	mu         sync.Mutex
	generation uint32
	greeted    bool     // a hello was sent; what it left on the stream may be torn
	version    uint16   // that the guest chose last
	conn       net.Conn // of this generation; nil while there is none
	spoke      bool     // the guest said something on the present stream
	requests   requests
	procs      map[uint32]*Process
	order      []*Process // procs, for the writer's rounds
	lastProc   uint32     // the highest number that was used
	ending     bool       // Shutdown was answered, or Close called: an end is no loss
	closed     bool       // by Close
	err        error      // why done is closed
}

// Open speaks to the guest for the first time, and waits until it answers or
// ctx ends.
func Open(ctx context.Context, cfg Config) (*Session, error) {
	s, err := newSession(cfg, helloGenerations)
	if err != nil {
		return nil, err
	}
	conn, reader, err := s.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the session with the guest: %w", err)
	}
	s.work.Go(func() { s.run(conn, reader) })
	return s, nil
}

// helloGenerations are left to Hello: a guest goes on from a snapshot with the
// generation that it had, and its session's must be higher.
const helloGenerations = 1 << 16

// Hello waits until the guest answers, and leaves it to the session of whoever
// goes on with it: with this VM, or with those that are restored from it.
func Hello(ctx context.Context, cfg Config) error {
	s, err := newSession(cfg, 0)
	if err != nil {
		return err
	}
	conn, _, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("waiting for the guest: %w", err)
	}
	return conn.Close()
}

func newSession(cfg Config, generation uint32) (*Session, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Session{
		cfg:        cfg,
		wake:       make(chan struct{}, 1),
		done:       make(chan struct{}),
		slot:       make(chan struct{}, guestwire.MaxOutstanding),
		procs:      make(map[uint32]*Process),
		generation: generation,
	}, nil
}

// Done is closed when the session has ended: the stream broke for good, the
// guest broke the protocol, or Close.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why the session ended; nil before Done.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session, not the guest, and waits for the calls of sinks that
// are under way. After it no sink is called.
func (s *Session) Close() error {
	s.mu.Lock()
	s.ending, s.closed = true, true
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.endLocked(ErrClosed)
	s.mu.Unlock()
	s.work.Wait()
	return nil
}

// endLocked ends the session for a reason; the first one stays.
func (s *Session) endLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.done)
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.requests.fail(err)
	for _, p := range s.procs {
		p.sessionEndedLocked()
	}
}

// run keeps the session going over as many streams as it takes.
func (s *Session) run(conn net.Conn, reader *guestwire.Reader) {
	for redials := 0; ; redials++ {
		err := s.serve(conn, reader)
		s.mu.Lock()
		s.conn = nil
		if s.spoke {
			redials, s.spoke = 0, false
		}
		over := s.err != nil
		if !over && errors.Is(err, guestwire.ErrMalformed) {
			err = fmt.Errorf("%w: %w", ErrGuest, err)
		}
		if !over && (errors.Is(err, ErrGuest) || s.ending || redials == maxRedials) {
			if !errors.Is(err, ErrGuest) {
				err = fmt.Errorf("%w: %w", ErrLost, err)
			}
			s.endLocked(err)
			over = true
		}
		s.mu.Unlock()
		if over {
			return
		}
		s.cfg.Logger.Info("the stream to the guest broke", "err", err)
		if conn, reader, err = s.redial(); err != nil {
			if !errors.Is(err, ErrGuest) {
				err = fmt.Errorf("%w: %w", ErrLost, err)
			}
			s.mu.Lock()
			s.endLocked(err)
			s.mu.Unlock()
			return
		}
	}
}

// redial opens a broken stream again, unless the session ends meanwhile.
func (s *Session) redial() (net.Conn, *guestwire.Reader, error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.RedialTimeout)
	defer cancel()
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-s.done:
			cancel()
		case <-stop:
		}
	})
	defer watch.Wait()
	defer close(stop)
	return s.connect(ctx)
}

// serve reads and writes one stream until it breaks or the guest breaks the
// protocol.
func (s *Session) serve(conn net.Conn, reader *guestwire.Reader) error {
	broken := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { s.write(conn, broken) })
	err := s.read(reader)
	close(broken)
	_ = conn.Close()
	writer.Wait()
	return err
}

func (s *Session) read(reader *guestwire.Reader) error {
	for {
		t, payload, err := reader.Next()
		if err != nil {
			return err
		}
		m, err := guestwire.DecodeFromGuest(t, payload)
		if err != nil {
			return err
		}
		s.mu.Lock()
		err = s.handleLocked(m)
		s.spoke = true
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (s *Session) handleLocked(m guestwire.Message) error {
	switch m := m.(type) {
	case *guestwire.Reply:
		return s.answerLocked(m.Req, m)
	case *guestwire.Started:
		return s.answerLocked(m.Req, m)
	case *guestwire.StartFailed:
		return s.answerLocked(m.Req, m)
	case *guestwire.Stats:
		return s.answerLocked(m.Req, m)
	case *guestwire.Data:
		return s.aboutLocked(m.Proc, func(p *Process) error { return p.dataLocked(m) })
	case *guestwire.Credit:
		return s.aboutLocked(m.Proc, func(p *Process) error { return p.creditLocked(m) })
	case *guestwire.EOF:
		return s.aboutLocked(m.Proc, func(p *Process) error { return p.eofLocked(m) })
	case *guestwire.Exit:
		return s.aboutLocked(m.Proc, func(p *Process) error { return p.exitLocked(m) })
	}
	return fmt.Errorf("%w: an unexpected %v", ErrGuest, m.Type())
}

// aboutLocked finds the process that a frame is about.
func (s *Session) aboutLocked(proc uint32, f func(*Process) error) error {
	p := s.procs[proc]
	if p == nil || !p.started {
		return fmt.Errorf("%w: it speaks of process %d, which has not started", ErrGuest, proc)
	}
	if err := f(p); err != nil {
		return fmt.Errorf("%w: process %d: %w", ErrGuest, proc, err)
	}
	return nil
}

// poke tells the writer that there is something to do.
func (s *Session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// write sends what there is to send until the stream breaks. A failure closes
// the stream, which the reader notices.
func (s *Session) write(conn net.Conn, broken <-chan struct{}) {
	var buf []byte
	for {
		s.mu.Lock()
		buf = s.gatherLocked(buf[:0])
		s.mu.Unlock()
		if len(buf) > 0 {
			if _, err := conn.Write(buf); err != nil {
				_ = conn.Close()
				return
			}
			continue
		}
		select {
		case <-s.wake:
		case <-broken:
			return
		}
	}
}

// gatherBytes is about how much is written at once.
const gatherBytes = 64 << 10

// gatherLocked takes what there is to send: requests, then credits, then
// standard input, each process in turn.
func (s *Session) gatherLocked(b []byte) []byte {
	b = s.requests.take(b, gatherBytes)
	for _, p := range s.order {
		b = p.creditsLocked(b)
	}
	for i, p := range s.order {
		if len(b) >= gatherBytes {
			break
		}
		var any bool
		if b, any = p.stdinLocked(b); any {
			s.order = append(append(s.order[:i], s.order[i+1:]...), p)
			break
		}
	}
	return b
}
