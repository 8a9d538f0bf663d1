package olympus_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/control/themis/themistest"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// dial makes a client over TCP.
func (w *world) dial(token string) *client.Client {
	w.t.Helper()
	c := must(client.Dial(w.url, token))(w.t)
	w.t.Cleanup(func() { c.Close() })
	return c
}

func wantError(t *testing.T, err error, code, field string) {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Code != code || e.Field != field || e.RequestID == "" || e.Message == "" {
		t.Fatalf("got %v (%+v), want %s on %q", err, e, code, field)
	}
}

func TestTheClientRunsASandbox(t *testing.T) {
	w := newWorld(t)
	c := w.dial(w.token("acme"))
	ctx := t.Context()
	req := &apiv1.RunRequest{Command: []string{"cat"}, StdinOpen: true, MaxDuration: durationpb.New(90 * time.Second)}
	sb := must(c.Run(ctx, req, client.WithIdempotencyKey("k")))(t)
	if sb.GetState() != "queued" || sb.GetRequest().GetMaxDuration().AsDuration() != 90*time.Second || client.Ended(sb) {
		t.Errorf("got %v", sb)
	}
	if again := must(c.Run(ctx, req, client.WithIdempotencyKey("k")))(t); again.GetId() != sb.GetId() {
		t.Error("the key made a second sandbox")
	}
	_, err := c.Run(ctx, &apiv1.RunRequest{Command: []string{"dog"}}, client.WithIdempotencyKey("k"))
	wantError(t, err, client.Conflict, "")

	type got struct {
		out  []byte
		n    int64
		sb   *apiv1.Sandbox
		errs []error
	}
	logs, fed, waited := make(chan got, 1), make(chan got, 1), make(chan got, 1)
	go func() {
		var g got
		for e, err := range c.Logs(ctx, &apiv1.LogsRequest{Id: sb.GetId(), Follow: true}) {
			g.out, g.errs = append(g.out, e.GetData()...), append(g.errs, err)
		}
		logs <- g
	}()
	go func() {
		n, err := c.Stdin(ctx, sb.GetId(), strings.NewReader("some input"))
		fed <- got{n: n, errs: []error{err}}
	}()
	go func() {
		sb, err := c.Wait(ctx, sb.GetId())
		waited <- got{sb: sb, errs: []error{err}}
	}()
	a := w.place()
	l := w.output(sandbox.ID(sb.GetId()), 0)
	appendTo(t, l, hermes.Stdout, "hello ")
	appendTo(t, l, hermes.Stderr, "world")
	if g := <-fed; g.n != 10 || errors.Join(g.errs...) != nil {
		t.Errorf("stdin took %d bytes, %v", g.n, g.errs)
	}
	w.nodes.mu.Lock()
	if in := w.nodes.stdin[sandbox.ID(sb.GetId())].String(); in != "some input" {
		t.Errorf("the command got %q", in)
	}
	w.nodes.mu.Unlock()
	w.end(a, 7)
	if g := <-logs; string(g.out) != "hello world" || errors.Join(g.errs...) != nil {
		t.Errorf("logs: %q %v", g.out, g.errs)
	}
	if g := <-waited; errors.Join(g.errs...) != nil || client.ExitCode(g.sb) != 7 {
		t.Errorf("waited: %v %v", g.sb, g.errs)
	}
	var states []string
	for e, err := range c.Events(ctx, &apiv1.EventsRequest{Id: sb.GetId()}) {
		states = append(states, e.GetState())
		if err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(states, []string{"queued", "assigned", "starting", "running", "failed"}) {
		t.Errorf("events: %v", states)
	}
	if k := must(c.Kill(ctx, sb.GetId(), -1))(t); k.GetState() != "failed" {
		t.Errorf("killing the ended: %v", k)
	}
	_, err = c.Stdin(ctx, sb.GetId(), strings.NewReader("late"))
	wantError(t, err, client.Conflict, "")
	_, err = c.Get(ctx, "sb-01m855ky5x7g0esszyte7tsqv4")
	wantError(t, err, client.NotFound, "")
	_, err = c.Operators().ListNodes(ctx, &apiv1.ListNodesRequest{})
	wantError(t, err, client.PolicyDenied, "")
	_, err = w.dial("").List(ctx, &apiv1.ListRequest{})
	wantError(t, err, client.Unauthenticated, "")
}

// The same table of fields as over HTTP.
func TestEveryFieldOfRunIsBoundedOverGRPC(t *testing.T) {
	w := newWorld(t)
	c := w.dial(w.token("acme"))
	for _, k := range themistest.Cases() {
		req := themistest.Request()
		k.Change(&req)
		if r := req.Resources; max(int64(r.VCPUs), r.MemoryMiB, r.DiskMiB, int64(r.Processes)) > math.MaxInt32 {
			continue // the message cannot say it
		}
		_, err := c.Run(t.Context(), messageOf(req))
		var e *client.Error
		if k.Field == "" {
			if errors.As(err, &e) && e.Code == client.InvalidArgument {
				t.Errorf("%s: refused as malformed: %v", k.Name, e)
			}
			continue
		}
		if !errors.As(err, &e) {
			t.Errorf("%s: got %v", k.Name, err)
			continue
		}
		switch {
		case e.Code == client.TooLarge: // the message's own bound came first
		case e.RequestID == "" && e.Code == client.Internal && strings.Contains(e.Message, "UTF-8"): // it could not even be sent
		case e.Code != client.InvalidArgument || e.Field != k.Field || e.Hint == "":
			t.Errorf("%s: got %+v, want field %s", k.Name, e, k.Field)
		}
	}
}

func messageOf(r sandbox.Request) *apiv1.RunRequest {
	out := &apiv1.RunRequest{
		Template: r.Template, Command: r.Command, Name: r.Name, Env: r.Env, WorkingDir: r.WorkingDir, User: r.User,
		Stdin: r.Stdin, StdinOpen: r.StdinOpen, Labels: r.Labels, NodeSelector: r.NodeSelector,
		Resources: &apiv1.Resources{
			Vcpus: int32(r.Resources.VCPUs), MemoryMib: int32(r.Resources.MemoryMiB),
			DiskMib: int32(r.Resources.DiskMiB), Processes: int32(r.Resources.Processes),
		},
		Network: &apiv1.NetworkContract{},
	}
	if r.MaxDuration != 0 {
		out.MaxDuration = durationpb.New(r.MaxDuration)
	}
	for _, f := range r.Files {
		out.Files = append(out.Files, &apiv1.File{Path: f.Path, Mode: f.Mode, Data: f.Data})
	}
	for _, g := range r.Network.Allow {
		grant := &apiv1.Grant{Domain: g.Domain, Cidr: g.CIDR, Protocol: g.Protocol}
		for _, p := range g.Ports {
			grant.Ports = append(grant.Ports, int32(p))
		}
		out.Network.Allow = append(out.Network.Allow, grant)
	}
	return out
}

// plain makes a gRPC connection without our client.
func (w *world) plain() *grpc.ClientConn {
	w.t.Helper()
	conn := must(grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(w.url, "http://"))
		}), grpc.WithAuthority("localhost")))(w.t)
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func TestReflectionAndHealth(t *testing.T) {
	w := newWorld(t)
	conn := w.plain()
	if h, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || h.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health without a token: %v %v", h, err)
	}
	list := func(ctx context.Context) ([]string, error) {
		stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		if err != nil {
			return nil, err
		}
		if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		resp, err := stream.Recv()
		var names []string
		for _, s := range resp.GetListServicesResponse().GetService() {
			names = append(names, s.GetName())
		}
		_ = stream.CloseSend()
		return names, err
	}
	if _, err := list(t.Context()); status.Code(err) != codes.Unauthenticated {
		t.Errorf("reflection without a token: %v", err)
	}
	names, err := list(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+w.token("acme", sandbox.ScopeRead)))
	for _, want := range []string{"tartarus.v1.SandboxService", "tartarus.v1.OperatorService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("reflection shows %v (%v), not %s", names, err, want)
		}
	}
}

