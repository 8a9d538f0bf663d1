package olympus_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/tartarus-vm/tartarus/client"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestWhoMayCallWhat(t *testing.T) {
	w := newWorld(t)
	read, run, admin := w.token("acme", sandbox.ScopeRead), w.token("acme", sandbox.ScopeRun), w.token("acme", sandbox.ScopeAdmin)
	id := string(w.run(run, `{"command":["true"]}`))
	const open, reads, runs, admins = 0, 1, 2, 3
	for _, c := range []struct {
		method, path string
		scope        int
	}{
		{"GET", "/healthz", open}, {"GET", "/readyz", open},
		{"GET", "/metrics", reads}, {"GET", "/openapi.json", reads}, {"GET", "/sandbox", reads}, {"GET", "/sandbox/" + id, reads},
		{"GET", "/sandbox/" + id + "/logs", reads}, {"GET", "/sandbox/" + id + "/events", reads}, {"GET", "/templates", reads},
		{"POST", "/sandbox/run", runs}, {"POST", "/sandbox/" + id + "/stdin", runs}, {"DELETE", "/sandbox/" + id, runs},
		{"GET", "/nodes", admins}, {"GET", "/audit", admins}, {"GET", "/policy", admins}, {"GET", "/policies", admins}, {"GET", "/tokens", admins},
		{"POST", "/tokens", admins}, {"DELETE", "/tokens/none", admins},
	} {
		a := ask{method: c.method, path: c.path}
		if c.method == "POST" {
			a.body = `{"command":["true"]}`
		}
		try := func(token string) int { a.token = token; return w.ask(a).code }
		allowed := func(code int) bool { return code != http.StatusUnauthorized && code != http.StatusForbidden }
		if got := try(""); (c.scope == open) != allowed(got) {
			t.Errorf("%s %s without a token: %d", c.method, c.path, got)
		}
		if got := try("tart_wrong"); c.scope != open && got != http.StatusUnauthorized {
			t.Errorf("%s %s with a wrong token: %d", c.method, c.path, got)
		}
		if got := try(read); (c.scope <= reads) != allowed(got) {
			t.Errorf("%s %s with scope read: %d", c.method, c.path, got)
		}
		if got := try(run); (c.scope == runs || c.scope == open) != allowed(got) {
			t.Errorf("%s %s with scope run: %d", c.method, c.path, got)
		}
		if got := try(admin); !allowed(got) {
			t.Errorf("%s %s with scope admin: %d", c.method, c.path, got)
		}
	}
	r := w.ask(ask{path: "/sandbox"})
	r.fails(t, fault.Unauthenticated)
	if !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Bearer") {
		t.Errorf("no WWW-Authenticate: %v", r.header)
	}
}

func TestUnknownRoutes(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	for _, c := range []struct{ method, path, allow string }{
		{"GET", "/", ""}, {"GET", "/sandboxes", ""}, {"GET", "/sandbox/", ""}, {"GET", "//sandbox", ""}, {"GET", "/sandbox/../nodes", ""},
		{"PUT", "/sandbox/run", "POST"}, {"PUT", "/sandbox/sb-x", "GET, DELETE"}, {"POST", "/nodes", "GET"}, {"PATCH", "/sandbox", "GET"},
		{"GET", "/sandbox/" + strings.Repeat("x", 5000) + "/y", ""},
	} {
		r := w.ask(ask{method: c.method, path: c.path, token: token})
		r.fails(t, fault.NotFound)
		if got := r.header.Get("Allow"); got != c.allow {
			t.Errorf("%s %s: Allow %q, want %q", c.method, c.path, got, c.allow)
		}
	}
}

func TestForeignHostsAreRefused(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.Hosts = []string{"tartarus.test"} })
	for host, ok := range map[string]bool{
		"localhost": true, "LOCALHOST:7777": true, "127.0.0.1:7777": true, "127.9.9.9": true, "[::1]:7777": true, "tartarus.test:80": true,
		"evil.example": false, "evil.example:7777": false, "10.0.0.1": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "[::2]": false,
	} {
		r := w.ask(ask{path: "/healthz", header: map[string]string{"Host": host}})
		if ok && r.code != 200 {
			t.Errorf("%s: %s", host, r.body)
		}
		if !ok {
			if e := r.fails(t, fault.InvalidArgument); e.Field != "Host" {
				t.Errorf("%s: %+v", host, e)
			}
		}
	}
}

