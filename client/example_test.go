package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	tartarusv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// Run a command, show its output, and learn how it ended.
func Example() {
	ctx := context.Background()
	c, stop := dial() // client.Dial("http://127.0.0.1:7777", os.Getenv("TARTARUS_TOKEN"))
	defer stop()

	sb, err := c.Run(ctx, &tartarusv1.RunRequest{Command: []string{"sh", "-c", "echo hello; exit 3"}})
	if err != nil {
		log.Fatal(err)
	}
	for entry, err := range c.Logs(ctx, &tartarusv1.LogsRequest{Id: sb.GetId(), Follow: true}) {
		if err != nil {
			log.Fatal(err)
		}
		os.Stdout.Write(entry.GetData())
	}
	if sb, err = c.Wait(ctx, sb.GetId()); err != nil {
		log.Fatal(err)
	}
	fmt.Println(sb.GetState(), client.ExitCode(sb))
	// Output:
	// hello
	// failed 3
}

// A request may say more than its command: everything else has a default from
// the policy, and the record shows what it became.
func ExampleClient_Run() {
	c, stop := dial()
	defer stop()
	sb, err := c.Run(context.Background(), &tartarusv1.RunRequest{
		Template: "debian", Command: []string{"python3", "/work/a.py"},
		Files:       []*tartarusv1.File{{Path: "/work/a.py", Mode: 0o644, Data: []byte("print(40+2)")}},
		Env:         map[string]string{"LANG": "C.UTF-8"},
		Resources:   &tartarusv1.Resources{Vcpus: 1, MemoryMib: 256},
		MaxDuration: durationpb.New(time.Minute),
		Network:     &tartarusv1.NetworkContract{Allow: []*tartarusv1.Grant{{Cidr: "203.0.113.0/24", Protocol: "tcp", Ports: []int32{443}}}},
		Labels:      map[string]string{"team": "ci"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sb.GetId(), sb.GetState())
	// Output: sb-01k9demo000000000000000000 queued
}

// An error of the server says what happened, where, and what to do about it.
func ExampleError() {
	c, stop := dial()
	defer stop()
	_, err := c.Run(context.Background(), &tartarusv1.RunRequest{Command: []string{"true"}, User: "root"})
	var e *client.Error
	if errors.As(err, &e) && e.Code == client.PolicyDenied {
		fmt.Println(e.Message)
		fmt.Println(e.Hint)
		fmt.Println(e.Field, e.ID)
	}
	// Output:
	// Commands do not run as root.
	// Ask for another user, or leave it out.
	// user sb-01k9refused0000000000000000
}

// A key makes a repetition after a broken connection harmless: the same
// sandbox is answered again.
func ExampleWithIdempotencyKey() {
	ctx := context.Background()
	c, stop := dial()
	defer stop()
	req := &tartarusv1.RunRequest{Command: []string{"echo", "once"}}
	key := client.WithIdempotencyKey("5f0c7a52-6c1e-4a53-9a2c-3f1f0f2a9d11")
	first, err := c.Run(ctx, req, key)
	if err != nil {
		log.Fatal(err)
	}
	again, err := c.Run(ctx, req, key)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(first.GetId() == again.GetId())
	// Output: true
}

// Pages go on from the token of the page before.
func ExampleClient_List() {
	ctx := context.Background()
	c, stop := dial()
	defer stop()
	req := &tartarusv1.ListRequest{State: []string{"running"}, Label: []string{"team=ci"}, PageSize: 2}
	for {
		page, err := c.List(ctx, req)
		if err != nil {
			log.Fatal(err)
		}
		for _, sb := range page.GetSandboxes() {
			fmt.Println(sb.GetName())
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	// Output:
	// third
	// second
	// first
}

// Standard input goes to a sandbox that was run with stdin_open.
func ExampleClient_Stdin() {
	ctx := context.Background()
	c, stop := dial()
	defer stop()
	sb, err := c.Run(ctx, &tartarusv1.RunRequest{Command: []string{"cat"}, StdinOpen: true})
	if err != nil {
		log.Fatal(err)
	}
	n, err := c.Stdin(ctx, sb.GetId(), strings.NewReader("to the command"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "bytes")
	// Output: 14 bytes
}

// Events are every change of state.
func ExampleClient_Events() {
	c, stop := dial()
	defer stop()
	for event, err := range c.Events(context.Background(), &tartarusv1.EventsRequest{Id: demoID, Follow: true}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s %q\n", event.GetSeq(), event.GetState(), event.GetCause())
	}
	// Output:
	// 1 queued ""
	// 2 running ""
	// 3 failed "exited"
}

// Killing is idempotent: an ended sandbox is answered as it is.
func ExampleClient_Kill() {
	c, stop := dial()
	defer stop()
	sb, err := c.Kill(context.Background(), demoID, 0)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sb.GetState(), client.Ended(sb))
	// Output: failed true
}

// Operators have more to look at.
func ExampleClient_Operators() {
	c, stop := dial()
	defer stop()
	resp, err := c.Operators().ListTemplates(context.Background(), &tartarusv1.ListTemplatesRequest{})
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range resp.GetTemplates() {
		fmt.Println(t.GetName())
	}
	// Output: debian
}

const demoID = "sb-01k9demo000000000000000000"

// dial is a client of a server in this process that answers from a script.
func dial() (c *client.Client, stop func()) {
	l := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	tartarusv1.RegisterSandboxServiceServer(g, script{})
	tartarusv1.RegisterOperatorServiceServer(g, operatorScript{})
	go func() { _ = g.Serve(l) }() // ends with g.Stop
	c, err := client.Dial("http://localhost", "tart_x", client.WithDialer(l.DialContext))
	if err != nil {
		log.Fatal(err)
	}
	return c, func() { c.Close(); g.Stop() }
}

type script struct {
	tartarusv1.UnimplementedSandboxServiceServer
}

func (script) Run(_ context.Context, req *tartarusv1.RunRequest) (*tartarusv1.Sandbox, error) {
	if req.GetUser() == "root" {
		s, err := status.New(codes.PermissionDenied, "denied").WithDetails(&tartarusv1.Error{
			Code: client.PolicyDenied, Message: "Commands do not run as root.", Hint: "Ask for another user, or leave it out.",
			Field: "user", Id: "sb-01k9refused0000000000000000",
		})
		return nil, errors.Join(err, s.Err())
	}
	return &tartarusv1.Sandbox{Id: demoID, State: "queued"}, nil
}

func (script) Get(context.Context, *tartarusv1.GetRequest) (*tartarusv1.Sandbox, error) {
	code := int32(3)
	return &tartarusv1.Sandbox{Id: demoID, State: "failed", Exit: &tartarusv1.Exit{Cause: "exited", Code: &code}}, nil
}

func (s script) Kill(ctx context.Context, _ *tartarusv1.KillRequest) (*tartarusv1.Sandbox, error) {
	return s.Get(ctx, nil)
}

func (script) List(_ context.Context, req *tartarusv1.ListRequest) (*tartarusv1.ListResponse, error) {
	if req.GetPageToken() == "" {
		return &tartarusv1.ListResponse{Sandboxes: []*tartarusv1.Sandbox{{Name: "third"}, {Name: "second"}}, NextPageToken: demoID}, nil
	}
	return &tartarusv1.ListResponse{Sandboxes: []*tartarusv1.Sandbox{{Name: "first"}}}, nil
}

func (script) Logs(_ *tartarusv1.LogsRequest, w grpc.ServerStreamingServer[tartarusv1.LogEntry]) error {
	return w.Send(&tartarusv1.LogEntry{Stream: "stdout", Data: []byte("hello\n")})
}

func (script) Events(_ *tartarusv1.EventsRequest, w grpc.ServerStreamingServer[tartarusv1.Event]) error {
	return errors.Join(w.Send(&tartarusv1.Event{Seq: 1, State: "queued"}), w.Send(&tartarusv1.Event{Seq: 2, State: "running"}),
		w.Send(&tartarusv1.Event{Seq: 3, State: "failed", Cause: "exited"}))
}

func (script) Stdin(r grpc.ClientStreamingServer[tartarusv1.StdinRequest, tartarusv1.StdinResponse]) error {
	n := 0
	for {
		m, err := r.Recv()
		if err != nil {
			return r.SendAndClose(&tartarusv1.StdinResponse{Bytes: float64(n)})
		}
		n += len(m.GetData())
	}
}

type operatorScript struct {
	tartarusv1.UnimplementedOperatorServiceServer
}

func (operatorScript) ListTemplates(context.Context, *tartarusv1.ListTemplatesRequest) (*tartarusv1.ListTemplatesResponse, error) {
	return &tartarusv1.ListTemplatesResponse{Templates: []*tartarusv1.Template{{Name: "debian"}}}, nil
}
