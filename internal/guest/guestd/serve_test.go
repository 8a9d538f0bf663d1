package guestd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

func TestCommandRuns(t *testing.T) {
	s := open(t, start(t))
	o := collect(t)
	p := begin(t, s, sh("echo out; echo err >&2; exit 3"), o.sink)
	e := wait(t, p)
	if e.Code != 3 || e.Signal != 0 || e.Out != 4 || e.Err != 4 || e.Usage.MemoryPeak != 42 {
		t.Errorf("exit %+v", e)
	}
	if o.out.String() != "out\n" || o.err.String() != "err\n" {
		t.Errorf("out %q, err %q", o.out.String(), o.err.String())
	}
}

func TestStdin(t *testing.T) {
	s := open(t, start(t))
	o := collect(t)
	m := sh("cat")
	m.StdinOpen = true
	p := begin(t, s, m, o.sink)
	want := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB: more than all buffers
	if n, err := io.WriteString(p.Stdin(), want); err != nil || n != len(want) {
		t.Fatalf("wrote %d: %v", n, err)
	}
	p.Stdin().Close()
	if e := wait(t, p); e.Code != 0 || o.out.String() != want {
		t.Errorf("exit %+v, %d bytes back", e, o.out.Len())
	}
}

func TestClosedStdinIsEmpty(t *testing.T) {
	s := open(t, start(t))
	p := begin(t, s, sh("cat"), nil)
	if e := wait(t, p); e.Code != 0 || e.Out != 0 {
		t.Errorf("exit %+v", e)
	}
	if _, err := p.Stdin().Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writing to it: %v", err)
	}
}

