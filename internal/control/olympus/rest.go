package olympus

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// endpoint answers one route. An error it returns is answered in the one
// shape, unless the answer has begun.
type endpoint func(w *answer, r *http.Request) error

// told is an error that the caller was told of in the middle of a stream.
type told struct{ error }

func (t told) Unwrap() error { return t.error }

// routes lays out every route: those of the contract's annotations, with
// handlers of our own where a message in and a message out cannot say it.
func (s *Server) routes() (*http.ServeMux, error) {
	mux := http.NewServeMux()
	own := map[string]endpoint{
		apiv1.SandboxService_Run_FullMethodName:    s.httpRun,
		apiv1.SandboxService_Logs_FullMethodName:   s.httpLogs,
		apiv1.SandboxService_Events_FullMethodName: s.httpEvents,
	}
	for _, m := range s.methods {
		if m.rule == nil {
			continue
		}
		verb, p := pattern(m.rule)
		e, isOwn := own[m.full]
		switch {
		case len(m.rule.GetAdditionalBindings()) > 0 || strings.ContainsAny(p, "=*.:"):
			return nil, fmt.Errorf("the route of %s is more than one path with plain names", m.full)
		case isOwn:
		case m.unary != nil && verb != "" && (m.rule.GetBody() == "" || m.rule.GetBody() == "*"):
			e = s.plain(m)
		default:
			return nil, fmt.Errorf("the route of %s needs a handler", m.full)
		}
		mux.Handle(verb+" "+p, s.route(m, e))
	}
	mux.Handle("POST /sandbox/{id}/stdin", s.route(s.methods[apiv1.SandboxService_Stdin_FullMethodName], s.httpStdin))
	mux.Handle("GET /metrics", s.route(s.metricsM, s.httpMetrics()))
	mux.Handle("GET /openapi.json", s.route(s.documentM, func(w *answer, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/json")
		_, err := w.Write(s.openapi)
		return gone(err)
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, "ok\n") })
	mux.HandleFunc("GET /readyz", s.httpReady)
	return mux, nil
}

// dispatch finds the route of a request.
func (s *Server) dispatch(w *answer, r *http.Request) {
	if _, found := s.mux.Handler(r); found != "" && path.Clean(r.URL.Path) == r.URL.Path {
		s.mux.ServeHTTP(w, r)
		return
	}
	others := s.verbs(r)
	what := shorten(r.Method) + " " + shorten(r.URL.Path)
	err := fault.New(fault.NotFound, "there is no %s", what).WithHint("GET /openapi.json has all there is.")
	if len(others) > 0 {
		w.Header().Set("Allow", strings.Join(others, ", "))
		err = fault.New(fault.NotFound, "there is no %s", what).WithHint("This path takes %s.", strings.Join(others, " and "))
	}
	writeError(w, err, callOf(r.Context()).requestID)
}

// verbs are the other methods that the path of r takes. Where it is a route's
// own path, it is not meant as an ID of another's.
func (s *Server) verbs(r *http.Request) []string {
	var exact, all []string
	for _, verb := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		try := *r
		try.Method = verb
		_, found := s.mux.Handler(&try)
		if found == "" || verb == r.Method {
			continue
		}
		all = append(all, verb)
		if !strings.Contains(found, "{") {
			exact = append(exact, verb)
		}
	}
	if len(exact) > 0 {
		return exact
	}
	return all
}

// route runs an endpoint as method m.
func (s *Server) route(m *method, e endpoint) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w, ok := rw.(*answer)
		if !ok {
			w = newAnswer(rw, s.cfg.WriteTimeout)
		}
		err := s.do(r.Context(), m, func() error {
			if r.ContentLength != 0 && r.Method != http.MethodPost {
				return fault.Invalid("", "Put parameters into the URL.", "%s takes no body", r.Method)
			}
			return e(w, r)
		})
		if err == nil {
			return
		}
		if !w.begun.Load() {
			writeError(w, err, callOf(r.Context()).requestID)
			return
		}
		if !errors.As(err, new(told)) {
			panic(http.ErrAbortHandler) // so that the caller sees that the answer is not whole
		}
	})
}

// plain answers a unary method: path, query and body in, JSON out.
func (s *Server) plain(m *method) endpoint {
	return func(w *answer, r *http.Request) error {
		decode := func(v any) error {
			msg, ok := v.(proto.Message)
			if !ok {
				return fmt.Errorf("%s takes no message", m.full)
			}
			return s.decode(w, r, m, msg)
		}
		resp, err := m.unary.Handler(m.impl, r.Context(), decode, nil)
		if err != nil {
			return err
		}
		msg, ok := resp.(proto.Message)
		if !ok {
			return fmt.Errorf("%s answers no message", m.full)
		}
		return writeMessage(w, http.StatusOK, msg)
	}
}