// A status carries the contract's Error, and gRPC's code is the table's.
func TestStatusDetails(t *testing.T) {
	w := newWorld(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+w.token("acme"))
	_, err := apiv1.NewSandboxServiceClient(w.plain()).Run(ctx, &apiv1.RunRequest{Command: []string{"id"}, User: "root"})
	s := status.Convert(err)
	if uint32(s.Code()) != fault.PolicyDenied.Row().GRPC || len(s.Details()) != 1 {
		t.Fatalf("got %v", err)
	}
	d, ok := s.Details()[0].(*apiv1.Error)
	if !ok || d.GetCode() != "policy_denied" || !sandbox.ID(d.GetId()).Valid() || d.GetRequestId() == "" {
		t.Errorf("got %v", s.Details())
	}
	_, err = apiv1.NewSandboxServiceClient(w.plain()).Run(ctx, &apiv1.RunRequest{Command: []string{"id"}, Stdin: make([]byte, 3<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message of 3 MiB: %v", err)
	}
}

// A client that goes away takes its stream with it.
func TestAStreamEndsWithItsClient(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	c := w.dial(token)
	id := w.run(token, `{"command":["cat"],"stdin_open":true}`)
	w.place()
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	defer pw.Close()
	done := make(chan error, 1)
	go func() {
		_, err := c.Stdin(ctx, string(id), pr)
		done <- err
	}()
	if _, err := pw.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for strings.Contains(w.ask(ask{path: "/metrics", token: token}).body, "tartarus_api_streams 1") {
		if t.Context().Err() != nil {
			t.Fatal("the stream is still open")
		}
	}
}

// What breaks in the caller's own reader is the caller's to hear.
func TestStdinThatBreaks(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := w.run(token, `{"command":["cat"],"stdin_open":true}`)
	w.place()
	broken := errors.New("the disk is gone")
	_, err := w.dial(token).Stdin(t.Context(), string(id), io.MultiReader(bytes.NewReader([]byte("x")), failingReader{broken}))
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

// A stream on which nothing happens for longer than a write may take goes on.
func TestAnIdleStreamGoesOn(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.WriteTimeout = 100 * time.Millisecond })
	id := w.run(w.token("acme"), `{"command":["true"]}`)
	a := w.place()
	l := w.output(id, 0)
	appendTo(t, l, hermes.Stdout, "one")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+w.token("acme"))
	stream := must(apiv1.NewSandboxServiceClient(w.plain()).Logs(ctx, &apiv1.LogsRequest{Id: string(id), Follow: true}))(t)
	if e := must(stream.Recv())(t); string(e.GetData()) != "one" {
		t.Fatalf("got %v", e)
	}
	time.Sleep(400 * time.Millisecond) // the silence is what is tested
	appendTo(t, l, hermes.Stdout, "two")
	if e, err := stream.Recv(); err != nil || string(e.GetData()) != "two" {
		t.Fatalf("got %v %v", e, err)
	}
	w.end(a, 0)
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end is %v", err)
	}
}