func TestStdinNobodyReads(t *testing.T) {
	s := open(t, start(t))
	o := collect(t)
	m := sh("exec <&-; echo closed; sleep 60")
	m.StdinOpen = true
	p := begin(t, s, m, o.sink)
	<-o.first
	_, err := io.Copy(p.Stdin(), endless{})
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writing: %v", err)
	}
	if err := p.Signal(t.Context(), int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, p); e.Signal != uint8(syscall.SIGTERM) {
		t.Errorf("exit %+v", e)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestLargeOutput(t *testing.T) {
	s := open(t, start(t))
	var n int64
	p := begin(t, s, sh("head -c 67108864 /dev/zero"), func(_ guestwire.Flow, off int64, b []byte) {
		if off != n {
			t.Errorf("offset %d after %d", off, n)
		}
		n += int64(len(b))
	})
	if e := wait(t, p); e.Code != 0 || e.Out != 64<<20 || n != e.Out {
		t.Errorf("exit %+v, %d bytes", e, n)
	}
}

// A sink that does not come back holds up neither a signal nor an exit, nor
// another process.
func TestFloodDelaysNothing(t *testing.T) {
	s := open(t, start(t))
	stuck, release := make(chan struct{}), make(chan struct{})
	unblock := sync.OnceFunc(func() { close(release) })
	t.Cleanup(unblock)
	var once sync.Once
	flood := begin(t, s, sh("while :; do echo flood; echo flood >&2; done"), func(guestwire.Flow, int64, []byte) {
		once.Do(func() { close(stuck) })
		<-release
	})
	<-stuck
	o := collect(t)
	if e := wait(t, begin(t, s, sh("echo hello"), o.sink)); e.Code != 0 || o.out.String() != "hello\n" {
		t.Errorf("beside the flood: %+v %q", e, o.out.String())
	}
	if err := flood.Signal(t.Context(), int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { _, ok := flood.Exited(); return ok })
	if e, _ := flood.Exited(); e.Signal != uint8(syscall.SIGKILL) {
		t.Errorf("exit %+v", e)
	}
	unblock()
	if e := wait(t, flood); e.Out == 0 || flood.Undelivered() != 0 {
		t.Errorf("exit %+v, undelivered %d", e, flood.Undelivered())
	}
}

func TestStartFailures(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := open(t, start(t))
	for _, c := range []struct {
		name string
		m    guestwire.Start
		code int
	}{
		{"not in PATH", guestwire.Start{Argv: []string{"no-such-command"}}, 127},
		{"no such file", guestwire.Start{Argv: []string{"/no/such/file"}}, 127},
		{"folder", guestwire.Start{Argv: []string{"/etc"}}, 126},
		{"not executable", guestwire.Start{Argv: []string{"/etc/passwd"}}, 126},
		{"no interpreter", guestwire.Start{Argv: []string{script}}, 126},
		{"no such folder", guestwire.Start{Argv: []string{"true"}, Cwd: "/no/such/folder"}, 125},
		{"no such user", guestwire.Start{Argv: []string{"true"}, User: "nobody-here"}, 125},
		{"terminal", guestwire.Start{Argv: []string{"true"}, TTY: true}, 125},
		{"empty", guestwire.Start{}, 127},
	} {
		_, err := s.Start(t.Context(), c.m, nil)
		var failed *guestdial.StartError
		if !errors.As(err, &failed) || failed.Code != c.code || failed.Message == "" {
			t.Errorf("%s: %v, want code %d", c.name, err, c.code)
		}
	}
	// The session is none the worse for it.
	if e := wait(t, begin(t, s, sh("exit 0"), nil)); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
}

func TestLongCommand(t *testing.T) {
	s := open(t, start(t))
	o := collect(t)
	long := strings.Repeat("x", 100<<10)
	m := guestwire.Start{Argv: []string{"sh", "-c", `printf %s "$1" "$LONG"`, "sh", long}, Env: []string{"LONG=" + long}, Cwd: "/"}
	if e := wait(t, begin(t, s, m, o.sink)); e.Code != 0 || o.out.String() != long+long {
		t.Errorf("exit %+v, %d bytes", e, o.out.Len())
	}
}

func TestPutFile(t *testing.T) {
	s := open(t, start(t))
	dir := t.TempDir()
	for _, size := range []int{0, 1, guestwire.MaxData, guestwire.MaxData + 1, 1 << 20} {
		path := filepath.Join(dir, "a", "b", "file")
		want := bytes.Repeat([]byte{'z'}, size)
		if err := s.PutFile(t.Context(), path, 0o640, want); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"relative", dir + "/../x", dir, link, "/proc/self/none/x"} {
		var refused *guestdial.RequestError
		if err := s.PutFile(t.Context(), path, 0o600, []byte("x")); !errors.As(err, &refused) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// What a process leaves behind holds up its exit no longer than it takes to
// see that, and its output after that does not count.
func TestOrphanHoldsNothing(t *testing.T) {
	s := open(t, start(t))
	o := collect(t)
	// The orphan leaves the group, so that nothing kills it.
	p := begin(t, s, sh("setsid sh -c 'sleep 3; echo late' & echo pid $!; exit 0"), o.sink)
	began := time.Now()
	if e := wait(t, p); e.Code != 0 || !strings.HasPrefix(o.out.String(), "pid ") {
		t.Errorf("exit %+v %q", e, o.out.String())
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("the exit took %v", d)
	}
}

func TestShutdown(t *testing.T) {
	s := open(t, start(t))
	p := begin(t, s, sh("sleep 100"), nil)
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, guestdial.ErrLost) {
		t.Errorf("the process: %v", err)
	}
}

// Output that still is in the pipe when the command ends counts, however long
// the sink takes for what came before.
func TestOutputBehindTheExit(t *testing.T) {
	s := open(t, start(t))
	release := make(chan struct{})
	unblock := sync.OnceFunc(func() { close(release) })
	t.Cleanup(unblock) // before the session is closed, which waits for sinks
	n := 0
	p := begin(t, s, sh("head -c 190000 /dev/zero"), func(_ guestwire.Flow, _ int64, b []byte) {
		<-release
		n += len(b)
	})
	eventually(t, func() bool { _, ok := p.Exited(); return ok })
	unblock()
	if e := wait(t, p); e.Out != 190000 || n != 190000 || p.Undelivered() != 0 {
		t.Errorf("exit %+v, %d bytes", e, n)
	}
}

func TestWhatIsLeftIsKilled(t *testing.T) {
	s := open(t, start(t))
	o := collect(t)
	if e := wait(t, begin(t, s, sh("sleep 1000 >/dev/null & echo $!"), o.sink)); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	eventually(t, func() bool { return !alive(t, o.out.String()) })
}
