package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tartarusv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExitCodes(t *testing.T) {
	i := func(n int32) *int32 { return &n }
	for _, c := range []struct {
		exit *tartarusv1.Exit
		want int
	}{
		{nil, 125},
		{&tartarusv1.Exit{Cause: "exited", Code: i(0)}, 0},
		{&tartarusv1.Exit{Cause: "exited", Code: i(3)}, 3},
		{&tartarusv1.Exit{Cause: "exited"}, 125},
		{&tartarusv1.Exit{Cause: "signaled", Signal: i(9)}, 137},
		{&tartarusv1.Exit{Cause: "signaled", Signal: i(15)}, 143},
		{&tartarusv1.Exit{Cause: "max_duration", Code: i(0)}, 124},
		{&tartarusv1.Exit{Cause: "memory"}, 137},
		{&tartarusv1.Exit{Cause: "killed"}, 137},
		{&tartarusv1.Exit{Cause: "start_failed"}, 125},
		{&tartarusv1.Exit{Cause: "node_lost"}, 125},
		{&tartarusv1.Exit{Cause: "something new", Code: i(0)}, 125},
	} {
		if got := client.ExitCode(&tartarusv1.Sandbox{Exit: c.exit}); got != c.want {
			t.Errorf("%v: %d, want %d", c.exit, got, c.want)
		}
	}
	if got := client.ExitCode(nil); got != 125 {
		t.Errorf("nil: %d", got)
	}
	for state, want := range map[string]bool{"queued": false, "running": false, "paused": false, "refused": true, "failed": true, "succeeded": true} {
		if got := client.Ended(&tartarusv1.Sandbox{State: state}); got != want {
			t.Errorf("%s: %v", state, got)
		}
	}
	if !client.Ended(&tartarusv1.Sandbox{State: "something new", EndedAt: timestamppb.Now()}) {
		t.Error("an unknown state with ended_at is live")
	}
}

// The client's codes are the server's, all of them.
func TestCodesAreTheTables(t *testing.T) {
	codes := []string{
		client.InvalidArgument, client.Unauthenticated, client.PolicyDenied, client.NotFound, client.Conflict,
		client.TooLarge, client.QuotaExceeded, client.Unsupported, client.Unavailable, client.Internal,
	}
	table := fault.Table()
	if len(table) != len(codes) {
		t.Fatalf("%d codes, %d rows", len(codes), len(table))
	}
	for i, row := range table {
		if codes[i] != row.Code {
			t.Errorf("row %d: %s, want %s", i, codes[i], row.Code)
		}
		if row.Exit != client.ExitFailed {
			t.Errorf("%s: exit code %d, and a failed run is %d", row.Code, row.Exit, client.ExitFailed)
		}
	}
}

func TestTargets(t *testing.T) {
	for target, ok := range map[string]bool{
		"unix:///run/api.sock": true, "http://127.0.0.1:7777": true, "http://localhost": true, "http://[::1]:1/": true, "https://tartarus.example.com": true,
		"": false, "127.0.0.1:7777": false, "http://10.0.0.1:7777": false, "http://tartarus.example.com": false, "unix://relative": false,
		"http://localhost/api": false, "ftp://localhost": false, "http://": false, "http://user:s3cret@localhost": false, "http://localhost?x=1": false, "%": false,
	} {
		c, err := client.Dial(target, "tart_x")
		if (err == nil) != ok {
			t.Errorf("%q: %v", target, err)
		}
		if err == nil {
			c.Close()
			continue
		}
		var e *client.Error
		if !errors.As(err, &e) || e.Code != client.InvalidArgument || e.Hint == "" || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %#v", target, err)
		}
	}
}

// server is a scripted one.
type server struct {
	tartarusv1.UnimplementedSandboxServiceServer
	get    func() (*tartarusv1.Sandbox, error)
	logs   func(*tartarusv1.LogsRequest, grpc.ServerStreamingServer[tartarusv1.LogEntry]) error
	events func(*tartarusv1.EventsRequest, grpc.ServerStreamingServer[tartarusv1.Event]) error
	stdin  func(grpc.ClientStreamingServer[tartarusv1.StdinRequest, tartarusv1.StdinResponse]) error
}

func (s *server) Get(context.Context, *tartarusv1.GetRequest) (*tartarusv1.Sandbox, error) {
	return s.get()
}

func (s *server) Logs(r *tartarusv1.LogsRequest, w grpc.ServerStreamingServer[tartarusv1.LogEntry]) error {
	return s.logs(r, w)
}

func (s *server) Events(r *tartarusv1.EventsRequest, w grpc.ServerStreamingServer[tartarusv1.Event]) error {
	return s.events(r, w)
}

func (s *server) Stdin(r grpc.ClientStreamingServer[tartarusv1.StdinRequest, tartarusv1.StdinResponse]) error {
	return s.stdin(r)
}