func TestBodiesAreBounded(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.ReadTimeout = 300 * time.Millisecond })
	token := w.token("acme")
	big := `{"command":["` + strings.Repeat("x", 2<<20) + `"]}`
	w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: big}).fails(t, fault.TooLarge)
	// Without a length, too.
	req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/sandbox/run", io.MultiReader(strings.NewReader(big))))(t)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("got %s", resp.Status)
	}
	for name, c := range map[string]struct {
		send string
		shut bool
		want string
	}{
		"half a body, then nothing":       {"Content-Length: 100\r\n\r\n{\"command\":", false, "HTTP/1.1 400"},
		"half a body, then the end":       {"Content-Length: 100\r\n\r\n{\"command\":", true, "HTTP/1.1 400"},
		"half a chunk, then the end":      {"Transfer-Encoding: chunked\r\n\r\n64\r\n{\"command\":", true, "HTTP/1.1 400"},
		"two lengths":                     {"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", false, "HTTP/1.1 400"},
		"a header without end":            {"X-A: " + strings.Repeat("a", 80<<10), false, "HTTP/1.1 431"},
		"a length that is no number":      {"Content-Length: ten\r\n\r\n", false, "HTTP/1.1 400"},
		"a chunk whose length is no hex":  {"Transfer-Encoding: chunked\r\n\r\nzz\r\n", false, "HTTP/1.1 400"},
		"an encoding that nobody speaks":  {"Transfer-Encoding: zip\r\n\r\n", false, "HTTP/1.1 501"},
		"a body that promises 100 GB":     {"Content-Length: 107374182400\r\n\r\n", false, "HTTP/1.1 413"},
		"Expect: 100-continue and silent": {"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n", false, "HTTP/1.1 100"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := must(net.Dial("tcp", strings.TrimPrefix(w.url, "http://")))(t).(*net.TCPConn)
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			fmt.Fprintf(conn, "POST /sandbox/run HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s", token, c.send)
			if c.shut {
				_ = conn.CloseWrite()
			}
			got, err := bufio.NewReader(conn).ReadString('\n')
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q (%v), want %s", got, err, c.want)
			}
		})
	}
	if page := must(w.book.List(t.Context(), ledger.Query{}))(t); len(page.Records) != 0 {
		t.Errorf("%d records were stored", len(page.Records))
	}
}

// The cause of an internal error is in the log, under the ID that the caller
// gets, and nowhere else.
func TestInternalCausesStayInside(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) {
		c.Operator.Nodes = failing{fmt.Errorf("open /var/lib/s3cret: %w", os.ErrPermission)}
		c.Operator.Templates = panicking{}
	})
	for _, path := range []string{"/nodes", "/templates"} {
		r := w.ask(ask{path: path, token: w.token("local", sandbox.ScopeAdmin)})
		e := r.fails(t, fault.Internal)
		if strings.Contains(r.body, "s3cret") {
			t.Errorf("the caller sees the cause: %s", r.body)
		}
		if log := w.log.String(); !strings.Contains(log, e.RequestID) || !strings.Contains(log, "s3cret") {
			t.Errorf("the log does not have %s and its cause:\n%s", e.RequestID, log)
		}
	}
	if r := w.ask(ask{path: "/healthz"}); r.code != 200 {
		t.Error("a panic ended more than its call")
	}
}

type failing struct{ err error }

func (f failing) Nodes(context.Context) ([]sandbox.Node, error) { return nil, f.err }

type panicking struct{}

func (panicking) Templates(context.Context) ([]sandbox.Template, error) { panic("s3cret") }

