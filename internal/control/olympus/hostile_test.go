package olympus_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// raw is a connection to the server for bytes that no HTTP client sends.
func (w *world) raw() net.Conn {
	w.t.Helper()
	c := must(net.Dial("tcp", strings.TrimPrefix(w.url, "http://")))(w.t)
	_ = c.SetDeadline(time.Now().Add(time.Minute)) // never fails on an open connection
	return c
}

// Where two readers of HTTP may see different requests in the same bytes,
// there is one answer and the connection ends: what a proxy took for a body is
// never taken for a request.
func TestNoRequestIsSmuggled(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	const hidden = "GET /sandbox/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
	head := "Host: localhost\r\nAuthorization: Bearer " + token + "\r\n"
	post := "POST /sandbox/run HTTP/1.1\r\n" + head
	for name, c := range map[string]struct{ send, want string }{
		"a length and chunks":               {post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "400"},
		"chunks and a length":               {post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + hidden, "400"},
		"two lengths":                       {post + "Content-Length: 0\r\nContent-Length: 50\r\n\r\n" + hidden, "400"},
		"two lengths in one":                {post + "Content-Length: 0, 50\r\n\r\n" + hidden, "400"},
		"a signed length":                   {post + "Content-Length: +0\r\n\r\n" + hidden, "400"},
		"a negative length":                 {post + "Content-Length: -1\r\n\r\n" + hidden, "400"},
		"a hexadecimal length":              {post + "Content-Length: 0x32\r\n\r\n" + hidden, "400"},
		"a length with a space before":      {post + "Content-Length : 50\r\n\r\n" + hidden, "400"},
		"chunks under another name":         {post + "Transfer-Encoding: xchunked\r\n\r\n" + hidden, "501"},
		"chunks twice":                      {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden, "501"},
		"chunks with a vertical tab":        {post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + hidden, "400"},
		"a folded header first":             {"POST /sandbox/run HTTP/1.1\r\n Transfer-Encoding: chunked\r\n" + head + "\r\n" + hidden, "400"},
		"a chunk size that overflows":       {post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + hidden, "400"},
		"a chunk that ends too late":        {post + "Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n" + hidden, "400"},
		"a NUL in a header":                 {post + "X-A: a\x00b\r\n\r\n" + hidden, "400"},
		"a carriage return in a header":     {post + "X-A: a\rContent-Length: 50\r\n\r\n" + hidden, "400"},
		"no Host":                           {"GET /healthz HTTP/1.1\r\n\r\n" + hidden, "400"},
		"two Hosts":                         {"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n" + hidden, "400"},
		"a body where there is none":        {"GET /sandbox HTTP/1.1\r\n" + head + "Content-Length: 50\r\n\r\n" + hidden, "400"},
		"chunks where there is none":        {"GET /sandbox HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\n32\r\n" + hidden, "400"},
		"a body for another server":         {"POST /sandbox/run HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 200\r\n\r\n" + hidden, "400"},
		"a body for a probe":                {"GET /healthz HTTP/1.1\r\n" + head + "Content-Length: 200\r\n\r\n" + hidden, "200"},
		"an unread body":                    {"POST /nowhere HTTP/1.1\r\n" + head + "Content-Length: 200\r\n\r\n" + hidden, "404"},
		"another protocol":                  {"GET /healthz HTCPCP/1.0\r\nHost: localhost\r\n\r\n" + hidden, "400"},
		"no protocol":                       {"GET /healthz\r\n" + hidden, "400"},
		"bare line feeds in a chunk":        {post + "Transfer-Encoding: chunked\r\n\r\n0\n\n" + hidden, "400"},
		"a line feed in a chunk extension":  {post + "Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n0\r\n\r\n" + hidden, "400"},
		"half a request line, then the end": {"GET /sandbox", "400"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := w.raw()
			defer conn.Close()
			if _, err := io.WriteString(conn, c.send); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(conn)
			if c.send != "GET /sandbox" { // all others are answered without more
				_, _ = in.Peek(1)
			}
			_ = conn.(*net.TCPConn).CloseWrite() // so that whoever waits for more hears that there is none
			all, _ := io.ReadAll(in)             // it may be reset: what had come counts
			answers := regexp.MustCompile(`(?m)^HTTP/1\.[01] (\d+)`).FindAllStringSubmatch(string(all), -1)
			if len(answers) != 1 || answers[0][1] != c.want {
				t.Errorf("got %v, want one %s: %q", answers, c.want, all)
			}
		})
	}
	if strings.Contains(w.log.String(), "smuggled") {
		t.Error("a smuggled request reached the server")
	}
	if page := must(w.book.List(t.Context(), ledger.Query{}))(t); len(page.Records) != 0 {
		t.Errorf("%d records were stored", len(page.Records))
	}
}

