package guestd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
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
type plain struct{ mu sync.Mutex }

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

// sockets is a port of Unix sockets: a new connection takes the place of the
// one before, as a returning host does on virtio-serial.
type sockets struct {
	listener int
	conn     int
	epfd     int
}

func listenOn(path string) (*sockets, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	return &sockets{listener: fd, conn: -1}, unix.Listen(fd, 8)
}

func (p *sockets) Register(epfd int) error {
	p.epfd = epfd
	return unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, p.listener, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.listener)})
}

func (p *sockets) Ready(fd int) bool {
	if fd == p.listener {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err == nil {
			p.close()
			p.conn = conn
			_ = unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, conn, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET&0xffffffff, Fd: int32(conn)})
		}
		return true
	}
	return fd == p.conn
}

func (p *sockets) close() {
	if p.conn >= 0 {
		unix.Close(p.conn)
	}
	p.conn = -1
}

func (p *sockets) move(n int, err error) (int, error) {
	switch {
	case err == unix.EINTR || err == unix.EAGAIN:
		return 0, guestd.ErrAgain
	case err != nil || n <= 0:
		p.close()
		return 0, guestd.ErrAgain
	}
	return n, nil
}

func (p *sockets) Read(b []byte) (int, error) {
	if p.conn < 0 {
		return 0, guestd.ErrAgain
	}
	return p.move(unix.Read(p.conn, b))
}

func (p *sockets) Write(b []byte) (int, error) {
	if p.conn < 0 {
		return 0, guestd.ErrAgain
	}
	return p.move(unix.SendmsgN(p.conn, b, nil, nil, unix.MSG_NOSIGNAL))
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
		port.close()
		unix.Close(port.listener)
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

func TestWhatIsLeftIsKilled(t *testing.T) {
	s := open(t, start(t))
	o := collect(t)
	if e := wait(t, begin(t, s, sh("sleep 1000 >/dev/null & echo $!"), o.sink)); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	eventually(t, func() bool { return !alive(t, o.out.String()) })
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
	c.Conn.Close()
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
