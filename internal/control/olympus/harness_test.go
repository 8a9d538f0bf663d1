package olympus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/minos"
	"github.com/tartarus-vm/tartarus/internal/control/judges/rhadamanthus"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/themistest"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/memblobs"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const policyText = `
version: 1
tenants:
  local:
  acme:
  tiny:
    quota: {live: 1, running: 1, vcpus: 1, memory_mib: 256, disk_mib: 1024, rate_per_minute: 600, burst: 100}
  hasty:
    quota: {live: 100, running: 1, vcpus: 1, memory_mib: 256, disk_mib: 1024, rate_per_minute: 1, burst: 1}
network:
  allow: [{domain: "*.example.com"}, {cidr: 203.0.113.0/24}]
rules:
  - name: no-root
    deny: request.user in ["root", "0"]
    reason: Commands do not run as root.
`

type source struct {
	p      *themis.Policy
	status themis.Status
}

func (s *source) Active() *themis.Policy { return s.p }

func (s *source) Status() themis.Status { return s.status }

type templates []sandbox.Template

func (t templates) Templates(context.Context) ([]sandbox.Template, error) { return t, nil }

// book is a ledger whose audit, or all of it, can be made to fail.
type book struct {
	*memledger.Ledger
	mu     sync.Mutex
	broken error
}

func (b *book) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = err
}

func (b *book) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken
}

func (b *book) Audit(ctx context.Context, e sandbox.AuditEntry) error {
	if err := b.err(); err != nil {
		return err
	}
	return b.Ledger.Audit(ctx, e)
}

func (b *book) Kill(ctx context.Context, id sandbox.ID, c sandbox.Cause, now time.Time, e sandbox.AuditEntry) (sandbox.Record, error) {
	if err := b.err(); err != nil {
		return sandbox.Record{}, err
	}
	return b.Ledger.Kill(ctx, id, c, now, e)
}

// nodes are the sandboxes on their nodes, as scripted by the test.
type nodes struct {
	mu    sync.Mutex
	logs  map[sandbox.ID]*hermes.Log
	kills []sandbox.Record
	grace []time.Duration
	stdin map[sandbox.ID]*bytes.Buffer
	deaf  bool // Stdin does not read
	flood bool // Logs never ends by itself
}

func (n *nodes) Kill(_ context.Context, rec sandbox.Record, grace time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kills, n.grace = append(n.kills, rec), append(n.grace, grace)
	return nil
}

func (n *nodes) killed() []sandbox.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]sandbox.Record(nil), n.kills...)
}

func (n *nodes) log(id sandbox.ID) *hermes.Log {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.logs[id]
}

func (n *nodes) Logs(ctx context.Context, rec sandbox.Record, offset int64, follow bool, yield func(hermes.Entry) error) error {
	for e := (hermes.Entry{Stream: hermes.Stdout, Time: time.Now(), Data: make([]byte, 32<<10)}); n.flood; e.Offset += int64(len(e.Data)) {
		if err := yield(e); err != nil {
			return err
		}
	}
	l := n.log(rec.ID)
	if l == nil {
		return fault.New(fault.NotFound, "no log of it here")
	}
	for e, err := range l.Read(ctx, offset, follow) {
		if err != nil {
			return err
		}
		if err := yield(e); err != nil {
			return err
		}
	}
	return nil
}

func (n *nodes) Stdin(ctx context.Context, rec sandbox.Record, in io.Reader) error {
	n.mu.Lock()
	buf := &bytes.Buffer{}
	n.stdin[rec.ID] = buf
	deaf := n.deaf
	n.mu.Unlock()
	if deaf {
		<-ctx.Done()
		return ctx.Err()
	}
	_, err := io.Copy(buf, in)
	return err
}

// world is a server with everything real behind it but the nodes.
type world struct {
	t        *testing.T
	srv      *olympus.Server
	book     *book
	policy   *source
	nodes    *nodes
	blobs    *memblobs.Store
	guard    *cerberus.Guard
	ring     *seal.Ring
	box      *seal.Box
	metrics  *prometheus.Registry
	log      *syncBuffer
	url      string // of the TCP listener
	socket   string
	epoch    int64
	client   *http.Client
	stopped  func() error
	unixHTTP *http.Client
	cfg      olympus.Config
}