func TestOperatorsLook(t *testing.T) {
	w := newWorld(t)
	admin := w.token("local", sandbox.ScopeAdmin)
	w.run(w.token("acme"), `{"command":["true"]}`)
	w.place()
	get := func(path string) map[string]any { return w.ask(ask{path: path, token: admin}).json(t, 200) }
	node := get("/nodes")["nodes"].([]any)[0].(map[string]any)
	if node["id"] != "n1" || node["in_use"].(map[string]any)["vcpus"] != 1.0 {
		t.Errorf("nodes: %v", node)
	}
	if tpl := get("/templates")["templates"].([]any)[0].(map[string]any); tpl["bytes"] != 5e9 {
		t.Errorf("templates: %v", tpl)
	}
	if p := get("/policy"); p["text"] != policyText || !strings.HasPrefix(p["version"].(string), "sha256:") {
		t.Errorf("policy: %v", p)
	}
	made := w.ask(ask{method: "POST", path: "/tokens", token: admin, body: `{"tenant":"acme","scopes":["read"],"expires_at":"2099-01-01T00:00:00Z"}`}).json(t, 200)
	token, info := made["token"].(string), made["info"].(map[string]any)
	if r := w.ask(ask{path: "/sandbox", token: token}); r.code != 200 {
		t.Errorf("the new token is refused: %s", r.body)
	}
	list, _ := json.Marshal(get("/tokens?tenant=acme"))
	if !strings.Contains(string(list), info["id"].(string)) || strings.Contains(string(list), token) {
		t.Errorf("tokens: %s", list)
	}
	if r := w.ask(ask{method: "DELETE", path: "/tokens/" + info["id"].(string), token: admin}); r.code != 200 {
		t.Errorf("revoking: %s", r.body)
	}
	w.ask(ask{path: "/sandbox", token: token}).fails(t, fault.Unauthenticated)
	var actions []string
	for next := ""; ; {
		page := get("/audit?page_size=1&page_token=" + next)
		for _, e := range page["entries"].([]any) {
			actions = append(actions, e.(map[string]any)["action"].(string))
		}
		if next = page["next_page_token"].(string); next == "" {
			break
		}
	}
	if got := strings.Join(actions, " "); got != "policy.activate run token.create token.revoke" {
		t.Errorf("audit: %s", got)
	}
	if strings.Contains(w.log.String(), token) || strings.Contains(w.log.String(), admin) {
		t.Error("a token is in the log")
	}
	r := w.ask(ask{method: "POST", path: "/tokens", token: admin, body: `{"scopes":["root"]}`})
	r.fails(t, fault.InvalidArgument)
}

// A token whose making the audit cannot tell of is no good.
func TestNoTokenWithoutAudit(t *testing.T) {
	w := newWorld(t)
	admin := w.token("local", sandbox.ScopeAdmin)
	w.book.fail(fault.New(fault.Unavailable, "full"))
	r := w.ask(ask{method: "POST", path: "/tokens", token: admin, body: `{"scopes":["read"]}`})
	r.fails(t, fault.Unavailable)
	for _, tok := range must(w.guard.List(t.Context(), sandbox.Principal{Scopes: []sandbox.Scope{sandbox.ScopeAdmin}}, ""))(t) {
		if !slices.Contains(tok.Scopes, sandbox.ScopeAdmin) && tok.RevokedAt.IsZero() {
			t.Errorf("token %s is good", tok.ID)
		}
	}
}

func TestTheUnixSocketNeedsNoToken(t *testing.T) {
	w := newWorld(t)
	get := func(token string) int {
		req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://any.name/nodes", nil))(t)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := w.unixHTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if code := get(""); code != http.StatusOK {
		t.Errorf("got %d", code)
	}
	if code := get("tart_wrong"); code != http.StatusUnauthorized {
		t.Errorf("a wrong token got %d: the connection counted more", code)
	}
	if code := get(w.token("acme")); code != http.StatusForbidden {
		t.Errorf("a weak token got %d: the connection counted more", code)
	}
	if info := must(os.Stat(filepath.Dir(w.socket)))(t); info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v", info.Mode())
	}
	if info := must(os.Stat(w.socket))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v", info.Mode())
	}
}

// Another user who gets hold of the socket is nobody.
func TestTheUnixSocketKnowsItsPeer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it asks as another user")
	}
	w := newWorld(t)
	for dir := filepath.Dir(w.socket); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(w.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	got := asUser(t, 65534, func() (int, error) {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			return 0, err
		}
		return fd, syscall.Connect(fd, &syscall.SockaddrUnix{Name: w.socket})
	})
	f := os.NewFile(uintptr(got), "socket")
	defer f.Close()
	fmt.Fprint(f, "GET /nodes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	b := must(io.ReadAll(f))(t)
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 401")) {
		t.Errorf("got %s", b)
	}
}