// A head that does not end has its time, too.
func TestHalfAHeadTimesOut(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.HeaderTimeout = 100 * time.Millisecond })
	conn := w.raw()
	defer conn.Close()
	fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: loc")
	if b, err := io.ReadAll(conn); err != nil || strings.Contains(string(b), "200") {
		t.Errorf("got %q, %v", b, err)
	}
}

// Connections that do nothing, and others that stopped in the middle, keep
// nobody out.
func TestAThousandIdleConnections(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	for i := range 1000 {
		conn := w.raw()
		defer conn.Close()
		switch i % 4 {
		case 0: // nothing at all
		case 1:
			fmt.Fprint(conn, "POST /sandbox/run HT")
		case 2:
			fmt.Fprintf(conn, "POST /sandbox/run HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{", token)
		case 3:
			fmt.Fprint(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		}
	}
	for range 20 {
		w.run(token, `{"command":["true"]}`)
	}
}

// A thousand followers of one log, of whom half never read: those who read get
// every byte, and the others cost little.
func TestAThousandFollowersOfOneLog(t *testing.T) {
	const followers, piece, pieces = 1000, 32 << 10, 32
	w := newWorld(t, func(c *olympus.Config) { c.MaxStreams = 2 * followers; c.WriteTimeout = 5 * time.Minute })
	token := w.token("acme")
	id := w.run(token, `{"command":["yes"]}`)
	a := w.place()
	l := w.output(id, 0)
	before := heap()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var read sync.WaitGroup
	var got atomic.Int64
	for i := range followers {
		// Over the Unix socket, whose buffers are small: who does not read blocks
		// its writer.
		conn := must(new(net.Dialer).DialContext(ctx, "unix", w.socket))(t)
		defer conn.Close()
		fmt.Fprintf(conn, "GET /sandbox/%s/logs?follow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nAccept: text/plain\r\nConnection: close\r\n\r\n", id, token)
		if i%2 == 0 {
			continue
		}
		read.Go(func() {
			resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 4<<10), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{resp.Body}, make([]byte, 4<<10))
			if err != nil || n != piece*pieces {
				t.Errorf("a reader got %d bytes of %d, %v", n, piece*pieces, err)
			}
			got.Add(n)
		})
	}
	for !strings.Contains(w.ask(ask{path: "/metrics", token: token}).body, fmt.Sprintf("tartarus_api_streams %d\n", followers)) {
		if ctx.Err() != nil {
			t.Fatal("not everybody was let in")
		}
	}
	for range pieces {
		appendTo(t, l, hermes.Stdout, strings.Repeat("y\n", piece/2))
	}
	w.end(a, 0)
	read.Wait()
	if got.Load() != followers/2*piece*pieces {
		t.Errorf("the readers got %d bytes", got.Load())
	}
	if grown := heap() - before; grown > followers*(128<<10) {
		t.Errorf("%d followers hold %d KiB each", followers, grown/followers>>10)
	} else {
		t.Logf("%d followers, half of them open still: %d KiB each", followers, grown/followers>>10)
	}
}

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// Bodies that say they are something else are refused by what they say.
func TestOnlyJSONIsTaken(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	for form, ok := range map[string]bool{
		"application/json": true, "Application/JSON; charset=UTF-8": true, "": true,
		"application/x-www-form-urlencoded": true, // what curl says of -d
		"text/plain":                        false, "multipart/form-data; boundary=x": false, "application/xml": false, "application/octet-stream": false,
		"application/json; charset=utf-16": false, "application/grpc": false, "nonsense": false, "application/json, text/html": false,
	} {
		a := ask{method: "POST", path: "/sandbox/run", token: token, body: `{"command":["true"]}`}
		if form != "" {
			a.header = map[string]string{"Content-Type": form}
		}
		r := w.ask(a)
		if ok {
			r.json(t, http.StatusAccepted)
		} else if e := r.fails(t, fault.InvalidArgument); e.Field != "Content-Type" || e.Hint == "" {
			t.Errorf("%s: %s", form, r.body)
		}
	}
	r := w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: "x", header: map[string]string{"Content-Encoding": "gzip"}})
	if e := r.fails(t, fault.InvalidArgument); e.Field != "Content-Encoding" {
		t.Errorf("%s", r.body)
	}
}

