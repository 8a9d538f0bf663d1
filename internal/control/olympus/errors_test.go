package olympus_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Every row of the table of errors is reached by a request, over HTTP and over
// gRPC, with the row's status and code, and with a hint of what to do.
func TestEveryErrorIsReached(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.Operator.Nodes = failing{errors.New("no disk")} })
	acme, tiny, admin := w.token("acme"), w.token("tiny"), w.token("local", sandbox.ScopeAdmin)
	gone := sandbox.MakeID("01ARZ3NDEKTSV4RRFFQ69G5FAV")
	id := w.run(acme, `{"command":["true"]}`)
	run := func(r *apiv1.RunRequest) *apiv1.RunRequest { r.Command = []string{"id"}; return r }
	grant := &apiv1.NetworkContract{Allow: []*apiv1.Grant{{Domain: "unheld.example.com", Ports: []int32{443}}}}
	reach := map[fault.Kind]struct {
		token string
		http  ask
		grpc  proto.Message
	}{
		fault.InvalidArgument: {acme, ask{method: "POST", path: "/sandbox/run", body: `{"command":["id"],"name":"/"}`}, run(&apiv1.RunRequest{Name: "/"})},
		fault.Unauthenticated: {"tart_no", ask{method: "POST", path: "/sandbox/run", body: `{"command":["id"]}`}, run(&apiv1.RunRequest{})},
		fault.PolicyDenied:    {acme, ask{method: "POST", path: "/sandbox/run", body: `{"command":["id"],"user":"root"}`}, run(&apiv1.RunRequest{User: "root"})},
		fault.NotFound:        {acme, ask{path: "/sandbox/" + string(gone)}, &apiv1.GetRequest{Id: string(gone)}},
		fault.Conflict:        {acme, ask{method: "POST", path: "/sandbox/" + string(id) + "/stdin"}, &apiv1.StdinRequest{Id: string(id)}},
		fault.TooLarge:        {acme, ask{method: "POST", path: "/sandbox/run", body: strings.Repeat("x", 2<<20+1)}, run(&apiv1.RunRequest{Stdin: make([]byte, 3<<20)})},
		fault.QuotaExceeded: {tiny, ask{method: "POST", path: "/sandbox/run", body: `{"command":["id"],"resources":{"vcpus":2}}`},
			run(&apiv1.RunRequest{Resources: &apiv1.Resources{Vcpus: 2}})},
		fault.Unsupported: {acme, ask{method: "POST", path: "/sandbox/run",
			body: `{"command":["id"],"network":{"allow":[{"domain":"unheld.example.com","ports":[443]}]}}`}, run(&apiv1.RunRequest{Network: grant})},
		fault.Unavailable: {acme, ask{method: "DELETE", path: "/sandbox/" + string(id)}, &apiv1.KillRequest{Id: string(id)}},
		fault.Internal:    {admin, ask{path: "/nodes"}, &apiv1.ListNodesRequest{}},
	}
	for _, row := range fault.Table() {
		t.Run(row.Code, func(t *testing.T) {
			c, ok := reach[row.Kind]
			if !ok {
				t.Fatal("no request reaches it")
			}
			if row.Kind == fault.Unavailable {
				w.book.fail(fault.New(fault.Unavailable, "the disk is full").WithHint("Try again."))
				defer w.book.fail(nil)
			}
			c.http.token = c.token
			if e := w.ask(c.http).fails(t, row.Kind); e.Hint == "" {
				t.Errorf("no hint: %+v", e)
			}
			s := status.Convert(w.call(c.token, c.grpc))
			if uint32(s.Code()) != row.GRPC {
				t.Fatalf("gRPC says %v", s)
			}
			if row.Kind == fault.TooLarge {
				return // gRPC itself says so, before there is a call
			}
			e, _ := s.Details()[0].(*apiv1.Error)
			if e.GetCode() != row.Code || e.GetHint() == "" || e.GetRequestId() == "" || e.GetMessage() != s.Message() {
				t.Errorf("gRPC's detail is %v", e)
			}
		})
	}
}

