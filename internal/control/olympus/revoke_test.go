package olympus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// root makes and revokes tokens.
var root = sandbox.Principal{Tenant: "local", Scopes: []sandbox.Scope{sandbox.ScopeAdmin}, TokenID: "root"}

// revocable is a token of acme and how to revoke it.
func (w *world) revocable() (token string, revoke func()) {
	w.t.Helper()
	token, kept, err := w.guard.Create(w.t.Context(), root, cerberus.Spec{Tenant: "acme", Scopes: []sandbox.Scope{"read", "run"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return token, func() {
		w.t.Helper()
		if err := w.guard.Revoke(w.t.Context(), root, kept.ID); err != nil {
			w.t.Fatal(err)
		}
	}
}

// streams waits until so many streams and waits are open.
func (w *world) streams(n int) {
	w.t.Helper()
	token, patience := w.token("acme", sandbox.ScopeRead), time.Now().Add(time.Minute)
	for !strings.Contains(w.ask(ask{path: "/metrics", token: token}).body, fmt.Sprintf("tartarus_api_streams %d\n", n)) {
		if time.Now().After(patience) {
			w.t.Fatalf("there are never %d streams", n)
		}
	}
}

// Whatever a token holds open is cut when it is revoked, and its caller is
// told why; what another token holds open goes on.
func TestRevokingCutsStreams(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // far beyond a second: nothing here depends on it
	defer cancel()
	token, revoke := w.revocable()
	id := w.run(token, `{"command":["cat"],"stdin_open":true}`)
	w.place()
	appendTo(t, w.output(id, 0), hermes.Stdout, "one\n")
	w.nodes.deaf = true

	type end struct {
		what string
		err  error // of a client
		body string
	}
	ended := make(chan end, 16)
	open := 0
	watch := func(what string, f func() (string, error)) {
		open++
		go func() {
			body, err := f()
			ended <- end{what, err, body}
		}()
	}
	for path, accept := range map[string]string{"/logs": "application/x-ndjson", "/events": "text/event-stream"} {
		resp := w.open(ctx, ask{path: "/sandbox/" + string(id) + path + "?follow", token: token, header: map[string]string{"Accept": accept}})
		defer resp.Body.Close()
		watch("GET "+path, func() (string, error) {
			b, err := io.ReadAll(resp.Body)
			return string(b), err
		})
	}
	watch("run?wait", func() (string, error) {
		resp := w.open(ctx, ask{method: "POST", path: "/sandbox/run?wait=60s", token: token, body: `{"command":["true"]}`})
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	})
	pr, pw := io.Pipe()
	defer pw.Close()
	watch("POST stdin", func() (string, error) {
		req := must(http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/sandbox/"+string(id)+"/stdin", pr))(t)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := w.client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	})
	c := w.dial(token)
	watch("Logs", func() (_ string, err error) {
		for _, err = range c.Logs(ctx, &apiv1.LogsRequest{Id: string(id), Follow: true}) {
		}
		return "", err
	})
	watch("Events", func() (_ string, err error) {
		for _, err = range c.Events(ctx, &apiv1.EventsRequest{Id: string(id), Follow: true}) {
		}
		return "", err
	})
	silent, talk := io.Pipe()
	defer talk.Close()
	watch("Stdin", func() (string, error) {
		_, err := c.Stdin(ctx, string(id), silent)
		return "", err
	})
	bystander := must(apiv1.NewSandboxServiceClient(w.plain()).Events(
		metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+w.token("acme")), &apiv1.EventsRequest{Id: string(id), Follow: true}))(t)
	w.streams(open + 1)
	revoke()
	for range open {
		select {
		case e := <-ended:
			var ce *client.Error
			told := errors.As(e.err, &ce) && ce.Code == client.Unauthenticated
			if e.err == nil {
				told = strings.Contains(e.body, `"code":"unauthenticated"`) && strings.Contains(e.body, "has expired or was revoked")
			}
			if !told {
				t.Errorf("%s ended with %v, %s", e.what, e.err, e.body)
			}
		case <-ctx.Done():
			t.Fatal("some stream goes on")
		}
	}
	w.streams(1)
	for range 4 {
		if _, err := bystander.Recv(); err != nil {
			t.Errorf("another token's stream ended: %v", err)
		}
	}
}

// A caller who does not read what is sent to it is cut off all the same, even
// while there is always more to send.
func TestRevokingCutsADeafStream(t *testing.T) {
	w := newWorld(t, func(c *olympus.Config) { c.WriteTimeout = time.Hour })
	token, revoke := w.revocable()
	id := w.run(token, `{"command":["true"]}`)
	w.place()
	w.nodes.flood = true
	conn := must(net.Dial("tcp", strings.TrimPrefix(w.url, "http://")))(t).(*net.TCPConn)
	defer conn.Close()
	fmt.Fprintf(conn, "GET /sandbox/%s/logs?follow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", id, token)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
	deaf := must(apiv1.NewSandboxServiceClient(w.plain()).Logs(ctx, &apiv1.LogsRequest{Id: string(id), Follow: true}))(t)
	w.streams(2)
	revoke()
	w.streams(0)
	for n := 0; ; n++ { // what was on its way may come
		if _, err := deaf.Recv(); err != nil {
			break
		}
		if n > 10000 {
			t.Fatal("it goes on")
		}
	}
}

// Reflection is asked in a stream, too.
func TestRevokingCutsReflection(t *testing.T) {
	w := newWorld(t)
	token, revoke := w.revocable()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
	stream := must(reflectionv1.NewServerReflectionClient(w.plain()).ServerReflectionInfo(ctx))(t)
	question := &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}
	if err := stream.Send(question); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	revoke()
	_ = stream.Send(question) // the answer says why
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}

// An operator sees when tokens were used.
func TestLastUseIsShown(t *testing.T) {
	w := newWorld(t)
	admin, began := w.token("local", sandbox.ScopeAdmin), time.Now()
	w.token("acme", sandbox.ScopeRead) // never used
	var got struct {
		Tokens []struct {
			Scopes     []string
			LastUsedAt *time.Time `json:"last_used_at"`
		}
	}
	r := w.ask(ask{path: "/tokens", token: admin})
	if err := json.NewDecoder(bytes.NewReader([]byte(r.body))).Decode(&got); err != nil {
		t.Fatal(err)
	}
	for _, k := range got.Tokens {
		if used := k.LastUsedAt != nil && !k.LastUsedAt.Before(began); used != (k.Scopes[0] == "admin") {
			t.Errorf("%+v", k)
		}
	}
	if len(got.Tokens) != 2 {
		t.Errorf("%s", r.body)
	}
}
