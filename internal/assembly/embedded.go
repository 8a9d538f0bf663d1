package assembly

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/census"
	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
	"github.com/tartarus-vm/tartarus/internal/control/hades"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/control/moirai"
	"github.com/tartarus-vm/tartarus/internal/control/olympus"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/annals"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/hecatoncheir"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/snapshots"
	"github.com/tartarus-vm/tartarus/internal/node/styx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/runner"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// Config is what an embedded Tartarus is made of. The zero value is an up on
// this user's state folder, on its Unix socket alone.
type Config struct {
	StateDir string // this user's own if empty
	Policy   string // file or folder; the built-in policy if empty
	Listen   string // host:port, on loopback without TLS; "" for none
	TLSCert  string // file; with TLSKey: TLS on Listen
	TLSKey   string
	Hosts    []string // further names of the server
	VMM      cli.VMMOptions
	Standby  int  // VMs of a shape that wait for its runs, at most
	AllowTCG bool // callers beyond loopback are served without KVM, too

	// Local is everything for one command: a folder and lock of its own, no
	// socket unless Socket is set, and VMs that end with this process.
	Local  bool
	Socket bool

	// AuditSinks keep checkpoints of the audit log, as mnemosyne.OpenSink reads
	// them.
	AuditSinks []string

	// Templates are made first, where they are not there and can be made.
	Templates []string
	Progress  func(cli.Step) // nil: not told

	// Driver wraps the driver that was chosen, or replaces it; nil leaves it.
	// Tests watch or script VMs with it.
	Driver func(tartarus.Driver) tartarus.Driver

	// Ledger wraps the book, and Passing is the node agent's
	// (hecatoncheir.Config): tests let steps fail, and this process die, with
	// them. nil: as it is.
	Ledger  func(ledger.Ledger) ledger.Ledger
	Passing func(hecatoncheir.Passing) error

	// Host, if not nil, stands for this machine; tests and measurements run on
	// fakes with it.
	Host *Host

	// Capacity is what the node gives to sandboxes; this machine's if zero.
	Capacity sandbox.Capacity

	// Beside is how many user IDs for VMMs are left to who starts VMs beside
	// the node (embedded.beside). With some, a Local has as many others as an up.
	Beside int

	Logger *slog.Logger // nil: none
}

// Running is an embedded Tartarus that is up.
type Running struct {
	Addresses []string // for people: unix:///…, http://…
	Dial      func(ctx context.Context) (net.Conn, error)
	StateDir  string
}

// Run puts an embedded Tartarus together, calls ready when it answers, and
// runs it until ctx ends.
func Run(ctx context.Context, cfg Config, ready func(Running)) error {
	return newEmbedded(cfg).run(ctx, func(e *embedded) {
		if ready != nil {
			ready(Running{Addresses: e.addresses, Dial: e.api.DialContext, StateDir: e.paths.root})
		}
	})
}

func newEmbedded(cfg Config) *embedded {
	e := &embedded{cfg: cfg, log: cfg.Logger}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e
}

// run is Run's work.
func (e *embedded) run(ctx context.Context, ready func(*embedded)) (err error) {
	cfg := e.cfg
	defer func() { err = errors.Join(err, e.close()) }()
	host := []func(context.Context) error{e.detectNetwork, e.openImages, e.chooseDriver}
	if cfg.Host != nil {
		host = []func(context.Context) error{e.standIn}
	}
	steps := slices.Concat([]func(context.Context) error{e.openFolders, e.openCertificate, e.openTelemetry}, host, []func(context.Context) error{e.openBook, e.build})
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return runner.Run(ctx, func() { ready(e) }, e.services...)
}

// embedded is an embedded Tartarus while it is put together.
type embedded struct {
	cfg Config
	log *slog.Logger

	paths     paths
	home      home
	images    *nyx.Store
	blobs     *dirblobs.Store // of images
	driver    tartarus.Driver
	book      ledger.Ledger
	key       *seal.Key
	box       *seal.Box
	logs      *dirblobs.Store
	snapshots *snapshots.Maker
	policies  *themis.Source
	guard     *cerberus.Guard
	api       *bufconn.Listener // the API, for this process itself
	addresses []string
	cert      *olympus.Certificate  // nil without TLS
	uids      hecatoncheir.UIDRange // of the node's VMMs; none as an ordinary user
	beside    hecatoncheir.UIDRange // of VMMs beside the node
	metrics   *prometheus.Registry
	tracer    *tracing.Tracer // nil: no traces
	census    *census.Census
	detected  func() error // why sandboxes get no network cards here; nil if they do
	services  []runner.Service
	undo      []func() error // in order; carried out in reverse
}