// decode reads a request into msg: body, query, and what the path names.
func (s *Server) decode(w *answer, r *http.Request, m *method, msg proto.Message) error {
	_, p := pattern(m.rule)
	vars := pathVars(p)
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	if m.rule.GetBody() == "*" {
		body, err := s.body(w, r)
		if err != nil {
			return err
		}
		if len(q) > 0 {
			return unknownParameter(firstKey(q), nil, (&apiv1.ListTemplatesRequest{}).ProtoReflect().Descriptor())
		}
		if err := decodeJSON(body, msg); err != nil {
			return err
		}
	} else if err := decodeQuery(q, vars, msg); err != nil {
		return err
	}
	for _, name := range vars {
		field := m.input.Fields().ByName(protoreflect.Name(name))
		msg.ProtoReflect().Set(field, protoreflect.ValueOfString(clean(r.PathValue(name))))
	}
	return nil
}

// pathVars are the names in braces.
func pathVars(p string) []string {
	var names []string
	for _, part := range strings.Split(p, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			names = append(names, strings.TrimSuffix(name, "}"))
		}
	}
	return names
}

// body reads a bounded body in bounded time, and notes its hash.
func (s *Server) body(w *answer, r *http.Request) ([]byte, error) {
	if err := checkForm(r.Header); err != nil {
		return nil, err
	}
	tooLarge := &http.MaxBytesError{Limit: s.cfg.MaxBody}
	if r.ContentLength > s.cfg.MaxBody {
		return nil, tooLarge
	}
	_ = w.rc.SetReadDeadline(time.Now().Add(s.cfg.ReadTimeout)) // a writer that cannot is a test's
	b, err := io.ReadAll(io.LimitReader(r.Body, s.cfg.MaxBody+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fault.New(fault.InvalidArgument, "the body did not arrive within %v", s.cfg.ReadTimeout).WithHint("Send it at once.")
	case err != nil:
		return nil, fault.Wrap(fault.InvalidArgument, err, "the body broke off").WithHint("Send it whole.")
	case int64(len(b)) > s.cfg.MaxBody:
		return nil, tooLarge
	}
	if len(r.TransferEncoding) == 0 {
		w.Header().Del("Connection")
	} // else there may have been a length, too, and a proxy may go by that
	// A deadline that passes while the answer is on its way would end the call.
	_ = w.rc.SetReadDeadline(time.Time{})
	sum := sha256.Sum256(b)
	callOf(r.Context()).hash = sandbox.Digest("sha256:" + hex.EncodeToString(sum[:]))
	return b, nil
}

// checkForm refuses a body that says it is no JSON. curl says of what it sends
// with -d that it is a form.
func checkForm(h http.Header) error {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return fault.Invalid("Content-Encoding", "Send the body as it is.", "the body is encoded")
	}
	types := h.Values("Content-Type")
	if len(types) == 0 {
		return nil
	}
	kind, params, err := mime.ParseMediaType(types[0])
	charset, named := params["charset"]
	switch {
	case err != nil || len(types) > 1:
	case named && !strings.EqualFold(charset, "utf-8"):
	case kind == "application/json", kind == "application/x-www-form-urlencoded":
		return nil
	}
	return fault.Invalid("Content-Type", "Send JSON in UTF-8, as application/json.", "the body is no JSON by its Content-Type")
}

// marshalJSON is msg in one line.
func marshalJSON(msg proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	var line bytes.Buffer
	if err := json.Compact(&line, b); err != nil { // protojson varies its spaces
		return nil, fmt.Errorf("encoding an answer: %w", err)
	}
	line.WriteByte('\n')
	return line.Bytes(), nil
}

func writeMessage(w *answer, code int, msg proto.Message) error {
	b, err := marshalJSON(msg)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, err = w.Write(b)
	return gone(err)
}

// gone marks an error of writing to the caller: there is nobody to tell.
func gone(err error) error {
	if err == nil {
		return nil
	}
	return told{fault.Wrap(fault.Unavailable, err, "the caller does not read any more")}
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, text) // the caller is gone: there is nobody to tell
}

func (s *Server) httpReady(w http.ResponseWriter, r *http.Request) {
	err := s.stopping.Err()
	if err == nil && s.cfg.Ready != nil {
		err = s.cfg.Ready(r.Context())
	}
	if err != nil {
		id := callOf(r.Context()).requestID
		s.log.Info("not ready", "request_id", id, "error", err)
		e := fault.New(fault.Unavailable, "not ready").WithRetryAfter(time.Second)
		if s.stopping.Err() != nil {
			e = errStopping
		}
		writeError(w, e, id)
		return
	}
	writeText(w, "ok\n")
}

func (s *Server) httpMetrics() endpoint {
	h := promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{})
	return func(w *answer, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}
