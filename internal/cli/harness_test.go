package cli

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeServer is an API server that says what the test wants. Its one sandbox
// ends when ended is closed.
type fakeServer struct {
	apiv1.UnimplementedSandboxServiceServer
	apiv1.UnimplementedOperatorServiceServer

	refuse  error             // what Run answers
	asked   chan struct{}     // told when Run came
	answer  chan struct{}     // if set, Run waits for it
	sandbox *apiv1.Sandbox    // the ended record
	list    []*apiv1.Sandbox  // in pages of two
	logs    []*apiv1.LogEntry // before the end
	talk    bool              // it writes for ever

	mu     sync.Mutex
	audits []*apiv1.ListAuditRequest
	ran    *apiv1.RunRequest
	token  string
	states []string // that List was asked for
	kills  []time.Duration
	stdin  bytes.Buffer
	ended  chan struct{}
	killed chan time.Duration // each kill, as it comes
	once   sync.Once
}

func newFake() *fakeServer {
	return &fakeServer{
		sandbox: exited(0), ended: make(chan struct{}), asked: make(chan struct{}, 8), killed: make(chan time.Duration, 8),
	}
}

const testID = "sb-01kar8zzzzzzzzzzzzzzzzzzzz"

// exited is the record of a command that exited.
func exited(code int32) *apiv1.Sandbox {
	state := "succeeded"
	if code != 0 {
		state = "failed"
	}
	return &apiv1.Sandbox{
		Id: testID, State: state, Tenant: "local", EndedAt: timestamppb.Now(), Exit: &apiv1.Exit{Cause: "exited", Code: &code},
		Request: &apiv1.ResolvedRequest{Template: "base", Command: []string{"true"}},
		Timings: &apiv1.Timings{Judged: 1, Queued: 2, VmReady: 40, Total: 50},
	}
}

// ends is the record of a sandbox that ended for another cause.
func ends(cause string) *apiv1.Sandbox {
	return &apiv1.Sandbox{Id: testID, State: "failed", EndedAt: timestamppb.Now(), Exit: &apiv1.Exit{Cause: cause, Message: "so it was"}}
}

func (s *fakeServer) end() { s.once.Do(func() { close(s.ended) }) }

func (s *fakeServer) note(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := md.Get("authorization"); len(t) > 0 {
		s.token = t[0]
	}
}

func (s *fakeServer) Run(ctx context.Context, req *apiv1.RunRequest) (*apiv1.Sandbox, error) {
	s.note(ctx)
	s.asked <- struct{}{}
	if s.answer != nil {
		select {
		case <-s.answer:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ran = req
	if s.refuse != nil {
		return nil, s.refuse
	}
	return &apiv1.Sandbox{Id: testID, State: "queued"}, nil
}

func (s *fakeServer) Get(_ context.Context, req *apiv1.GetRequest) (*apiv1.Sandbox, error) {
	if req.GetId() != testID {
		return nil, refusal(codes.NotFound, &apiv1.Error{Code: "not_found", Message: "there is no such sandbox"})
	}
	return s.sandbox, nil
}

func (s *fakeServer) Logs(req *apiv1.LogsRequest, w grpc.ServerStreamingServer[apiv1.LogEntry]) error {
	for _, e := range s.logs {
		if err := w.Send(e); err != nil {
			return err
		}
	}
	for s.talk {
		select {
		case <-s.ended:
			return nil
		default:
		}
		if err := w.Send(&apiv1.LogEntry{Stream: "stdout", Data: []byte("y\n")}); err != nil {
			return err
		}
	}
	return s.untilEnd(w.Context())
}

func (s *fakeServer) untilEnd(ctx context.Context) error {
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *fakeServer) Events(_ *apiv1.EventsRequest, w grpc.ServerStreamingServer[apiv1.Event]) error {
	if err := w.Send(&apiv1.Event{Seq: 1, Time: timestamppb.New(time.Unix(1, 0)), State: "queued"}); err != nil {
		return err
	}
	return s.untilEnd(w.Context())
}

func (s *fakeServer) Kill(ctx context.Context, req *apiv1.KillRequest) (*apiv1.Sandbox, error) {
	if req.GetId() != testID {
		return nil, refusal(codes.NotFound, &apiv1.Error{Code: "not_found", Message: "there is no such sandbox"})
	}
	grace := req.GetGrace().AsDuration()
	s.mu.Lock()
	s.kills = append(s.kills, grace)
	s.mu.Unlock()
	s.killed <- grace
	return s.sandbox, nil
}

func (s *fakeServer) Stdin(w grpc.ClientStreamingServer[apiv1.StdinRequest, apiv1.StdinResponse]) error {
	for {
		req, err := w.Recv()
		if err == io.EOF { //nolint:errorlint // gRPC says so, bare
			s.end() // as cat does
			return w.SendAndClose(&apiv1.StdinResponse{})
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.stdin.Write(req.GetData())
		s.mu.Unlock()
	}
}

func (s *fakeServer) List(ctx context.Context, req *apiv1.ListRequest) (*apiv1.ListResponse, error) {
	s.note(ctx)
	s.mu.Lock()
	s.states = req.GetState()
	s.mu.Unlock()
	from := len(req.GetPageToken())
	size := min(cmp.Or(req.GetPageSize(), 2), 2)
	to := min(from+int(size), len(s.list))
	resp := &apiv1.ListResponse{Sandboxes: s.list[from:to]}
	if to < len(s.list) {
		resp.NextPageToken = string(bytes.Repeat([]byte("x"), to))
	}
	return resp, nil
}

func (s *fakeServer) ListTemplates(context.Context, *apiv1.ListTemplatesRequest) (*apiv1.ListTemplatesResponse, error) {
	return &apiv1.ListTemplatesResponse{Templates: []*apiv1.Template{{Name: "of-the-server"}}}, nil
}

func refusal(c codes.Code, e *apiv1.Error) error {
	s, err := status.New(c, e.GetMessage()).WithDetails(e)
	if err != nil {
		return err
	}
	return s.Err()
}

// listen serves s on a Unix socket and returns its path.
func (s *fakeServer) listen(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli-") // short: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	apiv1.RegisterSandboxServiceServer(g, s)
	apiv1.RegisterOperatorServiceServer(g, s)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		s.end()
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return socket
}

// call is one call of the command line.
type call struct {
	in     io.Reader
	out    io.Writer // a buffer if nil
	env    map[string]string
	inside Inside
	term   bool // stdout and stderr are terminals
	noIn   bool
	system string // the host's file of settings
}

type result struct {
	code        int
	out, errout string
}

// main calls the command line.
func (c call) main(t *testing.T, args ...string) result {
	t.Helper()
	var out, errout syncBuffer
	cfg := Config{Version: "1.2.3", Inside: c.inside, SystemConfig: c.system, IO: IO{
		In: c.in, Out: c.out, Err: &errout, OutTerminal: c.term, ErrTerminal: c.term, NoInput: c.noIn,
		Lookup: func(k string) (string, bool) { v, ok := c.env[k]; return v, ok },
	}}
	if c.in == nil {
		cfg.IO.In = bytes.NewReader(nil)
	}
	if c.out == nil {
		cfg.IO.Out = &out
	}
	if cfg.Inside.Sockets == nil {
		cfg.Inside.Sockets = func(string) []string { return nil }
	}
	code := Main(t.Context(), cfg, args)
	return result{code, out.String(), errout.String()}
}

// with is a call that reaches the server on the socket.
func with(socket string) call {
	return call{env: map[string]string{"TARTARUS_URL": "unix://" + socket}}
}

// syncBuffer is a buffer that several write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
