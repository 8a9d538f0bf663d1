package olympus_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

type line struct {
	Offset     int64
	Stream     string
	Time       time.Time
	Text       *string
	DataBase64 string `json:"data_base64"`
	Truncated  bool
	Error      *wireError
}

func lines(t *testing.T, body string) []line {
	t.Helper()
	var out []line
	dec := json.NewDecoder(strings.NewReader(body))
	dec.DisallowUnknownFields()
	for dec.More() {
		var l line
		if err := dec.Decode(&l); err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		out = append(out, l)
	}
	return out
}

func appendTo(t *testing.T, l *hermes.Log, stream, text string) {
	t.Helper()
	if err := l.Append(stream, time.Now(), []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// A live follower and a later reader get the same bytes, with the same
// offsets, whichever stream they ask for.
func TestLogsLiveAndLater(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := string(w.run(token, `{"command":["true"]}`))
	base := "/sandbox/" + id + "/logs"

	// The follower begins before there is anything: not even a place.
	resp := w.open(t.Context(), ask{path: base + "?follow", token: token})
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || ct != "application/x-ndjson" {
		t.Fatalf("got %d %s", resp.StatusCode, ct)
	}
	if r := w.ask(ask{path: base, token: token}); r.code != 200 || r.body != "" {
		t.Errorf("before it runs: %d %q", r.code, r.body)
	}
	a := w.place()
	l := w.output(sandbox.ID(id), 0)
	live := bufio.NewReader(resp.Body)
	appendTo(t, l, hermes.Stdout, "one\n")
	first := must(live.ReadString('\n'))(t) // it comes although nothing follows yet
	if got := lines(t, first); len(got) != 1 || *got[0].Text != "one\n" || got[0].Stream != "stdout" || got[0].Time.IsZero() {
		t.Fatalf("got %q", first)
	}
	appendTo(t, l, hermes.Stderr, "two\n")
	appendTo(t, l, hermes.Stdout, "thr\xffee")
	w.end(a, 0)
	rest := string(must(io.ReadAll(live))(t))
	later := w.ask(ask{path: base, token: token}).body
	if first+rest != later {
		t.Errorf("live and later differ:\n%s\n%s", first+rest, later)
	}
	got := lines(t, later)
	if len(got) != 3 || got[1].Offset != 4 || got[1].Stream != "stderr" || got[2].Text != nil ||
		got[2].DataBase64 != base64.StdEncoding.EncodeToString([]byte("thr\xffee")) {
		t.Errorf("got %s", later)
	}
	for query, want := range map[string]string{
		"": "one\ntwo\nthr\xffee", "?stream=stderr": "two\n", "?stream=stdout": "one\nthr\xffee", "?offset=5": "wo\nthr\xffee",
		"?offset=6&stream=stdout": "thr\xffee", "?offset=1000": "", "?tail=1": "thr\xffee", "?tail=2": "two\nthr\xffee", "?tail=0": "",
		"?tail=2&stream=stdout": "one\nthr\xffee", "?tail=9": "one\ntwo\nthr\xffee", "?tail=9&offset=2": "e\ntwo\nthr\xffee",
	} {
		r := w.ask(ask{path: base + query, token: token, header: map[string]string{"Accept": "text/plain"}})
		if r.body != want {
			t.Errorf("%s: got %q, want %q", query, r.body, want)
		}
		if r.header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(r.header.Get("Content-Security-Policy"), "sandbox") ||
			!strings.HasPrefix(r.header.Get("Content-Disposition"), "attachment") {
			t.Errorf("a browser might show it: %v", r.header)
		}
	}
}

// A character that arrives in two pieces stays text, and every byte arrives
// once, at its offset, whatever the pieces.
func TestTextOfPieces(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	text := []byte(strings.Repeat("zwölf Boxkämpfer 拳闘士 🥊\n", 20) + "\xf0\x9f")
	for seed := range int64(20) {
		rng := rand.New(rand.NewSource(seed))
		id := w.run(token, `{"command":["true"]}`)
		a := w.place()
		l := w.output(id, 0)
		var want bytes.Buffer
		for rest := text; len(rest) > 0; {
			n := min(1+rng.Intn(7), len(rest))
			stream := hermes.Stdout
			if rng.Intn(4) == 0 {
				stream = hermes.Stderr
			}
			appendTo(t, l, stream, string(rest[:n]))
			want.Write(rest[:n])
			rest = rest[n:]
		}
		w.end(a, 0)
		var got bytes.Buffer
		for _, e := range lines(t, w.ask(ask{path: "/sandbox/" + string(id) + "/logs", token: token}).body) {
			if e.Offset != int64(got.Len()) {
				t.Fatalf("seed %d: a piece at %d, want %d", seed, e.Offset, got.Len())
			}
			if e.Text != nil {
				got.WriteString(*e.Text)
			} else {
				got.Write(must(base64.StdEncoding.DecodeString(e.DataBase64))(t))
			}
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("seed %d: got %q, want %q", seed, got.Bytes(), want.Bytes())
		}
	}
	// On one stream nothing is base64 but what is no text at all.
	id := w.run(token, `{"command":["true"]}`)
	a := w.place()
	l := w.output(id, 0)
	for _, b := range []byte("ä拳🥊") {
		appendTo(t, l, hermes.Stdout, string([]byte{b}))
	}
	w.end(a, 0)
	if body := w.ask(ask{path: "/sandbox/" + string(id) + "/logs", token: token}).body; strings.Contains(body, "data_base64") {
		t.Errorf("text became %s", body)
	}
}

func TestTruncatedLogsSaySo(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := w.run(token, `{"command":["true"]}`)
	a := w.place()
	l := w.output(id, 10)
	appendTo(t, l, hermes.Stdout, "0123456789abc")
	path := "/sandbox/" + string(id) + "/logs"
	live := w.ask(ask{path: path + "?follow=true", token: token}).body // it ends, though the sandbox runs on
	w.end(a, 0)
	later := w.ask(ask{path: path, token: token})
	if live != later.body {
		t.Errorf("live and later differ:\n%s\n%s", live, later.body)
	}
	got := lines(t, live)
	if len(got) != 2 || *got[0].Text != "0123456789" || !got[1].Truncated || got[1].Offset != 10 || got[1].Stream != "" {
		t.Errorf("got %s", live)
	}
	if plain := w.ask(ask{path: path, token: token, header: map[string]string{"Accept": "text/plain"}}); plain.body != "0123456789" || plain.header.Get("X-Log-Truncated") != "true" {
		t.Errorf("as text: %q %v", plain.body, plain.header)
	}
}

func TestServerSentEvents(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := w.run(token, `{"command":["true"]}`)
	a := w.place()
	l := w.output(id, 0)
	appendTo(t, l, hermes.Stdout, "one\n")
	appendTo(t, l, hermes.Stdout, "two\n")
	w.end(a, 0)
	sse := map[string]string{"Accept": "text/event-stream"}
	r := w.ask(ask{path: "/sandbox/" + string(id) + "/logs", token: token, header: sse})
	if !strings.HasPrefix(r.body, "event: log\nid: 4\ndata: {\"offset\":0,") || !strings.HasSuffix(r.body, "event: end\ndata: {}\n\n") ||
		r.header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("got %q", r.body)
	}
	sse["Last-Event-ID"] = "4"
	if r := w.ask(ask{path: "/sandbox/" + string(id) + "/logs", token: token, header: sse}); strings.Contains(r.body, "one") || !strings.Contains(r.body, "two") {
		t.Errorf("resumed at 4: %q", r.body)
	}
	sse["Last-Event-ID"] = "2"
	r = w.ask(ask{path: "/sandbox/" + string(id) + "/events", token: token, header: sse})
	if strings.Contains(r.body, "id: 2\n") || !strings.Contains(r.body, "id: 3\n") || !strings.Contains(r.body, "succeeded") {
		t.Errorf("events resumed at 2: %q", r.body)
	}
	if e := w.ask(ask{path: "/sandbox/" + string(id) + "/logs", token: token, header: map[string]string{"Accept": "image/png"}}).fails(t, fault.InvalidArgument); e.Field != "Accept" {
		t.Errorf("got %+v", e)
	}
}

func TestEventsFollowToTheEnd(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := w.run(token, `{"command":["true"]}`)
	resp := w.open(t.Context(), ask{path: "/sandbox/" + string(id) + "/events?follow", token: token})
	defer resp.Body.Close()
	live := bufio.NewReader(resp.Body)
	if first := must(live.ReadString('\n'))(t); !strings.Contains(first, `"state":"queued"`) {
		t.Fatalf("got %q", first)
	}
	w.end(w.place(), 2)
	var states []string
	dec := json.NewDecoder(live)
	for dec.More() {
		var e struct {
			Seq          int
			Time         time.Time
			State, Cause string
			Message      string
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Seq != len(states)+2 {
			t.Errorf("seq %d after %v", e.Seq, states)
		}
		states = append(states, strings.TrimSpace(e.State+" "+e.Cause))
	}
	if got := strings.Join(states, ", "); got != "assigned, starting, running, failed exited" {
		t.Errorf("got %s", got)
	}
}

// An error in the middle of a stream is its last line, in the one shape.
func TestAnErrorInTheMiddle(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := w.run(token, `{"command":["true"]}`)
	a := w.place()
	l := w.output(id, 0)
	for range 100 {
		appendTo(t, l, hermes.Stdout, strings.Repeat("x", 1000)+"\n")
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	b := must(io.ReadAll(must(openFile(l.Path()))(t)))(t)
	b[len(b)/2] ^= 1
	digest := must(w.blobs.Put(t.Context(), bytes.NewReader(b)))(t)
	code := 0
	if _, err := w.book.End(t.Context(), a, sandbox.End{At: time.Now(), LogDigest: digest, Exit: sandbox.ExitRecord{Cause: sandbox.Exited, Code: &code}}); err != nil {
		t.Fatal(err)
	}
	path := "/sandbox/" + string(id) + "/logs"
	r := w.ask(ask{path: path, token: token})
	got := lines(t, r.body)
	last := got[len(got)-1]
	if r.code != 200 || len(got) < 2 || last.Error == nil || last.Error.Code != "conflict" || last.Error.RequestID != r.header.Get("X-Request-Id") {
		t.Errorf("the last line is %+v", last)
	}
	sse := w.ask(ask{path: path, token: token, header: map[string]string{"Accept": "text/event-stream"}}).body
	if !strings.Contains(sse, "event: error\ndata: {\"error\":{\"code\":\"conflict\"") || strings.Contains(sse, "event: end") {
		t.Errorf("the event stream ends with %q", sse[max(0, len(sse)-300):])
	}
	resp := w.open(t.Context(), ask{path: path, token: token, header: map[string]string{"Accept": "text/plain"}})
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("plain text looks whole, and is not")
	}
}

// A log whose blob is gone is said to be, before anything is sent.
func TestALogThatIsNotKept(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	id := w.run(token, `{"command":["true"]}`)
	code := 0
	end := sandbox.End{At: time.Now(), LogDigest: sandbox.Digest("sha256:" + strings.Repeat("0", 64)), Exit: sandbox.ExitRecord{Cause: sandbox.Exited, Code: &code}}
	if _, err := w.book.End(t.Context(), w.place(), end); err != nil {
		t.Fatal(err)
	}
	w.ask(ask{path: "/sandbox/" + string(id) + "/logs", token: token}).fails(t, fault.NotFound)
}

func TestStdin(t *testing.T) {
	w := newWorld(t)
	token := w.token("acme")
	t.Run("closed", func(t *testing.T) {
		id := w.run(token, `{"command":["cat"]}`)
		w.ask(ask{method: "POST", path: "/sandbox/" + string(id) + "/stdin", token: token, body: "x"}).fails(t, fault.Conflict)
		w.end(w.place(), 0)
	})
	t.Run("reaches the command once it runs", func(t *testing.T) {
		id := w.run(token, `{"command":["cat"],"stdin_open":true}`)
		pr, pw := io.Pipe()
		req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/sandbox/"+string(id)+"/stdin", pr))(t)
		req.Header.Set("Authorization", "Bearer "+token)
		answered := make(chan string, 1)
		go func() {
			resp, err := w.client.Do(req)
			if err != nil {
				answered <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			answered <- resp.Status + " " + string(b)
		}()
		if _, err := io.WriteString(pw, "hello "); err != nil {
			t.Fatal(err)
		}
		a := w.place()
		big := strings.Repeat("y", 3<<20) // more than the bound of other bodies
		if _, err := io.WriteString(pw, big); err != nil {
			t.Fatal(err)
		}
		pw.Close()
		if got := <-answered; got != fmt.Sprintf("200 OK {\"bytes\":%d}\n", len(big)+6) {
			t.Errorf("got %s", got)
		}
		w.nodes.mu.Lock()
		if got := w.nodes.stdin[id].String(); got != "hello "+big {
			t.Errorf("the command got %d bytes", len(got))
		}
		w.nodes.mu.Unlock()
		w.end(a, 0)
	})
	t.Run("ends with the sandbox", func(t *testing.T) {
		w.nodes.mu.Lock()
		w.nodes.deaf = true
		w.nodes.mu.Unlock()
		id := w.run(token, `{"command":["cat"],"stdin_open":true}`)
		a := w.place()
		conn := must(net.Dial("tcp", strings.TrimPrefix(w.url, "http://")))(t)
		defer conn.Close()
		fmt.Fprintf(conn, "POST /sandbox/%s/stdin HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", id, token)
		w.end(a, 0)
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusConflict {
			t.Errorf("got %s", resp.Status)
		}
	})
}

// A follower that stops reading does not hold memory or a place for ever.
func TestAReaderThatStops(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.WriteTimeout = 200 * time.Millisecond })
	token := w.token("acme")
	id := w.run(token, `{"command":["yes"]}`)
	w.place()
	l := w.output(id, 64<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	resp := w.open(ctx, ask{path: "/sandbox/" + string(id) + "/logs?follow", token: token})
	defer resp.Body.Close()
	piece := strings.Repeat("y\n", 16<<10)
	for open := true; open; {
		appendTo(t, l, hermes.Stdout, piece)
		open = strings.Contains(w.ask(ask{path: "/metrics", token: token}).body, "tartarus_api_streams 1")
		if ctx.Err() != nil {
			t.Fatal("the stream is still open")
		}
	}
}

// A slow reader gets everything.
func TestASlowReaderGetsEverything(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.WriteTimeout = 2 * time.Second })
	token := w.token("acme")
	id := w.run(token, `{"command":["yes"]}`)
	a := w.place()
	l := w.output(id, 0)
	var want int
	for want < 12<<20 {
		appendTo(t, l, hermes.Stdout, strings.Repeat("y\n", 16<<10))
		want += 32 << 10
	}
	w.end(a, 0)
	resp := w.open(t.Context(), ask{path: "/sandbox/" + string(id) + "/logs", token: token, header: map[string]string{"Accept": "text/plain"}})
	defer resp.Body.Close()
	time.Sleep(300 * time.Millisecond) // the server fills every buffer meanwhile
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != int64(want) {
		t.Errorf("got %d of %d bytes, %v", n, want, err)
	}
}

func TestStreamsAreBoundedByTenant(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.MaxStreams = 2 })
	acme, local := w.token("acme"), w.token("local")
	id := w.run(acme, `{"command":["true"]}`)
	follow := "/sandbox/" + string(id) + "/events?follow"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		resp := w.open(ctx, ask{path: follow, token: acme})
		defer resp.Body.Close()
	}
	w.ask(ask{path: follow, token: acme}).fails(t, fault.QuotaExceeded)
	other := w.run(local, `{"command":["true"]}`)
	if r := w.ask(ask{path: "/sandbox/" + string(other) + "/events", token: local}); r.code != 200 {
		t.Errorf("another tenant is bounded, too: %s", r.body)
	}
	cancel()
	for r := (reply{}); r.code != 200; { // the places come back
		r = w.ask(ask{path: "/sandbox/" + string(id) + "/events", token: acme})
	}
}
