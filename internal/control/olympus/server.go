package olympus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
)

// Server is the API server. Make it with New; it answers by Handler, or on
// listeners by Serve. Close ends what is left of it.
type Server struct {
	cfg     Config
	log     *slog.Logger
	meters  *meters
	slots   *slots
	openapi []byte

	methods                         map[string]*method // of the contract, by full name
	reflection, metricsM, documentM *method            // beyond the contract

	grpc   *grpc.Server
	health *health.Server
	mux    *http.ServeMux

	stopping context.Context // ends when the server stops: so do followers
	stop     context.CancelFunc
	pumps    sync.WaitGroup // readers of standard input; each ends with its call
}

var errStopping = fault.New(fault.Unavailable, "the server is stopping").
	WithHint("Try again in a moment; a stream goes on from its last offset.").WithRetryAfter(time.Second)

// New makes a server. Nothing runs until it is asked something.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	s := &Server{
		cfg: cfg, log: cfg.Log, slots: newSlots(cfg.MaxStreams),
		reflection: &method{name: "Reflection", scope: apiv1.Scope_SCOPE_READ},
		metricsM:   &method{name: "Metrics", scope: apiv1.Scope_SCOPE_READ},
		documentM:  &method{name: "OpenAPI", scope: apiv1.Scope_SCOPE_READ},
	}
	var err error
	if s.meters, err = newMeters(cfg.Metrics); err != nil {
		return nil, err
	}
	if s.openapi, err = apiv1.OpenAPI(); err != nil {
		return nil, err
	}
	services := map[*grpc.ServiceDesc]any{
		&apiv1.SandboxService_ServiceDesc:  &sandboxes{s: s},
		&apiv1.OperatorService_ServiceDesc: &operators{s: s},
	}
	if s.methods, err = methodsOf(services); err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(int(cfg.MaxBody)), grpc.WaitForHandlers(true),
	)
	for desc, impl := range services {
		s.grpc.RegisterService(desc, impl)
	}
	s.health = health.NewServer()
	healthv1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	if s.mux, err = s.routes(); err != nil {
		return nil, err
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Close ends every stream and call, and waits for them.
func (s *Server) Close() {
	s.stop()
	s.health.Shutdown()
	s.grpc.Stop()
	s.pumps.Wait()
}

// Handler answers HTTP and gRPC. Over a listener that is not Serve's, nobody
// is trusted for the connection, and gRPC needs HTTP/2.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

func (s *Server) serve(rw http.ResponseWriter, r *http.Request) {
	c := &call{
		requestID: requestID(r.Header), source: hostOf(r.RemoteAddr),
		header: r.Header.Get("Authorization"), key: r.Header.Get("Idempotency-Key"), traceparent: r.Header.Get("Traceparent"),
	}
	from, _ := r.Context().Value(originKey{}).(origin)
	if from.name != "" {
		c.source, c.trusted = from.name, from.trusted
	}
	w := newAnswer(rw, s.cfg.WriteTimeout)
	defer w.finish()
	c.cutOff = w.cutOff
	h := w.Header()
	h.Set("X-Request-Id", c.requestID)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	h.Set("Cache-Control", "no-store")
	r = r.WithContext(nodewire.WithRequestID(context.WithValue(r.Context(), callKey{}, c), c.requestID))
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		// Until its body was read: else the HTTP server would wait for the rest
		// of it before it sends an answer, for ever.
		h.Set("Connection", "close")
	}
	if from.name == "" && !s.knows(r.Host) {
		writeError(w, fault.Invalid("Host", "Call it by its loopback address, as in http://127.0.0.1:7777, or by a name of its certificate; up takes further ones with --host.",
			"%q is not a name of this server", shorten(r.Host)), c.requestID)
		return
	}
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.grpc.ServeHTTP(w, r)
		return
	}
	s.dispatch(w, r)
}

// requestIDForm is what a caller's own request ID may look like: what any log
// and any terminal takes as it is.
var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// requestID is the caller's own ID of the request, or a new one.
func requestID(h http.Header) string {
	if own := h.Values("X-Request-Id"); len(own) == 1 && requestIDForm.MatchString(own[0]) {
		return own[0]
	}
	return "req-" + strings.ToLower(rand.Text())
}

// knows reports whether host, as a request names it, is this server: a page of
// a foreign name that points to loopback must not reach us.
func (s *Server) knows(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	if ip := net.ParseIP(name); ip != nil && ip.IsLoopback() {
		return true
	}
	if s.cfg.Certificate != nil && s.cfg.Certificate.names(name) {
		return true
	}
	for _, h := range s.cfg.Hosts {
		if strings.EqualFold(h, name) {
			return true
		}
	}
	return false
}

func hostOf(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}

// Serve answers on the listeners until ctx ends, and closes them. It then
// lets requests under way finish for StopTimeout; followers are told at once.
// It may be called once, and needs no Close after it.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	for _, l := range listeners {
		if err := checkListener(l); err != nil {
			return err
		}
	}
	srv := s.httpServer()
	failed := make(chan error, len(listeners))
	var accepting sync.WaitGroup
	for _, l := range listeners {
		accepting.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serving on %s: %w", l.Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.stop()
	s.health.Shutdown()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.StopTimeout)
	defer cancel()
	if serr := srv.Shutdown(end); serr != nil { // out of patience
		err = errors.Join(err, srv.Close())
	}
	accepting.Wait()
	s.Close()
	return err
}

func (s *Server) httpServer() *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           s.Handler(),
		Protocols:         &protocols,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			SendPingTimeout:      time.Minute, // finds peers that are gone
			WriteByteTimeout:     s.cfg.WriteTimeout,
		},
		ConnContext: originOf,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// whileUp is ctx, ended early when the server stops.
func (s *Server) whileUp(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(s.stopping, func() { cancel(errStopping) })
	return ctx, func() { unhook(); cancel(nil) }
}

// whileGood is ctx, ended early when the caller's token is no good any more. A
// caller who does not read what is sent is cut off a moment later.
func (s *Server) whileGood(ctx context.Context) (context.Context, func()) {
	c := callOf(ctx)
	if c.header == "" { // trusted for the connection
		return ctx, func() {}
	}
	ctx, release := s.cfg.Auth.Hold(ctx, c.header)
	over := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		t := time.NewTimer(cutPatience)
		defer t.Stop()
		select {
		case <-t.C:
			if cut(ctx) != nil {
				c.cutOff()
			}
		case <-over:
		}
	})
	return ctx, func() {
		unhook()
		close(over)
		release()
	}
}

// cutPatience is how long a caller may take to be told that its token is no
// good any more.
const cutPatience = 300 * time.Millisecond

// cut says why a held ctx was ended from our side; nil if it was not.
func cut(ctx context.Context) error {
	if why := context.Cause(ctx); errors.Is(why, errStopping) || fault.Is(why, fault.Unauthenticated) {
		return why
	}
	return nil
}

// ended is the error of a ctx that whileUp made and that is over.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return ctx.Err()
}
