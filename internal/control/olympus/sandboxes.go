package olympus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/control/judges/aeacus"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// sandboxes are the methods on sandboxes.
type sandboxes struct {
	apiv1.UnimplementedSandboxServiceServer
	s *Server
}

// Run admits a request.
func (x *sandboxes) Run(ctx context.Context, req *apiv1.RunRequest) (*apiv1.Sandbox, error) {
	c := callOf(ctx)
	if c.key != "" && c.hash == "" { // over gRPC: the message stands for its bytes
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
		if err != nil {
			return nil, fmt.Errorf("hashing a request: %w", err)
		}
		sum := sha256.Sum256(b)
		c.hash = sandbox.Digest("sha256:" + hex.EncodeToString(sum[:]))
	}
	rec, err := x.s.run(ctx, func() (*apiv1.RunRequest, error) { return req, checkKnown(req) })
	if err != nil {
		return nil, err
	}
	return recordOf(rec, c.principal), nil
}

// run admits a request and counts what became of it.
func (s *Server) run(ctx context.Context, decode func() (*apiv1.RunRequest, error)) (sandbox.Record, error) {
	rec, created, err := s.admit(ctx, decode)
	s.meters.admitted(created, err)
	c := callOf(ctx)
	c.sandbox, c.made = rec.ID, created
	if created {
		s.log.Info("sandbox admitted", "sandbox", rec.ID, "request_id", c.requestID, "tenant", rec.Tenant)
	}
	var refused *fault.Error
	if errors.As(err, &refused) && refused.Sandbox != "" {
		c.sandbox, c.made = sandbox.ID(refused.Sandbox), true
	}
	return rec, err
}

func (s *Server) admit(ctx context.Context, decode func() (*apiv1.RunRequest, error)) (sandbox.Record, bool, error) {
	c := callOf(ctx)
	return s.cfg.Admission.Run(ctx, Entry{
		Principal: c.principal, Source: c.source, RequestID: c.requestID, Key: c.key, Hash: c.hash,
		Decode: func() (sandbox.Request, error) {
			if err := checkKey(c.key); err != nil {
				return sandbox.Request{}, err
			}
			in, err := decode()
			if err != nil {
				return sandbox.Request{}, err
			}
			return requestOf(in)
		},
	})
}

// checkKey bounds an idempotency key.
func checkKey(key string) error {
	const most = 255
	printable := !strings.ContainsFunc(key, func(r rune) bool { return r < 0x20 || r > 0x7e })
	if len(key) > most || !printable {
		return fault.Invalid("Idempotency-Key", "Use a UUID.", "the key is not 1 to %d printable ASCII characters", most)
	}
	return nil
}

// Get reads a record.
func (x *sandboxes) Get(ctx context.Context, req *apiv1.GetRequest) (*apiv1.Sandbox, error) {
	rec, err := x.s.visible(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return recordOf(rec, callOf(ctx).principal), nil
}

// visible is the record of that ID, if the caller may know of it.
func (s *Server) visible(ctx context.Context, text string) (sandbox.Record, error) {
	id := sandbox.ID(text)
	if !id.Valid() {
		return sandbox.Record{}, fault.Invalid("id", `It is "sb-" and 26 lower-case letters and digits; GET /sandbox lists yours.`,
			"%q is not the ID of a sandbox", shorten(text))
	}
	callOf(ctx).sandbox = id
	rec, err := s.cfg.Records.Get(ctx, id)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return sandbox.Record{}, err
	}
	who := callOf(ctx).principal
	if err != nil || (rec.Tenant != who.Tenant && !who.Has(sandbox.ScopeAdmin)) {
		return sandbox.Record{}, fault.New(fault.NotFound, "there is no sandbox %s", id).WithHint("GET /sandbox lists yours.")
	}
	return rec, nil
}

const maxPage = 1000

// List returns a page of records.
func (x *sandboxes) List(ctx context.Context, req *apiv1.ListRequest) (*apiv1.ListResponse, error) {
	q, err := listQuery(req, callOf(ctx).principal)
	if err != nil {
		return nil, err
	}
	page, err := x.s.cfg.Records.List(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListResponse{}
	for _, rec := range page.Records {
		rec.Request.Env, rec.Request.Files, rec.Request.StdinBytes = nil, nil, 0
		out.Sandboxes = append(out.Sandboxes, recordOf(rec, callOf(ctx).principal))
	}
	if n := len(page.Records); page.More && n > 0 {
		out.NextPageToken = string(page.Records[n-1].ID)
	}
	return out, nil
}

func listQuery(req *apiv1.ListRequest, who sandbox.Principal) (ledger.Query, error) {
	tenant, err := tenantFor(req.GetTenant(), who)
	if err != nil {
		return ledger.Query{}, err
	}
	q := ledger.Query{Tenant: tenant, Before: sandbox.ID(req.GetPageToken())}
	for _, text := range req.GetState() {
		state := sandbox.State(text)
		if !state.Valid() {
			var names []string
			for _, info := range sandbox.States() {
				names = append(names, string(info.State))
			}
			return q, fault.Invalid("state", "The states are "+strings.Join(names, ", ")+".", "there is no state %q", shorten(text))
		}
		q.States = append(q.States, state)
	}
	for _, text := range req.GetLabel() {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return q, fault.Invalid("label", "Send key=value.", "%q is not a label", shorten(text))
		}
		if old, twice := q.Labels[key]; twice && old != value {
			return q, fault.Invalid("label", "Ask once for each label.", "label %q cannot have two values", shorten(key))
		}
		if q.Labels == nil {
			q.Labels = map[string]string{}
		}
		q.Labels[key] = value
	}
	if q.Before != "" && !q.Before.Valid() {
		return q, fault.Invalid("page_token", "Send next_page_token of the page before.", "that is no page token")
	}
	q.Limit, err = pageSize(req.GetPageSize())
	return q, err
}

