package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/test/lab/labwire"
)

// silent is a machine whose QEMU runs and says nothing.
func silent() *machine {
	return &machine{
		stop: func() {}, console: &console{spoke: make(chan struct{}, 1)},
		reports: make(chan labwire.Report), done: make(chan struct{}),
	}
}

// A lab is hung when it gives no sign of life for a while, not when it is slow.
func TestHangIsNoticed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := silent()
		began := time.Now()
		go func() {
			for range 5 {
				time.Sleep(50 * time.Second)
				_, _ = m.console.Write([]byte("booting\n"))
			}
		}()
		_, err := m.next(t.Context(), time.Minute)
		if !errors.Is(err, errLost) || time.Since(began) != 310*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
	m := silent()
	m.err = errors.New("killed")
	close(m.done)
	if _, err := m.next(t.Context(), time.Minute); !errors.Is(err, errLost) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after the end of QEMU: %v", err)
	}
}

// run passes on what a command prints, and nothing else, until its end.
func TestRunOrder(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	m := silent()
	m.port = ours
	lab, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	read := make(chan struct{})
	go func() { defer close(read); m.read(t.Context()) }()
	for _, r := range []labwire.Report{
		{}, {ID: 1, Out: []byte("of another\n")}, {ID: 2, Out: []byte("one ")}, {}, {ID: 2, Out: []byte("two\n")},
		{ID: 2, Ended: &labwire.Ended{Status: 7, Left: []string{"file /tmp/x"}}},
	} {
		if err := labwire.Write(lab, r); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	e, err := m.run(t.Context(), labwire.Order{ID: 2, Argv: []string{"x"}}, &out)
	if err != nil || e.Status != 7 || len(e.Left) != 1 || out.String() != "one two\n" {
		t.Errorf("%+v, %v, printed %q", e, err, out.String())
	}
	order := make([]byte, 1024)
	n, err := lab.Read(order)
	if err != nil || !bytes.HasPrefix(order[:n], []byte(`{"id":2,"argv":["x"]`)) || order[n-1] != '\n' {
		t.Errorf("the order: %q, %v", order[:n], err)
	}
	lab.Close()
	theirs.Close()
	<-read
	ours.Close()
	if _, err := m.run(t.Context(), labwire.Order{ID: 3}, io.Discard); !errors.Is(err, errLost) {
		t.Errorf("an order to a lab that is gone: %v", err)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	m := silent()
	if _, err := m.console.Write(bytes.Repeat([]byte("x"), 3*consoleBytes)); err != nil {
		t.Fatal(err)
	}
	if err := m.explain(errLost); !errors.Is(err, errLost) || len(err.Error()) > 2*consoleBytes {
		t.Errorf("%d bytes: %.200v", len(err.Error()), err)
	}
	if _, err := m.console.Write([]byte("\r\nlabinit: no disk\r\n[ 3.5] more\n")); err != nil {
		t.Fatal(err)
	}
	if err := m.explain(errLost); errors.Is(err, errLost) || err.Error() != "its init gave up: no disk" {
		t.Errorf("%q", err)
	}
}