func (e *embedded) later(f func() error) { e.undo = append(e.undo, f) }

func (e *embedded) close() error {
	var errs []error
	for i := len(e.undo) - 1; i >= 0; i-- {
		errs = append(errs, e.undo[i]())
	}
	e.undo = nil
	return errors.Join(errs...)
}

// openFolders opens the state and this process's own folder in it, locked.
func (e *embedded) openFolders(context.Context) error {
	root, err := stateRoot(e.cfg.StateDir)
	if err != nil {
		return err
	}
	if e.paths, err = openState(root); err != nil {
		return err
	}
	if err := e.openHome(); err != nil {
		return err
	}
	return e.takeUIDs()
}

func (e *embedded) openHome() error {
	if e.cfg.Local {
		h, remove, err := e.paths.newLocal()
		if err != nil {
			return err
		}
		e.home = h
		e.later(remove)
		return nil
	}
	e.home = e.paths.up()
	if err := privateDir(e.home.root); err != nil {
		return err
	}
	lock, err := tryLock(e.home.lock())
	if errors.Is(err, errHeld) {
		return fault.New(fault.Conflict, "another `tartarus up` runs on the state folder %s", e.paths.root).
			WithHint("use it as it is, end it, or name another folder with --state")
	}
	if err != nil {
		return err
	}
	e.later(lock.Close)
	return nil
}

func newULID() string { return strings.ToLower(ulid.MustNew(ulid.Now(), rand.Reader).String()) }

func (e *embedded) openImages(ctx context.Context) error {
	images, blobs, err := openImages(e.paths, nyx.Config{Log: e.log})
	if err != nil {
		return err
	}
	e.images, e.blobs = images, blobs
	if err := ensureBundle(ctx, images, e.cfg.Progress); err != nil {
		return err
	}
	for _, name := range e.cfg.Templates {
		if _, err := images.EnsureTemplate(ctx, name, steps(e.cfg.Progress)); err != nil && !fault.Is(err, fault.NotFound) {
			return err // one that is unknown is the request's to be told of
		}
	}
	return nil
}

func (e *embedded) chooseDriver(ctx context.Context) error {
	c, err := choose(ctx, e.paths, e.cfg.VMM, e.cfg.Progress, e.log)
	if err != nil {
		return err
	}
	e.later(c.close)
	e.driver = c.driver
	if e.cfg.Driver != nil {
		e.driver = e.cfg.Driver(c.driver)
	}
	info := e.driver.Info()
	e.log.Info("driver chosen", "driver", info.Name, "version", info.Version, "accelerator", info.Accelerator, "because", c.why, "kvm", c.kvm.Why, "not_firecracker", c.jail)
	return e.sweepLocals(ctx)
}

// bookReserve is the room on a full disk for ends and audit, some 2,000
// commits.
const bookReserve = 64 << 20

// openBook opens what this process keeps: keys, book, logs, policy, tokens.
func (e *embedded) openBook(ctx context.Context) (err error) {
	if e.key, err = seal.LoadOrCreateKey(e.home.key()); err != nil {
		return err
	}
	if e.box, err = seal.LoadOrCreateBox(e.home.box()); err != nil {
		return err
	}
	book := sqliteledger.Config{Path: e.home.ledger(), Logger: e.log, Observer: e.census}
	if !e.cfg.Local {
		book.Reserve = bookReserve
	}
	if e.book, err = sqliteledger.Open(ctx, book); err != nil {
		return err
	}
	e.later(e.book.Close)
	if e.cfg.Ledger != nil {
		e.book = e.cfg.Ledger(e.book)
	}
	if e.logs, err = dirblobs.Open(dirblobs.Config{Dir: e.home.logs(), Log: e.log}); err != nil {
		return err
	}
	e.policies, err = themis.OpenSource(ctx, themis.SourceConfig{Path: e.cfg.Policy, Book: annals.New(e.book, nil), Metrics: e.metrics, Logger: e.log})
	if err != nil {
		return err
	}
	e.guard, err = cerberus.New(cerberus.Config{
		Tokens: e.book, Logger: e.log,
		KnownTenant: func(name string) bool { _, ok := e.policies.Active().Tenant(name); return ok },
	})
	if err != nil {
		return err
	}
	if e.cfg.Local {
		return nil
	}
	public, err := e.key.PublicPEM()
	if err != nil {
		return err
	}
	return errors.Join(writeFile(e.home.public(), public), e.guard.EnsureAdminToken(ctx, e.paths.adminToken()))
}

