package olympus

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// Authenticator tells who calls. header is the Authorization header, whole.
type Authenticator interface {
	// Authenticate's errors are of kind Unauthenticated, or Unavailable.
	Authenticate(ctx context.Context, header, source string) (sandbox.Principal, error)

	// Hold returns ctx, ended when the token of header is no good any more:
	// its cause is then of kind Unauthenticated. The caller calls release.
	Hold(ctx context.Context, header string) (held context.Context, release func())
}

// Records is what the server reads of the ledger.
type Records interface {
	Get(ctx context.Context, id sandbox.ID) (sandbox.Record, error)
	List(ctx context.Context, q ledger.Query) (ledger.Page, error)
	Events(ctx context.Context, id sandbox.ID, after int64) ([]sandbox.Event, error)
	Watch(ctx context.Context) <-chan struct{}
}

// Killing writes the order to end a sandbox into the ledger.
type Killing interface {
	Kill(ctx context.Context, id sandbox.ID, cause sandbox.Cause, now time.Time, audit sandbox.AuditEntry) (sandbox.Record, error)
}

// Nodes reaches the sandboxes on their nodes.
type Nodes interface {
	// Kill carries the order to end rec to its node; grace is how long the
	// command may take to end by itself.
	Kill(ctx context.Context, rec sandbox.Record, grace time.Duration) error

	// Logs hands the output of a sandbox that is on a node to yield, from
	// offset on: what there is, and with follow until the output has ended. It
	// returns the error of yield as it is.
	Logs(ctx context.Context, rec sandbox.Record, offset int64, follow bool, yield func(hermes.Entry) error) error

	// Stdin passes in to the command, and its end. It may leave in unread when
	// the command ends.
	Stdin(ctx context.Context, rec sandbox.Record, in io.Reader) error
}

// Blobs opens the logs of ended sandboxes.
type Blobs interface {
	Open(ctx context.Context, d sandbox.Digest) (io.ReadSeekCloser, error)
}

// Config is what a Server is made of.
type Config struct {
	Auth      Authenticator
	Admission *Admission
	Records   Records
	Killing   Killing
	Nodes     Nodes
	Blobs     Blobs
	Operator  Operator

	// Metrics is where the server's own metrics are registered, and what
	// GET /metrics shows. nil: a registry of its own.
	Metrics *prometheus.Registry

	// Ready tells whether requests can be taken; nil: always.
	Ready func(ctx context.Context) error

	// Local is who calls over the Unix socket as the server's own user or
	// root, and over an in-process listener. The zero value is the admin of
	// tenant "local".
	Local sandbox.Principal

	// Hosts are names, beyond loopback's own and the certificate's, that
	// requests over TCP may call the server by.
	Hosts []string

	// Certificate is that of ListenTLS; nil without TLS.
	Certificate *Certificate

	MaxBody       int64         // of a request; 2 MiB if 0
	MaxWait       time.Duration // of ?wait; 5 min if 0
	MaxStreams    int           // a tenant's open streams and waits; 256 if 0
	HeaderTimeout time.Duration // for the head of a request, and a TLS handshake; 10 s if 0
	ReadTimeout   time.Duration // for the whole of a body; 30 s if 0. Standard input has none
	WriteTimeout  time.Duration // for a client to take what was written; 30 s if 0
	StopTimeout   time.Duration // for requests under way when the server stops; 10 s if 0

	Clock func() time.Time // time.Now if nil
	Log   *slog.Logger     // discards if nil

	Tracer *tracing.Tracer // nil: no traces
}

const (
	defaultMaxBody       = 2 << 20
	defaultMaxWait       = 5 * time.Minute
	defaultMaxStreams    = 256
	defaultHeaderTimeout = 10 * time.Second
	defaultReadTimeout   = 30 * time.Second
	defaultWriteTimeout  = 30 * time.Second
	defaultStopTimeout   = 10 * time.Second
)

// Validate says what is missing.
func (c *Config) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New("olympus: no "+what))
		}
	}
	need(c.Auth != nil, "Auth")
	need(c.Admission != nil, "Admission")
	need(c.Records != nil, "Records")
	need(c.Killing != nil, "Killing")
	need(c.Nodes != nil, "Nodes")
	need(c.Blobs != nil, "Blobs")
	need(c.MaxBody >= 0 && c.MaxWait >= 0 && c.MaxStreams >= 0, "bound below zero is possible")
	need(c.HeaderTimeout >= 0 && c.ReadTimeout >= 0 && c.WriteTimeout >= 0 && c.StopTimeout >= 0, "time below zero is possible")
	return errors.Join(append(errs, c.Operator.validate())...)
}

func (c *Config) setDefaults() {
	if c.Local.Tenant == "" {
		c.Local = sandbox.Principal{Tenant: "local", Scopes: []sandbox.Scope{sandbox.ScopeAdmin}, TokenID: "local"}
	}
	c.MaxBody = cmp.Or(c.MaxBody, defaultMaxBody)
	c.MaxWait = cmp.Or(c.MaxWait, defaultMaxWait)
	c.MaxStreams = cmp.Or(c.MaxStreams, defaultMaxStreams)
	c.HeaderTimeout = cmp.Or(c.HeaderTimeout, defaultHeaderTimeout)
	c.ReadTimeout = cmp.Or(c.ReadTimeout, defaultReadTimeout)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, defaultWriteTimeout)
	c.StopTimeout = cmp.Or(c.StopTimeout, defaultStopTimeout)
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}
