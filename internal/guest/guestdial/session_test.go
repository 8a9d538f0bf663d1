package guestdial_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guesttest"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, g *guesttest.Guest, cfg guestdial.Config) *guestdial.Session {
	t.Helper()
	cfg.Dial = g.Dial
	s, err := guestdial.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Kill)
	t.Cleanup(func() { s.Close() })
	return s
}

func ready(t *testing.T, cfg guesttest.Config) (*guestdial.Session, *guesttest.Guest) {
	t.Helper()
	g := guesttest.New(cfg)
	s := open(t, g, guestdial.Config{DrainTimeout: 200 * time.Millisecond})
	if err := s.Setup(t.Context(), guestwire.Setup{Hostname: "h"}); err != nil {
		t.Fatal(err)
	}
	return s, g
}

// TestOlderGuest: the version before is spoken, but for what it has not.
func TestOlderGuest(t *testing.T) {
	s := open(t, guesttest.New(guesttest.Config{Version: guestwire.VersionNetwork - 1}), guestdial.Config{})
	card := &guestwire.Network{Bits: 16}
	if err := s.Setup(t.Context(), guestwire.Setup{Network: card}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a card for a guest that knows none: %v", err)
	}
	if err := s.Setup(t.Context(), guestwire.Setup{}); err != nil {
		t.Error(err)
	}
}

type sink struct {
	mu  sync.Mutex
	out bytes.Buffer
	err bytes.Buffer
	bad error
}