// config is for another server in the same world.
func (w *world) config() olympus.Config {
	c := w.cfg
	c.Metrics = nil
	return c
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newWorld(t *testing.T, change ...func(*olympus.Config)) *world {
	t.Helper()
	key := must(seal.NewKey())(t)
	w := &world{
		t: t, book: &book{Ledger: memledger.New()}, blobs: memblobs.New(memblobs.Config{}),
		nodes:  &nodes{logs: map[sandbox.ID]*hermes.Log{}, stdin: map[sandbox.ID]*bytes.Buffer{}},
		policy: &source{},
		ring:   must(seal.NewRing(key.Public()))(t), box: seal.NewBox(), metrics: prometheus.NewRegistry(), log: &syncBuffer{},
	}
	w.activate(policyText)
	w.guard = must(cerberus.New(cerberus.Config{Tokens: w.book, CacheLife: -1}))(t)
	admission := must(olympus.NewAdmission(olympus.AdmissionConfig{
		Contracts: func(c sandbox.NetworkContract) error {
			if len(c.Allow) > 0 && c.Allow[0].Domain == "unheld.example.com" {
				return fault.New(fault.Unsupported, "no node holds such a grant").WithHint("grant addresses")
			}
			return nil
		},
		Policies: w.policy, Lookup: themistest.Lookup{}, Bench: judges.New(minos.Minos{}, rhadamanthus.Rhadamanthus{}),
		Key: key, Box: w.box, Ledger: w.book,
	}))(t)
	cfg := olympus.Config{
		Auth: w.guard, Admission: admission, Records: w.book, Killing: w.book, Nodes: w.nodes, Blobs: w.blobs,
		Operator: olympus.Operator{
			Templates: templates{{Name: "base", Digest: themistest.Digest("ba"), Bytes: 5e9}},
			Nodes:     w.book, Audit: w.book, Policies: w.policy, Versions: w.book, Tokens: w.guard,
		},
		Metrics: w.metrics, StopTimeout: 5 * time.Second,
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	w.cfg = cfg
	w.srv = must(olympus.New(cfg))(t)
	w.serve()
	w.epoch = must(w.book.Join(t.Context(), sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 1000, MemoryMiB: 1 << 20, DiskMiB: 1 << 20}}))(t)
	return w
}

// serve listens on loopback and on a Unix socket.
func (w *world) serve() {
	w.socket = filepath.Join(w.t.TempDir(), "s", "api")
	tcp := must(olympus.ListenTCP(w.t.Context(), "127.0.0.1:0"))(w.t)
	unix := must(olympus.ListenUnix(w.t.Context(), w.socket))(w.t)
	w.url = "http://" + tcp.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.srv.Serve(ctx, tcp, unix) }()
	w.client = &http.Client{Transport: &http.Transport{}}
	w.unixHTTP = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.socket)
	}}}
	w.stopped = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	w.t.Cleanup(func() {
		w.client.CloseIdleConnections()
		w.unixHTTP.CloseIdleConnections()
		if err := w.stopped(); err != nil {
			w.t.Errorf("the server stopped with %v", err)
		}
	})
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// token makes a token for tenant.
func (w *world) token(tenant string, scopes ...sandbox.Scope) string {
	w.t.Helper()
	if len(scopes) == 0 {
		scopes = []sandbox.Scope{sandbox.ScopeRun, sandbox.ScopeRead}
	}
	root := sandbox.Principal{Tenant: "local", Scopes: []sandbox.Scope{sandbox.ScopeAdmin}}
	token, _, err := w.guard.Create(w.t.Context(), root, cerberus.Spec{Tenant: tenant, Scopes: scopes})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// ask is one HTTP request over TCP.
type ask struct {
	method, path, token, body string
	header                    map[string]string
}

type reply struct {
	code   int
	header http.Header
	body   string
}

func (w *world) ask(a ask) reply {
	w.t.Helper()
	resp := w.open(w.t.Context(), a)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s %s: reading the answer: %v", a.method, a.path, err)
	}
	if resp.Request != nil && undocumented(resp.Request.Method, a.path, resp.StatusCode) {
		w.t.Errorf("%s %s answered %d, of which the document does not know", a.method, a.path, resp.StatusCode)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

func (w *world) open(ctx context.Context, a ask) *http.Response {
	w.t.Helper()
	if a.method == "" {
		a.method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, a.method, w.url+a.path, strings.NewReader(a.body))
	if err != nil {
		w.t.Fatal(err)
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	for k, v := range a.header {
		req.Header.Set(k, v)
	}
	if h, ok := a.header["Host"]; ok {
		req.Host = h
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", a.method, a.path, err)
	}
	return resp
}

// fails checks the one error shape and returns it.
func (r reply) fails(t *testing.T, kind fault.Kind) wireError {
	t.Helper()
	var e struct{ Error wireError }
	dec := json.NewDecoder(strings.NewReader(r.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		t.Fatalf("not the shape of an error: %v\n%d %s", err, r.code, r.body)
	}
	if e.Error.Code != kind.String() || r.code != kind.Row().HTTP {
		t.Fatalf("got %d %s, want %s", r.code, r.body, kind)
	}
	if e.Error.Message == "" || e.Error.RequestID == "" || e.Error.RequestID != r.header.Get("X-Request-Id") {
		t.Errorf("an error without message or request_id: %s (header %q)", r.body, r.header.Get("X-Request-Id"))
	}
	return e.Error
}

type wireError struct {
	Code, Message, Hint, Field, ID string
	RequestID                      string `json:"request_id"`
	RetryAfter                     string `json:"retry_after"`
}

func (r reply) json(t *testing.T, code int) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(r.body), &m); err != nil || r.code != code {
		t.Fatalf("got %d %s (%v), want %d and JSON", r.code, r.body, err, code)
	}
	return m
}

// run starts a sandbox over HTTP and returns its ID.
func (w *world) run(token, body string) sandbox.ID {
	w.t.Helper()
	rec := w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: body}).json(w.t, http.StatusAccepted)
	return sandbox.ID(rec["id"].(string))
}

