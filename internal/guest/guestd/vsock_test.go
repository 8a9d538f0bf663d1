package guestd_test

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestd"
)

// TestOneHost: a new connection ends the one before, and the session over it
// goes on.
func TestOneHost(t *testing.T) {
	g := start(t)
	s := open(t, g)
	taken, err := net.Dial("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() // the guest has closed it
	if _, err := s.Stats(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = taken.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, taken); err != nil {
		t.Errorf("two streams to one guest are open: %v", err)
	}
}

// TestDistrust: whoever is not the host is hung up on, and takes nobody's
// place.
func TestDistrust(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	p, err := listenOn(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epfd) // a descriptor of the test
	if err := p.Register(epfd); err != nil {
		t.Fatal(err)
	}
	p.Distrust(func(unix.Sockaddr) bool { return false })
	if c := dialPort(t, path, p, epfd); !errors.Is(read(c), io.EOF) {
		t.Error("a stranger was let in")
	}
	p.Distrust(func(a unix.Sockaddr) bool { _, ok := a.(*unix.SockaddrUnix); return ok })
	host := dialPort(t, path, p, epfd)
	p.Distrust(func(unix.Sockaddr) bool { return false })
	dialPort(t, path, p, epfd)
	if n, err := p.Write([]byte("x")); n != 1 || err != nil {
		t.Errorf("after a stranger came the host is gone: %v", err)
	}
	if err := read(host); err != nil {
		t.Error(err)
	}
}

// dialPort connects and has the port take note.
func dialPort(t *testing.T, path string, p *guestd.Accepting, epfd int) net.Conn {
	t.Helper()
	events := make([]unix.EpollEvent, 8)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	n, err := unix.EpollWait(epfd, events, 10_000)
	if err != nil || n == 0 {
		t.Fatalf("nobody came: %v", err)
	}
	for _, e := range events[:n] {
		p.Ready(int(e.Fd))
	}
	return c
}

func read(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := c.Read(make([]byte, 1))
	return err
}