func (k *sink) take(f guestwire.Flow, off int64, b []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := &k.out
	if f == guestwire.Err {
		w = &k.err
	}
	if off != int64(w.Len()) {
		k.bad = fmt.Errorf("offset %d after %d bytes", off, w.Len())
	}
	w.Write(b)
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, s *guestdial.Session, k guestdial.Sink, argv ...string) *guestdial.Process {
	t.Helper()
	p, err := s.Start(within(t), guestwire.Start{Argv: argv, StdinOpen: argv[0] == "cat"}, k)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRun(t *testing.T) {
	s, _ := ready(t, guesttest.Config{})
	var k sink
	e, err := start(t, s, k.take, "echo", "a", "b").Wait(within(t))
	if err != nil || e.Code != 0 || k.out.String() != "a b\n" || k.bad != nil {
		t.Errorf("%+v %v %q %v", e, err, k.out.String(), k.bad)
	}
	if e, err = start(t, s, nil, "exit", "9").Wait(within(t)); err != nil || e.Code != 9 {
		t.Errorf("%+v %v", e, err)
	}
	p := start(t, s, nil, "sleep", "100")
	if err := p.Signal(within(t), 15); err != nil {
		t.Fatal(err)
	}
	if e, err = p.Wait(within(t)); err != nil || e.Signal != 15 {
		t.Errorf("%+v %v", e, err)
	}
	if err := p.Signal(within(t), 9); err != nil {
		t.Errorf("a signal after the end: %v", err)
	}
}

func TestManyProcesses(t *testing.T) {
	s, _ := ready(t, guesttest.Config{})
	for i := range 3 * guestwire.MaxProcesses {
		if _, err := start(t, s, nil, "true").Wait(within(t)); err != nil {
			t.Fatalf("process %d: %v", i+1, err)
		}
	}
}

func TestReconnectLosesNothing(t *testing.T) {
	s, g := ready(t, guesttest.Config{})
	var k sink
	p := start(t, s, k.take, "cat")
	var want bytes.Buffer
	for i := range 50 {
		b := bytes.Repeat([]byte{byte(i)}, 30_000)
		want.Write(b)
		if _, err := p.Stdin().Write(b); err != nil {
			t.Fatal(err)
		}
		g.Break()
		if i%10 == 0 {
			if _, err := s.Stats(within(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.Stdin().Close()
	e, err := p.Wait(within(t))
	if err != nil || e.Code != 0 || k.bad != nil || !bytes.Equal(k.out.Bytes(), want.Bytes()) {
		t.Errorf("%+v %v %v: %d of %d bytes", e, err, k.bad, k.out.Len(), want.Len())
	}
}

func TestGuestThatDies(t *testing.T) {
	s, g := ready(t, guesttest.Config{})
	p := start(t, s, nil, "sleep", "100")
	g.Kill()
	if _, err := p.Wait(within(t)); !errors.Is(err, guestdial.ErrLost) || !errors.Is(err, guesttest.ErrGone) {
		t.Errorf("wait: %v", err)
	}
	<-s.Done()
	if !errors.Is(s.Err(), guestdial.ErrLost) {
		t.Errorf("session: %v", s.Err())
	}
	if err := p.Signal(within(t), 9); err != nil && !errors.Is(err, guestdial.ErrLost) {
		t.Errorf("signal: %v", err)
	}
	if _, err := p.Stdin().Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("stdin: %v", err)
	}
}

func TestClose(t *testing.T) {
	s, _ := ready(t, guesttest.Config{})
	p := start(t, s, nil, "sleep", "100")
	s.Close()
	if _, err := p.Wait(within(t)); !errors.Is(err, guestdial.ErrClosed) {
		t.Errorf("wait: %v", err)
	}
	if err := s.Setup(within(t), guestwire.Setup{}); !errors.Is(err, guestdial.ErrClosed) {
		t.Errorf("setup: %v", err)
	}
}

func TestGuestThatIsMute(t *testing.T) {
	g := guesttest.New(guesttest.Config{Mangle: func(int, guestwire.Type, []byte) []byte { return nil }})
	defer g.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := guestdial.Open(ctx, guestdial.Config{Dial: g.Dial}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
}

func TestGuestThatIsDeaf(t *testing.T) {
	g := guesttest.New(guesttest.Config{Deaf: 2}) // the hello and the setup
	s := open(t, g, guestdial.Config{})
	if err := s.Setup(t.Context(), guestwire.Setup{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Stats(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stats: %v", err)
	}
	// A request that nobody reads does not keep Close from its work (the
	// cleanup), nor one that nobody sends.
	if err := s.PutFile(ctx, "/x", 0o600, make([]byte, 1<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put: %v", err)
	}
}

func TestTruncatedFrame(t *testing.T) {
	var g *guesttest.Guest
	cut := false
	g = guesttest.New(guesttest.Config{Mangle: func(_ int, typ guestwire.Type, frame []byte) []byte {
		if typ == guestwire.TypeData && !cut {
			cut = true
			go g.Break()
			return frame[:len(frame)/2]
		}
		return frame
	}})
	s := open(t, g, guestdial.Config{})
	if err := s.Setup(t.Context(), guestwire.Setup{}); err != nil {
		t.Fatal(err)
	}
	var k sink
	e, err := start(t, s, k.take, "echo", "whole").Wait(within(t))
	if err != nil || e.Code != 0 || k.out.String() != "whole\n" || k.bad != nil {
		t.Errorf("%+v %v %q %v", e, err, k.out.String(), k.bad)
	}
}

// Announced output that never comes holds Wait up for the drain time only.
func TestOutputThatNeverComes(t *testing.T) {
	s, _ := ready(t, guesttest.Config{Mangle: func(_ int, typ guestwire.Type, frame []byte) []byte {
		if typ == guestwire.TypeData {
			return nil
		}
		return frame
	}})
	p := start(t, s, nil, "echo", "1234")
	e, err := p.Wait(within(t))
	if err != nil || e.Code != 0 || p.Undelivered() != 5 {
		t.Errorf("%+v %v, undelivered %d", e, err, p.Undelivered())
	}
}

// A guest that floods is held at its windows.
func TestFloodIsBounded(t *testing.T) {
	s, _ := ready(t, guesttest.Config{})
	block := make(chan struct{})
	var got int64
	p := start(t, s, func(_ guestwire.Flow, _ int64, b []byte) {
		<-block
		got += int64(len(b))
	}, "flood", fmt.Sprint(8<<20))
	if _, err := s.Stats(within(t)); err != nil { // not held up by it
		t.Fatal(err)
	}
	close(block)
	if e, err := p.Wait(within(t)); err != nil || e.Out != 8<<20 || got != e.Out {
		t.Errorf("%+v %v, got %d", e, err, got)
	}
}

// An answer must be for the request that is due.
func TestWrongAnswer(t *testing.T) {
	for name, wrong := range map[string]guestwire.Message{
		"of another number": &guestwire.Stats{Req: 3},
		"of another kind":   &guestwire.Reply{Req: 2},
		"of a process":      &guestwire.Started{Req: 2, Proc: 1},
	} {
		s, _ := ready(t, guesttest.Config{Mangle: func(_ int, typ guestwire.Type, b []byte) []byte {
			if typ == guestwire.TypeStats {
				return frame(wrong)
			}
			return b
		}})
		if _, err := s.Stats(within(t)); !errors.Is(err, guestdial.ErrGuest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A caller that gave up neither confuses the answers nor gets output.
func TestGivingUp(t *testing.T) {
	hold := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	wrote := make(chan struct{}) // all of it, so it was taken from the guest
	run := func(p *guesttest.Process) int {
		defer func() {
			if p.Start.Argv[0] == "flood" {
				close(wrote)
			}
		}()
		return guesttest.Builtin(p)
	}
	s, _ := ready(t, guesttest.Config{Run: run, Mangle: func(_ int, typ guestwire.Type, b []byte) []byte {
		if typ == guestwire.TypeStarted {
			cancel()
			<-hold
		}
		return b
	}})
	_, err := s.Start(ctx, guestwire.Start{Argv: []string{"flood", "1000000"}}, func(guestwire.Flow, int64, []byte) {
		t.Error("output of a process that nobody waits for")
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v", err)
	}
	close(hold)
	<-wrote
	if e, err := start(t, s, nil, "exit", "2").Wait(within(t)); err != nil || e.Code != 2 {
		t.Errorf("the next: %+v %v", e, err)
	}
}

// What does not fit the protocol is refused before anything is sent.
func TestOutOfBounds(t *testing.T) {
	s, _ := ready(t, guesttest.Config{})
	if err := s.PutFile(within(t), "/x", 0o7777, nil); !errors.Is(err, guestwire.ErrMalformed) {
		t.Errorf("mode: %v", err)
	}
	if _, err := s.Start(within(t), guestwire.Start{Argv: []string{strings.Repeat("x", guestwire.MaxStart)}}, nil); !errors.Is(err, guestwire.ErrMalformed) {
		t.Errorf("long command: %v", err)
	}
	if _, err := s.Start(within(t), guestwire.Start{Proc: 7, Argv: []string{"true"}}, nil); err != nil {
		t.Errorf("a number of one's own: %v", err)
	}
	if _, err := s.Start(within(t), guestwire.Start{Proc: 7, Argv: []string{"true"}}, nil); err == nil {
		t.Error("a number was used twice")
	}
	if e, err := start(t, s, nil, "exit", "2").Wait(within(t)); err != nil || e.Code != 2 {
		t.Errorf("the next: %+v %v", e, err)
	}
}

func frame(m guestwire.Message) []byte {
	b, err := guestwire.Append(nil, m)
	if err != nil {
		panic(err)
	}
	return b
}

func TestLies(t *testing.T) {
	exit := func(change func(*guestwire.Exit)) []byte {
		e := guestwire.Exit{Proc: 1, Out: 3}
		change(&e)
		return frame(&e)
	}
	data := func(off int64, n int) []byte {
		return frame(&guestwire.Data{Proc: 1, Flow: guestwire.Out, Offset: off, Bytes: make([]byte, n)})
	}
	for name, lie := range map[string][]byte{
		"exit of an unknown process": frame(&guestwire.Exit{Proc: 2}),
		"data of an unknown process": frame(&guestwire.Data{Proc: 2, Flow: guestwire.Out, Bytes: []byte("x")}),
		"credit for an unknown one":  frame(&guestwire.Credit{Proc: 2, Flow: guestwire.In}),
		"data with a gap":            data(4, 1),
		"data once more":             data(0, 3),
		"data on stdin":              frame(&guestwire.Data{Proc: 1, Flow: guestwire.In, Bytes: []byte("x")}),
		"data beyond the credit":     bytes.Join([][]byte{data(3, 32<<10), data(3+32<<10, 32<<10), data(3+64<<10, 32<<10), data(3+96<<10, 32<<10), data(3+128<<10, 32<<10)}, nil),
		"exit before what came":      exit(func(e *guestwire.Exit) { e.Out = 2 }),
		"exit twice":                 append(exit(func(*guestwire.Exit) {}), exit(func(e *guestwire.Exit) { e.Code = 1 })...),
		"exit twice, the same":       append(exit(func(*guestwire.Exit) {}), exit(func(*guestwire.Exit) {})...),
		"data behind the end":        append(exit(func(*guestwire.Exit) {}), data(3, 1)...),
		"two ends of a flow":         append(frame(&guestwire.EOF{Proc: 1, Flow: guestwire.Out, Offset: 3}), frame(&guestwire.EOF{Proc: 1, Flow: guestwire.Out, Offset: 4})...),
		"an answer to nothing":       frame(&guestwire.Reply{Req: 3}),
		"an answer once more":        frame(&guestwire.Reply{Req: 1}),
		"an answer from the future":  frame(&guestwire.Reply{Req: 1 << 31}),
		"a start that nobody asked":  frame(&guestwire.Started{Req: 3, Proc: 9}),
		"credit beyond what is sent": frame(&guestwire.Credit{Proc: 1, Flow: guestwire.In, Acked: 1, Limit: 1 << 20}),
		"credit that shrinks":        append(frame(&guestwire.Credit{Proc: 1, Flow: guestwire.In, Limit: 1 << 20}), frame(&guestwire.Credit{Proc: 1, Flow: guestwire.In, Limit: 1 << 19})...),
		"credit for output":          frame(&guestwire.Credit{Proc: 1, Flow: guestwire.Out}),
		"stdin ends in the future":   frame(&guestwire.EOF{Proc: 1, Flow: guestwire.In, Offset: 7}),
		"a second hello":             frame(&guestwire.HelloGuest{Version: 1, Generation: 1}),
		"a host's frame":             frame(&guestwire.Shutdown{Req: 1}),
		"rubbish":                    []byte(strings.Repeat("rubbish", 10000)),
		"zeros":                      make([]byte, 100),
		"no end mark":                bytes.Replace(data(3, 1), []byte{0xA5}, []byte{0}, 1),
	} {
		t.Run(name, func(t *testing.T) {
			g := guesttest.New(guesttest.Config{Run: func(p *guesttest.Process) int {
				fmt.Fprint(p.Stdout, "abc")
				<-p.Context().Done()
				return 0
			}})
			s := open(t, g, guestdial.Config{})
			if err := s.Setup(t.Context(), guestwire.Setup{}); err != nil {
				t.Fatal(err)
			}
			came := make(chan struct{})
			p, err := s.Start(within(t), guestwire.Start{Argv: []string{"x"}, StdinOpen: true}, func(_ guestwire.Flow, off int64, b []byte) {
				if off == 0 && len(b) == 3 {
					close(came)
					return
				}
				<-s.Done() // takes no more, so that credit runs out
			})
			if err != nil {
				t.Fatal(err)
			}
			<-came
			_ = g.SendRaw(lie) // it may be cut off in the middle
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the session lives on")
			}
			if !errors.Is(s.Err(), guestdial.ErrGuest) {
				t.Errorf("session: %v", s.Err())
			}
			// The first exit stays, whatever came after it.
			e, err := p.Wait(within(t))
			if strings.HasPrefix(name, "exit twice") || strings.HasPrefix(name, "data behind") {
				if err != nil || e.Code != 0 {
					t.Errorf("wait: %+v %v", e, err)
				}
			} else if !errors.Is(err, guestdial.ErrGuest) {
				t.Errorf("wait: %+v %v", e, err)
			}
		})
	}
}