// place takes the next request to a node that accepts and runs it.
func (w *world) place() sandbox.Assignment {
	w.t.Helper()
	ctx, now := w.t.Context(), time.Now()
	c, ok, err := w.book.Claim(ctx, "test", now, time.Minute, nil)
	if err != nil || !ok {
		w.t.Fatalf("claim: %v %v", ok, err)
	}
	a := must(w.book.Place(ctx, c, "n1", w.epoch, now))(w.t)
	if err := errors.Join(w.book.Accept(ctx, a, now), w.book.Advance(ctx, a, sandbox.Progress{State: sandbox.Running, At: now})); err != nil {
		w.t.Fatal(err)
	}
	return a
}

// output gives a sandbox a log on its node.
func (w *world) output(id sandbox.ID, capBytes int64) *hermes.Log {
	w.t.Helper()
	l := must(hermes.Create(filepath.Join(w.t.TempDir(), "log"), capBytes))(w.t)
	w.t.Cleanup(func() { _ = l.Finish() })
	w.nodes.mu.Lock()
	defer w.nodes.mu.Unlock()
	w.nodes.logs[id] = l
	return l
}

// end ends a sandbox with exit code, and keeps its log.
func (w *world) end(a sandbox.Assignment, code int) {
	w.t.Helper()
	end := sandbox.End{At: time.Now(), Exit: sandbox.ExitRecord{Cause: sandbox.Exited, Source: sandbox.FromGuest, Code: &code}}
	if l := w.nodes.log(a.Sandbox); l != nil {
		if err := l.Finish(); err != nil {
			w.t.Fatal(err)
		}
		f := must(openFile(l.Path()))(w.t)
		defer f.Close()
		end.LogDigest = must(w.blobs.Put(w.t.Context(), f))(w.t)
		end.Exit.Usage.LogBytes, end.Exit.Usage.LogTruncated = l.Bytes(), l.Truncated()
	}
	if _, err := w.book.End(w.t.Context(), a, end); err != nil {
		w.t.Fatal(err)
	}
	w.nodes.mu.Lock()
	delete(w.nodes.logs, a.Sandbox)
	w.nodes.mu.Unlock()
}

// audits are the actions and decisions in the audit chain.
func (w *world) audits() []string {
	w.t.Helper()
	var out []string
	for _, e := range must(w.book.AuditEntries(w.t.Context(), ledger.AuditQuery{Limit: 1000}))(w.t) {
		out = append(out, e.Tenant+" "+e.Action+" "+string(e.Decision))
	}
	return out
}