func TestListeners(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	if _, err := olympus.ListenTCP(ctx, "0.0.0.0:0"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("plain HTTP for everybody: %v", err)
	}
	l := must(olympus.ListenTCP(ctx, "127.0.0.1:0"))(t)
	defer l.Close()
	if _, err := olympus.ListenTCP(ctx, l.Addr().String()); !fault.Is(err, fault.Conflict) {
		t.Errorf("a port in use: %v", err)
	}
	path := filepath.Join(dir, "a", "api.sock")
	u := must(olympus.ListenUnix(ctx, path))(t)
	if _, err := olympus.ListenUnix(ctx, path); !fault.Is(err, fault.Conflict) {
		t.Errorf("a socket in use: %v", err)
	}
	u.(*net.UnixListener).SetUnlinkOnClose(false) // as if it was killed
	u.Close()
	u2, err := olympus.ListenUnix(ctx, path)
	if err != nil {
		t.Errorf("a stale socket: %v", err)
	} else {
		u2.Close()
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := olympus.ListenUnix(ctx, filepath.Join(dir, "a", "file")); !fault.Is(err, fault.Conflict) {
		t.Errorf("a file in the way: %v", err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := olympus.ListenUnix(ctx, filepath.Join(open, "s")); !fault.Is(err, fault.Conflict) {
		t.Errorf("a folder open to others: %v", err)
	}
	if _, err := olympus.ListenUnix(ctx, "/tmp/"+strings.Repeat("x", 120)); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a path too long: %v", err)
	}
	w := newWorld(t)
	wide := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer wide.Close()
	if err := w.srv.Serve(ctx, outside{wide}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("served beyond loopback: %v", err)
	}
}

// outside claims to listen on another address.
type outside struct{ net.Listener }

func (outside) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// Stopping tells followers at once, lets calls finish, and leaves nothing.
func TestStopping(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := w.run(token, `{"command":["true"]}`)
	resp := w.open(t.Context(), ask{path: "/sandbox/" + string(id) + "/events?follow", token: token})
	defer resp.Body.Close()
	waiting := make(chan reply, 1)
	go func() {
		waiting <- w.ask(ask{method: "POST", path: "/sandbox/run?wait=60s", token: token, body: `{"command":["true"]}`})
	}()
	for !strings.Contains(w.ask(ask{path: "/metrics", token: token}).body, "tartarus_api_streams 2") {
	}
	began := time.Now()
	if err := w.stopped(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
	all := string(must(io.ReadAll(resp.Body))(t))
	if !strings.Contains(all, `"error":{"code":"unavailable"`) || !strings.Contains(all, `"retry_after"`) {
		t.Errorf("the follower got %q", all)
	}
	if r := <-waiting; r.code != http.StatusAccepted {
		t.Errorf("who waited got %d %s", r.code, r.body)
	}
	if _, err := os.Stat(w.socket); err == nil {
		t.Error("the socket is still there")
	}
}

func TestReadiness(t *testing.T) {
	var sick error
	w := newWorld(t, func(c *olympus.Config) { c.Ready = func(context.Context) error { return sick } })
	if r := w.ask(ask{path: "/readyz"}); r.code != 200 {
		t.Errorf("got %s", r.body)
	}
	sick = fmt.Errorf("disk s3cret is full")
	r := w.ask(ask{path: "/readyz"})
	r.fails(t, fault.Unavailable)
	if strings.Contains(r.body, "s3cret") {
		t.Error("everybody may read why")
	}
}

// In the same process no socket is needed, and nobody has to prove himself.
func TestInProcess(t *testing.T) {
	w := newWorld(t)
	l := bufconn.Listen(1 << 16)
	srv := must(olympus.New(w.config()))(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, olympus.Trusted(l)) }()
	c := must(client.Dial("http://localhost", "", client.WithDialer(l.DialContext)))(t)
	if _, err := c.List(ctx, nil); err != nil {
		t.Error(err)
	}
	c.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
