package guestd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestd"
	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// plain is a machine without a VM: commands run as who runs the test, and a
// cage is a process group.
type plain struct{}

func (*plain) Setup(*guestwire.Setup) error { return nil }

func (*plain) Account(user string) (guestd.Account, error) {
	if user == "nobody-here" {
		return guestd.Account{}, errors.New("user nobody-here is not in the template")
	}
	return guestd.Account{Name: user, Home: "/"}, nil
}

func (*plain) Cage(uint32) (guestd.Cage, error) { return group{}, nil }
func (*plain) Usage() guestwire.Usage           { return guestwire.Usage{MemoryPeak: 42} }
func (*plain) PowerOff()                        {}

type group struct{}

func (group) CgroupFD() int { return -1 }
func (group) Kill(pid int)  { _ = syscall.Kill(-pid, syscall.SIGKILL) }
func (group) Empty() bool   { return true }
func (group) Events() int   { return -1 }
func (group) Close()        {}

// listenOn is a port like that of vsock, on a Unix socket.
func listenOn(path string) (*guestd.Accepting, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	return guestd.ListenOn(fd)
}

// guest is a guestd under test.
type guest struct {
	path string
	mu   sync.Mutex
	conn net.Conn // the last one
}

func start(t *testing.T) *guest {
	t.Helper()
	g := &guest{path: filepath.Join(t.TempDir(), "s")}
	port, err := listenOn(g.path)
	if err != nil {
		t.Fatal(err)
	}
	var stop [2]int
	if err := unix.Pipe2(stop[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- guestd.Serve(guestd.Config{Port: port, Machine: &plain{}, Log: func(l string) { t.Log("guestd: " + l) }}, stop[0])
	}()
	t.Cleanup(func() {
		unix.Close(stop[1])
		if err := <-ended; err != nil {
			t.Error(err)
		}
		port.Close()
		unix.Close(stop[0])
	})
	return g
}

func (g *guest) dial(ctx context.Context) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", g.path)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conn = c
	return c, err
}

// breakStream breaks the stream under the session.
func (g *guest) breakStream() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conn.Close()
}

func open(t *testing.T, g *guest) *guestdial.Session {
	t.Helper()
	s, err := guestdial.Open(t.Context(), guestdial.Config{Dial: g.dial})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Setup(t.Context(), guestwire.Setup{User: "me"}); err != nil {
		t.Fatal(err)
	}
	return s
}

// outputs collects what a sink gets, and insists on offsets without gaps.
type outputs struct {
	t        *testing.T
	mu       sync.Mutex
	out, err bytes.Buffer
	first    chan struct{}
	once     sync.Once
}

func collect(t *testing.T) *outputs { return &outputs{t: t, first: make(chan struct{})} }

func (o *outputs) sink(f guestwire.Flow, off int64, data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := &o.out
	if f == guestwire.Err {
		b = &o.err
	}
	if int64(b.Len()) != off {
		o.t.Errorf("%v: data at offset %d after %d bytes", f, off, b.Len())
	}
	b.Write(data)
	o.once.Do(func() { close(o.first) })
}

func sh(script string) guestwire.Start {
	return guestwire.Start{Argv: []string{"sh", "-c", script}, Cwd: "/"}
}

func wait(t *testing.T, p *guestdial.Process) guestwire.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func begin(t *testing.T, s *guestdial.Session, m guestwire.Start, sink guestdial.Sink) *guestdial.Process {
	t.Helper()
	p, err := s.Start(t.Context(), m, sink)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

// alive reports whether a process of that number, as a command printed it,
// lives.
func alive(t *testing.T, pid string) bool {
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(n) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