// What is hostile in a request is refused, or comes back as plain JSON: never
// as a byte that a terminal would obey, in an answer or in our log.
func TestHostileText(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	many := map[string]any{}
	for i := range 10000 {
		many[fmt.Sprintf("k%d", i)] = "v"
	}
	for name, c := range map[string]struct {
		body  map[string]any
		field string // "" where it is taken
	}{
		"10,000 labels":               {map[string]any{"labels": many}, "labels"},
		"a NUL in a label":            {map[string]any{"labels": map[string]any{"team": "a\x00b"}}, "labels.team"},
		"bidi in a label":             {map[string]any{"labels": map[string]any{"team": "\u202eevil"}}, "labels.team"},
		"an escape in a label":        {map[string]any{"labels": map[string]any{"team": "\x1b[31m"}}, "labels.team"},
		"an escape in a label's key":  {map[string]any{"labels": map[string]any{"\x1b[31m": "x"}}, "labels"},
		"bidi in the name":            {map[string]any{"name": "a\u202eb"}, "name"},
		"an escape in the name":       {map[string]any{"name": "\x1b]0;x\x07"}, "name"},
		"a NUL in an argument":        {map[string]any{"command": []any{"a\x00b"}}, "command[0]"},
		"an escape in an argument":    {map[string]any{"command": []any{"\x1b[2J\u202e\u0085"}}, ""},
		"an escape in a variable":     {map[string]any{"env": map[string]any{"\x1b[2J": "x"}}, "env"},
		"an escape in an unknown key": {map[string]any{"\x1b[2J\u202e": 1}, `\x1b[2J\u202e`},
		"a path that climbs":          {map[string]any{"files": []any{map[string]any{"path": "/work/../../etc/shadow"}}}, "files[0].path"},
		"a path that is relative":     {map[string]any{"files": []any{map[string]any{"path": "etc/shadow"}}}, "files[0].path"},
		"a path with a dot":           {map[string]any{"files": []any{map[string]any{"path": "/work/./x"}}}, "files[0].path"},
		"a path with two slashes":     {map[string]any{"files": []any{map[string]any{"path": "//etc/shadow"}}}, "files[0].path"},
		"a path with a NUL":           {map[string]any{"files": []any{map[string]any{"path": "/work/x\x00.py"}}}, "files[0].path"},
		"a path into the kernel":      {map[string]any{"files": []any{map[string]any{"path": "/proc/sys/kernel/core_pattern"}}}, "files[0].path"},
		"a file below a file":         {map[string]any{"files": []any{map[string]any{"path": "/a"}, map[string]any{"path": "/a/b"}}}, "files[1].path"},
		"a template that climbs":      {map[string]any{"template": "../../etc"}, "template"},
		"a user with a colon":         {map[string]any{"user": "root:0"}, "user"},
	} {
		t.Run(name, func(t *testing.T) {
			body := map[string]any{"command": []any{"true"}}
			for k, v := range c.body {
				body[k] = v
			}
			r := w.ask(ask{method: "POST", path: "/sandbox/run", token: token, body: string(must(json.Marshal(body))(t))})
			if c.field == "" {
				r.json(t, http.StatusAccepted)
			} else if e := r.fails(t, fault.InvalidArgument); e.Field != c.field || e.Hint == "" {
				t.Errorf("field %q, want %q: %s", e.Field, c.field, r.body)
			}
			if strings.ContainsAny(r.body, "\x00\x1b\x07") || c.field != "" && strings.Contains(r.body, "\u202e") {
				t.Errorf("the answer has control characters: %q", r.body)
			}
		})
	}
	w.ask(ask{path: "/sandbox/%1b%5b2J%e2%80%ae", token: token}).fails(t, fault.InvalidArgument)
	w.ask(ask{path: "/%1b%5b2J%00", token: token}).fails(t, fault.NotFound)
	if strings.ContainsAny(w.log.String(), "\x00\x1b\x07\u202e") {
		t.Errorf("the log has control characters: %q", w.log.String())
	}
}