func start(t *testing.T, s *server) *client.Client {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	tartarusv1.RegisterSandboxServiceServer(g, s)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	c, err := client.Dial("http://localhost", "tart_x", client.WithDialer(l.DialContext))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func unavailable() error {
	s, _ := status.New(codes.Unavailable, "stopping").WithDetails(&tartarusv1.Error{Code: "unavailable", RetryAfter: durationpb.New(time.Millisecond)})
	return s.Err()
}

// A follower whose connection breaks goes on where it was: no byte is lost,
// none comes twice.
func TestFollowersGoOn(t *testing.T) {
	const text = "the quick brown fox jumps over the lazy dog"
	var asked []float64
	c := start(t, &server{logs: func(r *tartarusv1.LogsRequest, w grpc.ServerStreamingServer[tartarusv1.LogEntry]) error {
		asked = append(asked, r.GetOffset())
		if len(asked) > 1 && r.Tail != nil {
			t.Error("the tail is asked for again")
		}
		for at := int(r.GetOffset()); at < len(text); at += 5 {
			if at > 0 && at%15 == 0 && int(r.GetOffset()) != at {
				return unavailable()
			}
			if err := w.Send(&tartarusv1.LogEntry{Offset: float64(at), Data: []byte(text[at:min(at+5, len(text))])}); err != nil {
				return err
			}
		}
		return nil
	}})
	var got strings.Builder
	tail := int32(100)
	for e, err := range c.Logs(t.Context(), &tartarusv1.LogsRequest{Id: "x", Follow: true, Tail: &tail}) {
		if err != nil {
			t.Fatal(err)
		}
		got.Write(e.GetData())
	}
	if got.String() != text || fmt.Sprint(asked) != "[0 15 30]" {
		t.Errorf("got %q, asked from %v", got.String(), asked)
	}
	// Who does not follow hears of it at once.
	asked = nil
	var last error
	for _, err := range c.Logs(t.Context(), &tartarusv1.LogsRequest{Id: "x"}) {
		last = err
	}
	if client.CodeOf(last) != client.Unavailable || len(asked) != 1 {
		t.Errorf("got %v after %d tries", last, len(asked))
	}
	// Who has enough ends the stream.
	for _, err := range c.Logs(t.Context(), &tartarusv1.LogsRequest{Id: "x", Follow: true}) {
		if err != nil {
			t.Error(err)
		}
		break
	}
}

func TestFollowersGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int32
		c := start(t, &server{events: func(*tartarusv1.EventsRequest, grpc.ServerStreamingServer[tartarusv1.Event]) error {
			tries.Add(1)
			return unavailable()
		}})
		began := time.Now()
		_, err := c.Wait(t.Context(), "x")
		if client.CodeOf(err) != client.Unavailable {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < 10*time.Second || took > time.Minute || tries.Load() < 5 {
			t.Errorf("gave up after %d tries, %v", tries.Load(), took)
		}
		// Nor does it outlast its context.
		tries.Store(0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Wait(ctx, "x"); err == nil || time.Since(began) > 2*time.Minute {
			t.Errorf("got %v", err)
		}
	})
}

func TestWaitSeesTheEnd(t *testing.T) {
	var gets atomic.Int32
	c := start(t, &server{
		events: func(_ *tartarusv1.EventsRequest, w grpc.ServerStreamingServer[tartarusv1.Event]) error {
			return w.Send(&tartarusv1.Event{Seq: 1, State: "queued"})
		},
		get: func() (*tartarusv1.Sandbox, error) {
			if gets.Add(1) < 3 {
				return &tartarusv1.Sandbox{State: "stopping"}, nil
			}
			return &tartarusv1.Sandbox{State: "succeeded"}, nil
		},
	})
	if sb, err := c.Wait(t.Context(), "x"); err != nil || sb.GetState() != "succeeded" {
		t.Errorf("got %v %v", sb, err)
	}
}

func TestErrorsOfOthers(t *testing.T) {
	var answer error
	c := start(t, &server{get: func() (*tartarusv1.Sandbox, error) { return nil, answer }})
	for code, want := range map[codes.Code]string{
		codes.Unavailable: client.Unavailable, codes.ResourceExhausted: client.TooLarge, codes.Unimplemented: client.Unsupported,
		codes.DataLoss: client.Internal, codes.Unknown: client.Internal, codes.FailedPrecondition: client.Conflict,
	} {
		answer = status.Error(code, "a proxy's words")
		if _, err := c.Get(t.Context(), "x"); client.CodeOf(err) != want || !strings.Contains(err.Error(), "a proxy's words") {
			t.Errorf("%v: %v", code, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := client.CodeOf(nil) + client.CodeOf(io.EOF); got != client.Internal {
		t.Errorf("got %q", got)
	}
	nobody, err := client.Dial("http://localhost", "", client.WithDialer(func(context.Context) (net.Conn, error) { return nil, errors.New("nobody is there") }))
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	_, err = nobody.Get(t.Context(), "x")
	var e *client.Error
	if !errors.As(err, &e) || e.Code != client.Unavailable || e.Hint == "" || !strings.Contains(e.Message, "nobody is there") {
		t.Errorf("got %#v", err)
	}
}

// An answer that comes before the input has ended is not waited for in vain.
func TestStdinIsAnsweredEarly(t *testing.T) {
	c := start(t, &server{stdin: func(s grpc.ClientStreamingServer[tartarusv1.StdinRequest, tartarusv1.StdinResponse]) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer tart_x" {
			t.Errorf("authorization %q", got)
		}
		first, err := s.Recv()
		if err != nil || first.GetId() != "x" {
			t.Errorf("the first message is %v, %v", first, err)
		}
		return status.Error(codes.FailedPrecondition, "it has ended")
	}})
	in, w := io.Pipe()
	defer w.Close() // so that the read that blocks ends
	if _, err := c.Stdin(t.Context(), "x", in); client.CodeOf(err) != client.Conflict {
		t.Errorf("got %v", err)
	}
}
