package hecatoncheir

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

type noBlobs struct{}

func (*noBlobs) Put(context.Context, io.Reader) (sandbox.Digest, error) {
	return "", fault.New(fault.Unavailable, "full")
}

func loggerTo(w io.Writer, mu *sync.Mutex) *slog.Logger {
	return slog.New(slog.NewTextHandler(locked{w, mu}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type locked struct {
	w  io.Writer
	mu *sync.Mutex
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// client reaches the agent over real gRPC.
func (w *world) client() nodev1.NodeServiceClient {
	w.t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	nodev1.RegisterNodeServiceServer(s, w.a)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l)
	}()
	conn, err := grpc.NewClient("passthrough:node", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		<-served
	})
	return nodev1.NewNodeServiceClient(conn)
}

// follow reads a log to its end.
func follow(ctx context.Context, c nodev1.NodeServiceClient, id sandbox.ID, offset int64) (string, error) {
	s, err := c.Logs(ctx, &nodev1.LogsRequest{Sandbox: string(id), Offset: offset, Follow: true})
	if err != nil {
		return "", nodewire.FromStatus(err)
	}
	var b bytes.Buffer
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return b.String(), nil
		}
		if err != nil {
			return b.String(), nodewire.FromStatus(err)
		}
		if m.GetOffset() != offset+int64(b.Len()) {
			return b.String(), errors.New("a gap")
		}
		b.Write(m.GetData())
	}
}

func TestInputAndLogsLive(t *testing.T) {
	w := newWorld(t, options{})
	c := w.client()
	as := w.assign(job{
		command: []string{"cat"}, secrets: sandbox.Secrets{Stdin: []byte("first ")},
		change: func(r *sandbox.Resolved) { r.StdinOpen = true },
	})
	w.c.awaitState(t, as, sandbox.Running)
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	followed := make(chan string, 1)
	go func() {
		got, err := follow(ctx, c, as.Sandbox, 2)
		if err != nil {
			got = err.Error()
		}
		followed <- got
	}()
	broken, err := c.Stdin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	bctx, bcancel := context.WithCancel(ctx)
	half, err := c.Stdin(bctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := half.Send(&nodev1.StdinRequest{Sandbox: string(as.Sandbox), Data: []byte("second ")}); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, w, as.Sandbox, 13)
	if err := broken.Send(&nodev1.StdinRequest{Sandbox: string(as.Sandbox), Data: []byte("intruder")}); err != nil {
		t.Fatal(err)
	}
	if _, err := broken.CloseAndRecv(); !fault.Is(nodewire.FromStatus(err), fault.Conflict) {
		t.Errorf("a second writer: %v", err)
	}
	bcancel() // breaks off, which is no end of the input
	if err := sendLast(ctx, c, as.Sandbox); err != nil {
		t.Errorf("the end of the input: %v", nodewire.FromStatus(err))
	}
	got := w.c.awaitEnd(t, as)
	if log := strings.ReplaceAll(w.log(got.end), "stdout:", ""); log != "first second third" {
		t.Errorf("log %q", log)
	}
	if got := <-followed; got != "rst second third" {
		t.Errorf("the follower got %q", got)
	}
	w.nothingLeft()
	if _, err := follow(ctx, c, as.Sandbox, 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("the log of one that is gone: %v", err)
	}
}

// sendLast sends the last piece and the end, as soon as the writer before has
// let go.
func sendLast(ctx context.Context, c nodev1.NodeServiceClient, id sandbox.ID) error {
	for {
		s, err := c.Stdin(ctx)
		if err != nil {
			return err
		}
		_ = s.Send(&nodev1.StdinRequest{Sandbox: string(id), Data: []byte("third")}) // the answer says what became of it
		if _, err = s.CloseAndRecv(); !fault.Is(nodewire.FromStatus(err), fault.Conflict) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func awaitLog(t *testing.T, w *world, id sandbox.ID, n int64) {
	t.Helper()
	l, err := w.a.get(id)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patient)
	for {
		l.mu.Lock()
		got := l.output.Bytes()
		l.mu.Unlock()
		if got >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log has %d bytes, want %d", got, n)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestInputThatNobodyTakes(t *testing.T) {
	w := newWorld(t, options{})
	c := w.client()
	req, as := w.request(job{command: []string{"sleep", "forever"}})
	if _, err := w.a.Assign(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w.c.awaitState(t, as, sandbox.Running)
	for id, want := range map[sandbox.ID]fault.Kind{as.Sandbox: fault.Conflict, "sb-00000000000000000000000000": fault.NotFound} {
		s, err := c.Stdin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Send(&nodev1.StdinRequest{Sandbox: string(id), Data: []byte("x")})
		if _, err := s.CloseAndRecv(); !fault.Is(nodewire.FromStatus(err), want) {
			t.Errorf("%s: %v, want %v", id, err, want)
		}
	}
	if err := w.kill(req, as, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as)
	w.nothingLeft()
}

func TestAStoreThatIsFullLosesTheLogAndNotTheEnd(t *testing.T) {
	w := newWorld(t, options{config: func(c *Config) { c.Blobs = &noBlobs{} }})
	got := w.c.awaitEnd(t, w.assign(job{command: []string{"echo", "x"}}))
	if got.end.Exit.State() != sandbox.Succeeded || got.end.LogDigest != "" || got.end.Exit.Usage.LogBytes != 2 {
		t.Errorf("%+v", got.end)
	}
	w.nothingLeft()
}

// TestAFollowerWaitsForTheLog asks before there is one.
func TestAFollowerWaitsForTheLog(t *testing.T) {
	goOn, heard := make(chan struct{}), make(chan struct{})
	w := newWorld(t, options{
		fail: func(step string) error {
			if step == "folder" {
				<-goOn
			}
			return nil
		},
		script: func(int, tartarus.Spec) fakevm.Script {
			return fakevm.Script{Commands: map[string]fakevm.Command{"speak": func(ctx context.Context, p *fakevm.Proc) int {
				_, _ = io.WriteString(p.Stdout, "x")
				select {
				case <-heard:
				case <-ctx.Done():
				}
				return 0
			}}}
		},
	})
	c := w.client()
	as := w.assign(job{command: []string{"speak"}})
	s, err := c.Logs(t.Context(), &nodev1.LogsRequest{Sandbox: string(as.Sandbox)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !fault.Is(nodewire.FromStatus(err), fault.Unavailable) {
		t.Errorf("a reader that does not follow: %v", err)
	}
	if s, err = c.Logs(t.Context(), &nodev1.LogsRequest{Sandbox: string(as.Sandbox), Follow: true}); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if m, err := s.Recv(); err != nil || string(m.GetData()) != "x" {
		t.Errorf("got %v, %v", m, err)
	}
	close(heard)
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
	w.c.awaitEnd(t, as)
	w.nothingLeft()
}
