package olympus

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// call is one request on its way through the server.
type call struct {
	requestID string
	source    string // remote address without port, "unix" or "local"
	trusted   bool   // by its connection: the server's own user, root, or this process
	header    string // Authorization
	key       string // Idempotency-Key
	hash      sandbox.Digest
	principal sandbox.Principal // once it is known
	cutOff    func()            // ends what is being written to the caller

	sandbox     sandbox.ID // that it is about, once it is known
	made        bool       // it made that sandbox
	traceparent string     // header, not trusted
}

type callKey struct{}

// callOf is the call that ctx belongs to. The outermost handler made it.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil { // only when the handler is bypassed: nobody calls, and may nothing
		return &call{cutOff: func() {}}
	}
	return c
}

// enter tells whether the caller may call m. An explicit token counts more
// than the connection it came by.
func (s *Server) enter(ctx context.Context, m *method) error {
	c := callOf(ctx)
	switch {
	case m.scope == apiv1.Scope_SCOPE_NONE:
		return nil
	case c.header == "" && c.trusted:
		c.principal = s.cfg.Local
	default:
		p, err := s.cfg.Auth.Authenticate(ctx, c.header, c.source)
		if err != nil {
			return err
		}
		c.principal = p
	}
	want, ok := scopes[m.scope]
	if !ok || !c.principal.Has(want) {
		return fault.New(fault.PolicyDenied, "%s needs a token with scope %q", m.name, want).
			WithHint("Ask your operator for a token with that scope.")
	}
	return nil
}

// leave writes the line and the numbers of a call that is over.
func (s *Server) leave(ctx context.Context, m *method, began time.Time, err error) {
	code := "ok"
	if err != nil {
		code = shown(err).Kind.String()
	}
	s.meters.answered(m.name, code, began)
	c := callOf(ctx)
	if c.made {
		s.cfg.Tracer.Stage(tracing.Span{
			Sandbox: c.sandbox, Name: "request", Begin: began, End: time.Now(), Err: err, Caller: c.traceparent,
			Attrs: []slog.Attr{slog.String("method", m.name), slog.String("code", code), slog.String("request_id", c.requestID)},
		})
	}
	level := slog.LevelDebug
	if code == "internal" {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("method", m.name), slog.String("code", code), slog.String("request_id", c.requestID),
		slog.String("source", c.source), slog.String("tenant", c.principal.Tenant), slog.Duration("took", time.Since(began)),
	}
	if c.sandbox != "" {
		attrs = append(attrs, slog.String("sandbox", string(c.sandbox)))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.log.LogAttrs(ctx, level, "request", attrs...)
}

// do runs one method: enter, f, leave. A panic in f is an internal error, and
// ends nothing but the call.
func (s *Server) do(ctx context.Context, m *method, f func() error) (err error) {
	began := time.Now()
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in a request", "method", m.name, "request_id", callOf(ctx).requestID, "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "panic: %v", p)
		}
		s.leave(ctx, m, began, err)
	}()
	if err := s.enter(ctx, m); err != nil {
		return err
	}
	return f()
}

// unary is do for gRPC.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	m, ok := s.methods[info.FullMethod]
	if !ok {
		return next(ctx, req) // health: open to everybody
	}
	takeKey(ctx)
	err = s.do(ctx, m, func() error {
		// What is wrong with a run is said once its rate was asked, and audited.
		if msg, ok := req.(proto.Message); ok && info.FullMethod != apiv1.SandboxService_Run_FullMethodName {
			if err := checkKnown(msg); err != nil {
				return err
			}
		}
		resp, err = next(ctx, req)
		return err
	})
	return resp, statusOf(err, callOf(ctx).requestID)
}

// stream is do for gRPC's streams.
func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx := stream.Context()
	m, ok := s.methods[info.FullMethod]
	if !ok {
		if !strings.HasPrefix(info.FullMethod, "/grpc.reflection.") {
			return next(srv, stream) // health: open to everybody
		}
		m = s.reflection
		stream = &asked{ServerStream: stream, enter: func() error { return s.enter(ctx, m) }}
	}
	err := s.do(ctx, m, func() error { return next(srv, stream) })
	return statusOf(err, callOf(ctx).requestID)
}

// asked is a stream whose caller is authenticated anew with each message.
type asked struct {
	grpc.ServerStream
	enter func() error
}

// RecvMsg is of grpc.ServerStream.
func (a *asked) RecvMsg(m any) error {
	if err := a.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return a.enter()
}

// takeKey reads the idempotency key of a gRPC call; over HTTP it is a header.
func takeKey(ctx context.Context) {
	if v := metadata.ValueFromIncomingContext(ctx, "idempotency-key"); len(v) > 0 {
		callOf(ctx).key = v[0]
	}
}