// claimLease is how long a request waits that a killed process had claimed. A
// claim is held for milliseconds; one that took longer is tried again.
const claimLease = 5 * time.Second

// build makes the parts and the order in which they start.
func (e *embedded) build(ctx context.Context) error {
	w := newWire()
	reg, err := hades.New(hades.Config{Ledger: e.book, Key: e.key, Box: e.box, Dial: w.dialNode, Logger: e.log, Tracer: e.tracer})
	if err != nil {
		return err
	}
	agent, err := e.newAgent(w)
	if err != nil {
		return err
	}
	queue, err := acheron.New(acheron.Config{Ledger: e.book, Owner: newULID(), Lease: claimLease, Logger: e.log})
	if err != nil {
		return err
	}
	ring, err := seal.NewRing(e.key.Public())
	if err != nil {
		return err
	}
	sched, err := moirai.New(moirai.Config{Queue: queue, Ledger: e.book, Nodes: reg, Verdicts: ring, Logger: e.log})
	if err != nil {
		return err
	}
	if err := e.census.Read(census.Sources{Ledger: e.book, Queue: queue, Nodes: reg}); err != nil {
		return err
	}
	checkpoints, err := e.newCheckpoints()
	if err != nil {
		return err
	}
	server, err := e.newServer(reg)
	if err != nil {
		return err
	}
	e.services = []runner.Service{
		w.control(reg),
		w.node(agent),
		{Name: "node", Start: agent.Start, Run: agent.Run, Stop: agent.Stop, StopTimeout: time.Minute},
		{Name: "node registry", Run: reg.Run},
		{Name: "scheduler", Run: sched.Run},
		{Name: "audit checkpoints", Run: checkpoints.Run}, // it stops after those who write entries
		{Name: "housekeeping", Run: e.keepHouse},
		{Name: "policy", Run: e.policies.Run},
		e.serve(server),
	}
	if !e.cfg.Local { // one command is over before a snapshot would be made
		e.services = append(e.services, runner.Service{Name: "snapshots", Run: e.snapshots.Run, StopTimeout: time.Minute})
	}
	e.later(reg.Close)
	return ctx.Err()
}

func (e *embedded) newAgent(w *wire) (*hecatoncheir.Agent, error) {
	capacity, err := hostCapacity(e.paths.root)
	if err != nil {
		return nil, err
	}
	if e.cfg.Capacity != (sandbox.Capacity{}) {
		capacity = e.cfg.Capacity
	}
	scratch, err := lethe.Open(lethe.Config{Dir: e.paths.lethe(), Log: e.log})
	if err != nil {
		return nil, err
	}
	control, conn, err := w.controlClient()
	if err != nil {
		return nil, err
	}
	e.later(conn.Close)
	cfg := hecatoncheir.Config{
		NodeID: "local", Dir: e.home.node(), Driver: e.driver, Images: e.images, Scratch: scratch, Blobs: e.logs,
		Control: control, Capacity: capacity, Address: inMemory, UIDs: e.uids, Metrics: e.metrics, Tracer: e.tracer, Logger: e.log,
		Passing: e.cfg.Passing, Standby: e.cfg.Standby,
	}
	if e.snapshots, err = e.newMaker(); err != nil {
		return nil, err
	}
	cfg.Snapshots = e.snapshots
	network, err := e.openNetwork()
	if err != nil {
		return nil, err
	}
	if network != nil {
		cfg.Network = network
	}
	if e.cfg.Local {
		r, held, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("making the lifeline: %w", err)
		}
		// held is closed by the kernel when this process dies.
		e.later(func() error { return errors.Join(r.Close(), held.Close()) })
		cfg.Lifeline = r
	}
	return hecatoncheir.New(cfg)
}

