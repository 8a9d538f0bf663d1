package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// Client speaks to one server. It may be used by many at once. Close it.
type Client struct {
	conn      *grpc.ClientConn
	sandboxes apiv1.SandboxServiceClient
	operators apiv1.OperatorServiceClient
}

// Option changes how Dial connects.
type Option func(*options)

type options struct {
	dial func(ctx context.Context) (net.Conn, error)
	tls  *tls.Config
}

// WithDialer connects by dial instead of the network: to a server in the same
// process. The target then only gives the form: use "http://localhost".
func WithDialer(dial func(ctx context.Context) (net.Conn, error)) Option {
	return func(o *options) { o.dial = dial }
}

// WithTLS sets the TLS of an https target; by default the system's roots.
func WithTLS(c *tls.Config) Option { return func(o *options) { o.tls = c } }

// Dial makes a client. target is unix:///path/to/socket, http://host:port
// (loopback only: a token must not cross a network in the clear) or
// https://host[:port]. token may be empty where none is needed. Nothing is
// sent before the first call.
func Dial(target, token string, opts ...Option) (*Client, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	address, creds, err := resolve(target, o)
	if err != nil {
		return nil, err
	}
	dialOpts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUnaryInterceptor(unaryErrors), grpc.WithStreamInterceptor(streamErrors),
	}
	if token != "" {
		dialOpts = append(dialOpts, grpc.WithPerRPCCredentials(bearer(token)))
	}
	if o.dial != nil {
		dialOpts = append(dialOpts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return o.dial(ctx) }))
	}
	if creds.Info().SecurityProtocol != "tls" {
		dialOpts = append(dialOpts, grpc.WithNoProxy())
	}
	conn, err := grpc.NewClient(address, dialOpts...)
	if err != nil {
		return nil, fmt.Errorf("dialing %s: %w", target, err)
	}
	return &Client{conn: conn, sandboxes: apiv1.NewSandboxServiceClient(conn), operators: apiv1.NewOperatorServiceClient(conn)}, nil
}

// resolve reads a target.
func resolve(target string, o options) (string, credentials.TransportCredentials, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", nil, targetError(target, "it is not a URL")
	}
	switch {
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", nil, targetError(u.Redacted(), "it has more than a scheme and an address")
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return "unix://" + u.Path, insecure.NewCredentials(), nil
	case strings.Trim(u.Path, "/") != "":
		return "", nil, targetError(target, "it has a path")
	case u.Scheme == "http" && u.Host != "":
		if o.dial == nil && !loopback(u.Hostname()) {
			return "", nil, targetError(target, "plain http would show the token to the network: use https")
		}
		return "passthrough:///" + withPort(u, "7777"), insecure.NewCredentials(), nil
	case u.Scheme == "https" && u.Host != "":
		c := o.tls.Clone()
		if c == nil {
			c = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		return "dns:///" + withPort(u, "443"), credentials.NewTLS(c), nil
	}
	return "", nil, targetError(target, "it is none of unix:///path, http://host:port and https://host")
}

func targetError(target, why string) error {
	return &Error{
		Code: InvalidArgument, Field: "server", Message: fmt.Sprintf("%q is no address of a server: %s", target, why),
		Hint: "As in unix:///path/to/socket, http://127.0.0.1:7777 or https://tartarus.example.com.",
	}
}

func withPort(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// bearer sends a token with every call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is false for loopback and Unix sockets: Dial takes
// care that nothing else goes without TLS.
func (b bearer) RequireTransportSecurity() bool { return false }

// Close ends the connection and every call on it.
func (c *Client) Close() error { return c.conn.Close() }

// Operators is the part of the API that operators use. Its errors are *Error,
// too.
func (c *Client) Operators() apiv1.OperatorServiceClient { return c.operators }

// RunOption changes one run.
type RunOption func(context.Context) context.Context

// WithIdempotencyKey makes a repeated Run with the same key and request answer
// with the first one's record instead of running it again.
func WithIdempotencyKey(key string) RunOption {
	return func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "idempotency-key", key)
	}
}

// Run starts a sandbox and returns its record: queued, as a rule. A refusal by
// policy is an *Error with the refused sandbox's ID.
func (c *Client) Run(ctx context.Context, req *apiv1.RunRequest, opts ...RunOption) (*apiv1.Sandbox, error) {
	for _, opt := range opts {
		ctx = opt(ctx)
	}
	return c.sandboxes.Run(ctx, req)
}

// Get reads a record.
func (c *Client) Get(ctx context.Context, id string) (*apiv1.Sandbox, error) {
	return c.sandboxes.Get(ctx, &apiv1.GetRequest{Id: id})
}

// List reads one page of records, newest first.
func (c *Client) List(ctx context.Context, req *apiv1.ListRequest) (*apiv1.ListResponse, error) {
	return c.sandboxes.List(ctx, req)
}

// Kill orders the end of a sandbox. grace is how long the command may take to
// end by itself; below zero stands for the server's default. An ended sandbox
// is returned as it is.
func (c *Client) Kill(ctx context.Context, id string, grace time.Duration) (*apiv1.Sandbox, error) {
	req := &apiv1.KillRequest{Id: id}
	if grace >= 0 {
		req.Grace = durationpb.New(grace)
	}
	return c.sandboxes.Kill(ctx, req)
}

// Stdin copies in to the standard input of a sandbox that was run with
// stdin_open, and ends it. It waits until the sandbox runs, and returns how
// much was taken. A sandbox that ends first is an *Error with code conflict;
// in may then stay blocked in a Read until that returns.
func (c *Client) Stdin(ctx context.Context, id string, in io.Reader) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.sandboxes.Stdin(ctx)
	if err != nil {
		return 0, err
	}
	broken := make(chan error, 1)
	go func() {
		if err := send(stream, id, in); err != nil {
			broken <- err
			cancel()
		}
	}()
	// The answer may come before in has ended: then nothing more is sent.
	resp := &apiv1.StdinResponse{}
	err = stream.RecvMsg(resp)
	select {
	case berr := <-broken:
		return 0, fmt.Errorf("reading the input: %w", berr)
	default:
	}
	return int64(resp.GetBytes()), err
}

// send copies in to stream. It returns only errors of in: when the stream
// breaks, its answer says why.
func send(stream apiv1.SandboxService_StdinClient, id string, in io.Reader) error {
	if stream.Send(&apiv1.StdinRequest{Id: id}) != nil {
		return nil
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 && stream.Send(&apiv1.StdinRequest{Data: buf[:n]}) != nil {
			return nil
		}
		if errors.Is(err, io.EOF) {
			_ = stream.CloseSend() // the answer says why, if it fails
			return nil
		}
		if err != nil {
			return err
		}
	}
}