// Every kind of bad token is the same answer, and so is what clocks that
// disagree make of a good one: only the server's counts.
func TestBadTokens(t *testing.T) {
	w := newWorld(t)
	root := sandbox.Principal{Tenant: "local", Scopes: []sandbox.Scope{sandbox.ScopeAdmin}}
	issue := func(expires time.Time) (token, id string) {
		token, info, err := w.guard.Create(t.Context(), root, cerberus.Spec{
			Tenant: "acme", Scopes: []sandbox.Scope{sandbox.ScopeRead}, ExpiresAt: expires,
		})
		if err != nil {
			t.Fatal(err)
		}
		return token, info.ID
	}
	good, _ := issue(time.Time{})
	revoked, id := issue(time.Time{})
	if err := w.guard.Revoke(t.Context(), root, id); err != nil {
		t.Fatal(err)
	}
	short, _ := issue(time.Now().Add(50 * time.Millisecond))
	for r := (reply{}); r.code != http.StatusUnauthorized; { // until it has expired
		r = w.ask(ask{path: "/sandbox", token: short})
	}
	foreign := newWorld(t).token("acme") // of another server
	var answers []string
	for name, header := range map[string]string{
		"revoked": "Bearer " + revoked, "expired": "Bearer " + short, "foreign": "Bearer " + foreign, "none": "Bearer ",
		"malformed": "Bearer tart_", "cut": "Bearer " + good[:len(good)-1], "longer": "Bearer " + good + "A", "another scheme": "Basic " + good,
		"twice": "Bearer " + good + ", Bearer " + good, "huge": "Bearer tart_" + strings.Repeat("A", 8<<10), "not ASCII": "Bearer tart_ä",
	} {
		r := w.ask(ask{path: "/sandbox", header: map[string]string{"Authorization": header}})
		e := r.fails(t, fault.Unauthenticated)
		if e.Hint == "" || r.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %s %v", name, r.body, r.header)
		}
		answers = append(answers, e.Message)
	}
	kinds := map[string]bool{}
	for _, a := range answers {
		kinds[a] = true
	}
	if len(kinds) > 2 { // there is none, or it does not hold
		t.Errorf("the answers tell more than they should: %q", answers)
	}
	for _, date := range []string{"Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		if r := w.ask(ask{path: "/sandbox", token: good, header: map[string]string{"Date": date}}); r.code != http.StatusOK {
			t.Errorf("a caller whose clock says %s: %s", date, r.body)
		}
	}
	if log := w.log.String(); strings.Contains(log, good) || strings.Contains(log, revoked) || strings.Contains(log, foreign) {
		t.Error("the log shows a token")
	}
}

// A caller's own ID of a request comes back and is in the log; what is no ID
// is not taken for one.
func TestRequestIDs(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	for own, taken := range map[string]bool{
		"7f3a-trace.1": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "a b": false, "a\tb": false, "-a": false, `a"b`: false, "ä": false,
	} {
		r := w.ask(ask{path: "/sandbox/nonsense", token: token, header: map[string]string{"X-Request-Id": own}})
		e := r.fails(t, fault.InvalidArgument)
		if (e.RequestID == own) != taken || len(e.RequestID) > 64 {
			t.Errorf("%q became %q", own, e.RequestID)
		}
		if !strings.Contains(w.log.String(), "request_id="+e.RequestID) {
			t.Errorf("the log does not have %s", e.RequestID)
		}
	}
}