// tenantFor is the tenant to look at: the caller's own, or for admin the one
// asked for, or all.
func tenantFor(asked string, who sandbox.Principal) (string, error) {
	if who.Has(sandbox.ScopeAdmin) {
		return asked, nil
	}
	if asked != "" && asked != who.Tenant {
		e := fault.New(fault.PolicyDenied, "another tenant's sandboxes need a token with scope %q", sandbox.ScopeAdmin).
			WithHint("Leave tenant away.")
		e.Field = "tenant"
		return "", e
	}
	return who.Tenant, nil
}

func pageSize(n int32) (int, error) {
	if n < 0 || n > maxPage {
		return 0, fault.Invalid("page_size", "Send 1 to 1000, or leave it away.", "page_size is not from 0 to %d", maxPage)
	}
	return int(n), nil
}

const (
	defaultGrace = 5 * time.Second
	maxGrace     = 10 * time.Minute
)

// Kill orders the end of a sandbox.
func (x *sandboxes) Kill(ctx context.Context, req *apiv1.KillRequest) (*apiv1.Sandbox, error) {
	grace := defaultGrace
	if g := req.GetGrace(); g != nil {
		if grace = g.AsDuration(); g.CheckValid() != nil || grace < 0 || grace > maxGrace {
			return nil, fault.Invalid("grace", `Send 0s to 600s, as in "5s".`, "grace is not from 0s to %v", maxGrace)
		}
	}
	rec, err := x.s.visible(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	if rec, err = x.s.kill(ctx, rec, grace); err != nil {
		return nil, err
	}
	return recordOf(rec, callOf(ctx).principal), nil
}

// kill writes the order into the ledger and carries it to the node. When the
// ledger cannot take it now the node is told all the same: kills go on.
func (s *Server) kill(ctx context.Context, rec sandbox.Record, grace time.Duration) (sandbox.Record, error) {
	if !rec.State.Live() {
		return rec, nil
	}
	now := s.cfg.Clock()
	after, err := s.cfg.Killing.Kill(ctx, rec.ID, sandbox.Killed, now, aeacus.Done(s.auditCall(ctx, now), aeacus.Kill, rec.ID, ""))
	switch {
	case err == nil:
		rec = after
	case fault.Is(err, fault.Unavailable) && rec.State.OnNode():
		s.log.Warn("killing without the ledger", "sandbox", rec.ID, "request_id", callOf(ctx).requestID, "error", err)
		if rec.Kill == "" {
			rec.Kill = sandbox.Killed
		}
	default:
		return rec, err
	}
	if rec.State.OnNode() {
		if nerr := s.cfg.Nodes.Kill(ctx, rec, grace); nerr != nil {
			s.log.Warn("the node did not take the order to kill", "sandbox", rec.ID, "request_id", callOf(ctx).requestID, "node", rec.Node, "error", nerr)
			if err != nil {
				return rec, err
			}
			// The order is durable: who looks after the node carries it out.
		}
	}
	return rec, nil
}

// Logs streams a sandbox's output.
func (x *sandboxes) Logs(req *apiv1.LogsRequest, stream grpc.ServerStreamingServer[apiv1.LogEntry]) error {
	ctx := stream.Context()
	if err := checkKnown(req); err != nil {
		return err
	}
	q, err := logQueryOf(req)
	if err != nil {
		return err
	}
	return x.s.held(ctx, func(ctx context.Context) error {
		rec, err := x.s.visible(ctx, req.GetId())
		if err != nil {
			return err
		}
		return x.s.logs(ctx, rec, q, func(e hermes.Entry) error { return stream.Send(entryOf(e)) })
	})
}

// Events streams a sandbox's changes of state.
func (x *sandboxes) Events(req *apiv1.EventsRequest, stream grpc.ServerStreamingServer[apiv1.Event]) error {
	if err := checkKnown(req); err != nil {
		return err
	}
	return x.s.held(stream.Context(), func(ctx context.Context) error {
		return x.s.events(ctx, req, func(e sandbox.Event) error { return stream.Send(eventOf(e)) })
	})
}

// held runs a stream or a wait: it counts against the tenant's bound, and ends
// when the server stops or the caller's token does.
func (s *Server) held(ctx context.Context, f func(ctx context.Context) error) error {
	release, err := s.slots.take(callOf(ctx).principal.Tenant)
	if err != nil {
		return err
	}
	defer release()
	s.meters.streams.Add(1)
	defer s.meters.streams.Add(-1)
	ctx, cancel := s.whileUp(ctx)
	defer cancel()
	ctx, letGo := s.whileGood(ctx)
	defer letGo()
	err = f(ctx)
	if why := cut(ctx); why != nil && err != nil && !errors.As(err, new(told)) {
		return why
	}
	return err
}
