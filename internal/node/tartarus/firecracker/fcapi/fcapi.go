// Package fcapi is the client of Firecracker's API, as far as Tartarus uses it.
//
// It speaks HTTP over a stream that the caller opens, to a peer that a guest
// may have taken over: what comes back is bounded, and nothing of it is
// trusted but as a claim. Messages are types; what a version of Firecracker
// does not know is left out or refused here, for most of its messages refuse
// unknown fields. The names are held to Firecracker's own specification by a
// test.
package fcapi

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
	"time"
)

const (
	callTimeout = 30 * time.Second // for one call where ctx allows more, but for one that writes the guest's memory
	maxHeader   = 8 << 10          // bytes of an answer's header
	maxBody     = 64 << 10         // bytes of an answer's body
	maxFault    = 512              // bytes that are told of a fault_message
)

// Dial opens a stream to the API. It is called for each call.
type Dial func(ctx context.Context) (net.Conn, error)

// Client calls one Firecracker. Its methods may be called at once.
type Client struct {
	http    *http.Client
	version Version
}

// New is a client of a Firecracker of that version, which Connect finds out.
// It keeps no connection open.
func New(dial Dial, v Version) *Client {
	return &Client{version: v, http: &http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Connect asks the Firecracker behind dial for its version.
func Connect(ctx context.Context, dial Dial) (*Client, error) {
	c := New(dial, Version{})
	v, err := c.askVersion(ctx)
	if err != nil {
		return nil, err
	}
	c.version = v
	return c, nil
}

// Version is that of the Firecracker at the other end.
func (c *Client) Version() Version { return c.version }

// Error is a refusal by Firecracker.
type Error struct {
	Call    string // method and path
	Status  int    // of HTTP
	Message string // its fault_message, bounded; whoever runs in the VMM wrote it
}

// Error tells what was refused and why.
func (e *Error) Error() string {
	msg := e.Message
	if msg == "" {
		msg = "no reason given"
	}
	return fmt.Sprintf("firecracker refused %s with status %d: %s", e.Call, e.Status, msg)
}

// ErrNotKnown says that this version of Firecracker has no such call.
var ErrNotKnown = errors.New("this version of Firecracker does not know the call")

// do makes one call that takes no longer than callTimeout. The answer is
// decoded into out, unless that is nil.
func (c *Client) do(ctx context.Context, e endpoint, id string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.ask(ctx, e, id, in, out)
}

// ask is do without a bound of its own.
func (c *Client) ask(ctx context.Context, e endpoint, id string, in, out any) error {
	name := e.method + " " + e.path
	if c.version.Before(e.since) {
		return fmt.Errorf("%s: %w (it is %v, the call came with %v)", name, ErrNotKnown, c.version, e.since)
	}
	var body io.Reader
	if in != nil {
		b, err := encode(in, c.version)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		body = bytes.NewReader(b)
	}
	path := e.to(id)
	req, err := http.NewRequestWithContext(ctx, e.method, "http://localhost"+path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer resp.Body.Close() // only read
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return fmt.Errorf("%s: reading the answer: %w", name, err)
	}
	if len(text) > maxBody {
		return fmt.Errorf("%s: an answer of more than %d bytes", name, maxBody)
	}
	if resp.StatusCode != e.status {
		return &Error{Call: name, Status: resp.StatusCode, Message: faultMessage(text)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%s: the answer makes no sense: %w", name, err)
	}
	return nil
}

func faultMessage(text []byte) string {
	var f struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(text, &f) != nil {
		f.Message = string(text)
	}
	f.Message = strings.TrimSpace(f.Message)
	return strings.ToValidUTF8(f.Message[:min(len(f.Message), maxFault)], "?")
}
