package guestd_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// The stream breaks again and again under a process with input and output, and
// nothing is lost or doubled.
func TestReconnect(t *testing.T) {
	g := start(t)
	s := open(t, g)
	o := collect(t)
	m := sh("cat; echo done >&2; exit 7")
	m.StdinOpen = true
	p := begin(t, s, m, o.sink)
	var want bytes.Buffer
	for i := range 40 {
		chunk := bytes.Repeat([]byte{byte('a' + i%26)}, 50_000+i)
		want.Write(chunk)
		if _, err := p.Stdin().Write(chunk); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		g.breakStream()
		if i%4 == 0 {
			if err := p.Signal(t.Context(), int(syscall.SIGCONT)); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.Stdin().Close()
	g.breakStream()
	e := wait(t, p)
	if e.Code != 7 || !bytes.Equal(o.out.Bytes(), want.Bytes()) || o.err.String() != "done\n" {
		t.Errorf("exit %+v, %d of %d bytes back, %q", e, o.out.Len(), want.Len(), o.err.String())
	}
}

// A command ends, with its last output, while no host is there.
func TestExitWithoutAHost(t *testing.T) {
	g := start(t)
	gate := make(chan struct{})
	first := true
	s, err := guestdial.Open(t.Context(), guestdial.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		if !first {
			<-gate
		}
		first = false
		return g.dial(ctx)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Setup(t.Context(), guestwire.Setup{}); err != nil {
		t.Fatal(err)
	}
	o := collect(t)
	release := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(release, 0o600); err != nil {
		t.Fatal(err)
	}
	p := begin(t, s, sh("echo $$; read x < "+release+"; echo last >&2; exit 8"), o.sink)
	<-o.first
	g.breakStream()
	if err := os.WriteFile(release, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return !alive(t, o.out.String()) })
	close(gate)
	if e := wait(t, p); e.Code != 8 || o.err.String() != "last\n" {
		t.Errorf("exit %+v, %q", e, o.err.String())
	}
}

// tearing is a stream that breaks in the middle of a write, after some bytes.
type tearing struct {
	net.Conn
	left int
}

func (c *tearing) Write(b []byte) (int, error) {
	if len(b) < c.left {
		c.left -= len(b)
		return c.Conn.Write(b)
	}
	n, _ := c.Conn.Write(b[:c.left])
	c.Close()
	return n, net.ErrClosed
}

// Frames are torn anywhere on their way to the guest, and every request is
// still carried out once and answered, and every byte of stdin comes once.
func TestTornFrames(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	g := start(t)
	tear := false
	s, err := guestdial.Open(t.Context(), guestdial.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		c, err := g.dial(ctx)
		if err != nil || !tear {
			return c, err
		}
		// Behind the pad and the hello, and far enough for the largest frame, now and then.
		return &tearing{c, guestwire.MaxFrame + 400 + rnd.IntN(70_000)}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Setup(t.Context(), guestwire.Setup{}); err != nil {
		t.Fatal(err)
	}
	tear = true
	g.breakStream()
	o := collect(t)
	m := sh("cat")
	m.StdinOpen = true
	p := begin(t, s, m, o.sink)
	path := filepath.Join(t.TempDir(), "file")
	var want bytes.Buffer
	for i := range 30 {
		chunk := bytes.Repeat([]byte{byte('a' + i%26)}, 3000+i)
		want.Write(chunk)
		if _, err := p.Stdin().Write(chunk); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		file := bytes.Repeat([]byte{byte(i)}, 2000)
		if err := s.PutFile(t.Context(), path, 0o600, file); err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, file) {
			t.Fatalf("file %d: %d bytes, %v", i, len(got), err)
		}
		if i%7 == 0 {
			if e := wait(t, begin(t, s, sh("exit 6"), nil)); e.Code != 6 {
				t.Fatalf("exit %+v", e)
			}
		}
	}
	p.Stdin().Close()
	if e := wait(t, p); e.Code != 0 || !bytes.Equal(o.out.Bytes(), want.Bytes()) {
		t.Errorf("exit %+v, %d of %d bytes back", e, o.out.Len(), want.Len())
	}
}

// The stream breaks while answers are on their way.
func TestLostAnswers(t *testing.T) {
	g := start(t)
	s := open(t, g)
	stop := make(chan struct{})
	var breaker sync.WaitGroup
	breaker.Go(func() {
		for range 50 {
			select {
			case <-stop:
				return
			default:
				g.breakStream()
				runtime.Gosched()
			}
		}
	})
	for i := range 300 {
		if _, err := s.Stats(t.Context()); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	close(stop)
	breaker.Wait()
}