// Who is refused and hangs up before the answer is in the audit all the same.
func TestWhoHangsUpIsAudited(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for want, req := range map[fault.Kind]sandbox.Request{
		fault.InvalidArgument: {}, fault.PolicyDenied: {Command: []string{"id"}, User: "root"},
		fault.QuotaExceeded: {Command: []string{"id"}, Resources: sandbox.Resources{VCPUs: 2}},
	} {
		before := len(w.audits())
		_, _, err := w.cfg.Admission.Run(ctx, olympus.Entry{
			Principal: sandbox.Principal{Tenant: "tiny", Scopes: []sandbox.Scope{sandbox.ScopeRun}},
			Decode:    func() (sandbox.Request, error) { return req, nil },
		})
		if !fault.Is(err, want) || len(w.audits()) != before+1 {
			t.Errorf("got %v, want %v, and the audit %q", err, want, w.audits()[before:])
		}
	}
}

// A field that this server does not know is refused over gRPC, too, wherever it
// stands: a newer caller may mean a limit by it.
func TestUnknownFieldsOverGRPC(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme", sandbox.ScopeAdmin)
	id := string(w.run(token, `{"command":["true"]}`))
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1)
	grant := &apiv1.Grant{Cidr: "203.0.113.0/24", Ports: []int32{443}}
	resources := &apiv1.Resources{}
	grant.ProtoReflect().SetUnknown(unknown)
	resources.ProtoReflect().SetUnknown(unknown)
	before := len(w.audits())
	for field, req := range map[string]proto.Message{
		"999":                  &apiv1.RunRequest{Command: []string{"id"}},
		"resources.999":        &apiv1.RunRequest{Command: []string{"id"}, Resources: resources},
		"network.allow[0].999": &apiv1.RunRequest{Command: []string{"id"}, Network: &apiv1.NetworkContract{Allow: []*apiv1.Grant{grant}}},
	} {
		if field == "999" {
			req.ProtoReflect().SetUnknown(unknown)
		}
		w.refusesField(w.call(token, req), field)
	}
	if n := len(w.audits()) - before; n != 3 {
		t.Errorf("%d refusals are in the audit, of 3", n)
	}
	for _, req := range []proto.Message{
		&apiv1.GetRequest{Id: id}, &apiv1.KillRequest{Id: id}, &apiv1.ListNodesRequest{}, &apiv1.StdinRequest{Id: id},
		&apiv1.LogsRequest{Id: id}, &apiv1.EventsRequest{Id: id},
	} {
		req.ProtoReflect().SetUnknown(unknown)
		w.refusesField(w.call(token, req), "999")
	}
}

func (w *world) refusesField(err error, field string) {
	w.t.Helper()
	s := status.Convert(err)
	if s.Code() != codes.InvalidArgument || len(s.Details()) != 1 {
		w.t.Fatalf("got %v, want a refusal of %s", err, field)
	}
	if e, _ := s.Details()[0].(*apiv1.Error); e.GetField() != field || e.GetHint() == "" {
		w.t.Errorf("got %v, want a refusal of %s", e, field)
	}
}

// call is one call over gRPC, of the method that takes req.
func (w *world) call(token string, req proto.Message) error {
	w.t.Helper()
	ctx := metadata.AppendToOutgoingContext(w.t.Context(), "authorization", "Bearer "+token)
	conn := w.plain()
	boxes, operators := apiv1.NewSandboxServiceClient(conn), apiv1.NewOperatorServiceClient(conn)
	var err error
	switch req := req.(type) {
	case *apiv1.RunRequest:
		_, err = boxes.Run(ctx, req)
	case *apiv1.GetRequest:
		_, err = boxes.Get(ctx, req)
	case *apiv1.KillRequest:
		_, err = boxes.Kill(ctx, req)
	case *apiv1.ListNodesRequest:
		_, err = operators.ListNodes(ctx, req)
	case *apiv1.LogsRequest:
		stream, serr := boxes.Logs(ctx, req)
		if serr != nil {
			return serr
		}
		_, err = stream.Recv()
	case *apiv1.EventsRequest:
		stream, serr := boxes.Events(ctx, req)
		if serr != nil {
			return serr
		}
		_, err = stream.Recv()
	case *apiv1.StdinRequest:
		stream, serr := boxes.Stdin(ctx)
		if serr != nil {
			return serr
		}
		if err := stream.Send(req); err != nil {
			return err
		}
		_, err = stream.CloseAndRecv()
	default:
		return status.Error(codes.Unknown, "no method takes it")
	}
	return err
}