func (e *embedded) newServer(reg *hades.Registry) (*olympus.Server, error) {
	adm, err := olympus.NewAdmission(olympus.AdmissionConfig{
		Policies: e.policies, Lookup: lookup{e.images}, Bench: judgeBench(), Key: e.key, Box: e.box, Ledger: e.census.Audited(e.book), Tracer: e.tracer,
		Contracts: styx.Check, // else they would wait for a node that there cannot be
	})
	if err != nil {
		return nil, err
	}
	return olympus.New(olympus.Config{
		Hosts: e.cfg.Hosts, Certificate: e.cert,
		Auth: e.guard, Admission: adm, Records: e.book, Killing: e.census.Audited(e.book), Nodes: reg, Blobs: e.logs,
		Operator: olympus.Operator{Templates: e.images, Nodes: reg, Audit: e.book, Policies: e.policies, Versions: e.book, Tokens: e.guard},
		Metrics:  e.metrics, Tracer: e.tracer, Log: e.log,
		Ready: func(ctx context.Context) error { _, err := e.book.Nodes(ctx); return err },
	})
}

// openCertificate reads what TLS goes by, if there shall be TLS.
func (e *embedded) openCertificate(context.Context) (err error) {
	if (e.cfg.TLSCert == "") != (e.cfg.TLSKey == "") {
		return fault.New(fault.InvalidArgument, "TLS needs a certificate and its key").WithHint("Give both --tls-cert and --tls-key.")
	}
	if e.cfg.TLSCert != "" {
		e.cert, err = olympus.LoadCertificate(e.cfg.TLSCert, e.cfg.TLSKey, e.log)
	}
	return err
}

// serve is the API on its listeners. They are opened at the start, so that an
// address that is taken is said at once.
func (e *embedded) serve(server *olympus.Server) runner.Service {
	e.api = bufconn.Listen(256 << 10)
	listeners := []net.Listener{olympus.Trusted(e.api)}
	return runner.Service{
		Name: "API server",
		Start: func(ctx context.Context) error {
			if e.cfg.Local && !e.cfg.Socket {
				return nil
			}
			l, err := olympus.ListenUnix(ctx, e.home.socket())
			if err != nil {
				return err
			}
			listeners = append(listeners, l)
			e.addresses = append(e.addresses, "unix://"+e.home.socket())
			if e.cfg.Listen == "" {
				return nil
			}
			scheme := "http://"
			if e.cert != nil {
				scheme = "https://"
				l, err = olympus.ListenTLS(ctx, e.cfg.Listen, e.cert)
			} else {
				l, err = olympus.ListenTCP(ctx, e.cfg.Listen)
			}
			if err != nil {
				return errors.Join(err, listeners[1].Close())
			}
			if err := e.mayServe(l.Addr()); err != nil {
				return errors.Join(err, l.Close(), listeners[1].Close())
			}
			listeners = append(listeners, l)
			e.addresses = append(e.addresses, scheme+l.Addr().String())
			return nil
		},
		Run:         func(ctx context.Context) error { return server.Serve(ctx, listeners...) },
		StopTimeout: 15 * time.Second,
	}
}

// mayServe refuses callers beyond this host where nothing but the VMM's
// confinement stands between their code and it, unless that was said.
func (e *embedded) mayServe(addr net.Addr) error {
	a, ok := addr.(*net.TCPAddr)
	if !ok || a.IP.IsLoopback() || e.cfg.AllowTCG || e.driver.Info().Accelerator == "kvm" {
		return nil
	}
	return fault.New(fault.Unsupported, "VMs run without KVM here (TCG), which is no security boundary of its own, and %s is beyond this host", addr).
		WithHint("Use a host where `tartarus doctor` finds KVM usable, listen on loopback, or say that it may be: --allow-tcg.")
}

var _ ledger.Ledger = (*sqliteledger.Ledger)(nil)
