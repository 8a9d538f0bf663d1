package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/memblobs"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	nodeID  = "n1"
	patient = 20 * time.Second // for what must happen at all
)

// images are files that nobody reads.
type images struct {
	dir     string
	missing bool
}

func (i images) file(name string) (string, error) {
	if i.missing {
		return "", fault.New(fault.NotFound, "there is no such template")
	}
	path := filepath.Join(i.dir, name)
	return path, os.WriteFile(path, []byte(name), 0o600)
}

func (i images) RootDisk(context.Context, sandbox.Digest) (string, error) { return i.file("root") }

func (i images) Bundle(_ context.Context, d sandbox.Digest) (nyx.Bundle, error) {
	kernel, err := i.file("kernel")
	initrd, ierr := i.file("initrd")
	return nyx.Bundle{Digest: d, Kernel: kernel, Initrd: initrd}, errors.Join(err, ierr)
}

// scratches are empty files.
type scratches struct{}

func (scratches) Create(_ context.Context, path string, mib int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(mib<<20), f.Close())
}

func (scratches) Wipe(_ context.Context, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// world is a control plane and a node that it has.
type world struct {
	t        testing.TB
	c        *control
	dir      string
	cfg      Config
	driver   *fakevm.Driver
	blobs    *memblobs.Store
	network  *network
	a        *Agent
	o        options
	line     *line
	cancel   context.CancelFunc
	stop     func()
	executed *executions
	next     int
}

type executions struct {
	mu sync.Mutex
	of map[sandbox.ID]int
}

func (e *executions) count(id sandbox.ID) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.of[id]
}

type options struct {
	script func(n int, s tartarus.Spec) fakevm.Script
	config func(*Config)
	fail   func(step string) error
	lease  time.Duration

	snapshots bool // the driver's VMs can go on from them
}

func newWorld(t testing.TB, o options) *world {
	w := &world{
		o: o, t: t, c: newControl(t), dir: t.TempDir(), blobs: memblobs.New(memblobs.Config{}), network: &network{},
		executed: &executions{of: map[sandbox.ID]int{}},
	}
	if o.lease > 0 {
		w.c.lease = o.lease
	}
	imageDir := t.TempDir()
	w.cfg = Config{
		NodeID: nodeID, Dir: w.dir, Images: images{dir: imageDir}, Scratch: scratches{}, Blobs: w.blobs, Network: w.network,
		Capacity:    sandbox.Capacity{VCPUs: 1000, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
		SampleEvery: 10 * time.Millisecond, TimeUpGrace: 100 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	w.driver = w.newDriver(o)
	w.cfg.Driver = w.driver
	if o.config != nil {
		o.config(&w.cfg)
	}
	w.start(o.fail)
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) newDriver(o options) *fakevm.Driver {
	cfg := fakevm.Config{Network: true, Snapshots: o.snapshots, OnExecute: func(id sandbox.ID, _ uint32, _ []string) {
		w.executed.mu.Lock()
		defer w.executed.mu.Unlock()
		w.executed.of[id]++
	}}
	if o.script != nil {
		cfg.Script = o.script
	}
	return fakevm.New(cfg)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// start starts an agent on the world's folder.
func (w *world) start(fail func(string) error) {
	w.t.Helper()
	w.line = &line{control: w.c}
	w.cfg.Control = w.line
	w.cfg.Passing = nil
	if fail != nil {
		w.cfg.Passing = func(p Passing) error {
			if p.Done == (p.Step == "execute") { // the order has not left yet
				return nil
			}
			return fail(p.Step)
		}
	}
	a, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := a.Start(ctx); err != nil {
		cancel()
		w.t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	w.a, w.cancel = a, cancel
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			w.t.Errorf("the agent failed: %v", err)
		}
		sctx, scancel := context.WithTimeout(context.Background(), patient)
		defer scancel()
		if err := a.Stop(sctx); err != nil {
			w.t.Errorf("stopping: %v", err)
		}
	})
}

// job is what a test wants to have run.
type job struct {
	id      sandbox.ID // made up if empty
	attempt int        // 1 if 0
	command []string
	secrets sandbox.Secrets
	change  func(*sandbox.Resolved)
	order   func(*seal.Order)
}

const digestOfNothing = sandbox.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

// request signs a job.
func (w *world) request(j job) (*nodev1.AssignRequest, sandbox.Assignment) {
	w.t.Helper()
	if j.id == "" {
		w.next++
		j.id = sandbox.MakeID(fmt.Sprintf("01jd%022d", w.next))
	}
	j.secrets.Salt = make([]byte, seal.SaltLen)
	secrets, digest, err := seal.EncodeSecrets(j.secrets)
	if err != nil {
		w.t.Fatal(err)
	}
	now := time.Now()
	r := sandbox.Resolved{
		Template: "base", TemplateDigest: digestOfNothing, GuestDigest: digestOfNothing, SecretsDigest: digest,
		Command: j.command, WorkingDir: "/work", User: "sandbox", StdinBytes: len(j.secrets.Stdin),
		Resources:   sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 16, Processes: 64},
		MaxDuration: time.Minute, StartTimeout: time.Minute, LogBytes: 1 << 20,
	}
	if j.change != nil {
		j.change(&r)
	}
	verdict, vdigest, err := w.c.key.SignVerdict(seal.Verdict{
		Sandbox: j.id, Tenant: "t", PolicyVersion: "v", Issued: now, Expires: now.Add(time.Hour), Request: r,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	as := sandbox.Assignment{Sandbox: j.id, Attempt: max(1, j.attempt), Node: nodeID, Epoch: w.c.epoch}
	o := seal.Order{Kind: seal.OrderAssign, Verdict: vdigest, Assignment: as, Issued: now, Expires: now.Add(time.Minute)}
	if j.order != nil {
		j.order(&o)
	}
	order, err := w.c.key.SignOrder(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return &nodev1.AssignRequest{Order: order, Verdict: verdict, Secrets: secrets}, o.Assignment
}

// assign assigns a job, which the node must take.
func (w *world) assign(j job) sandbox.Assignment {
	w.t.Helper()
	req, as := w.request(j)
	if _, err := w.a.Assign(context.Background(), req); err != nil {
		w.t.Fatalf("assigning: %v", nodewire.FromStatus(err))
	}
	return as
}

// kill orders the end of an assignment whose verdict is in req.
func (w *world) kill(req *nodev1.AssignRequest, as sandbox.Assignment, grace time.Duration) error {
	w.t.Helper()
	ring, err := seal.NewRing(w.c.key.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	_, digest, err := ring.OpenVerdict(req.GetVerdict(), time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	now := time.Now()
	order, err := w.c.key.SignOrder(seal.Order{
		Kind: seal.OrderKill, Verdict: digest, Assignment: as, Cause: sandbox.Killed, Grace: grace, Issued: now, Expires: now.Add(time.Minute),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = w.a.Kill(context.Background(), &nodev1.KillRequest{Order: order})
	return nodewire.FromStatus(err)
}

// log is the ended log of a sandbox, as stream:data.
func (w *world) log(end *sandbox.End) string {
	w.t.Helper()
	r, err := w.blobs.Open(context.Background(), end.LogDigest)
	if err != nil {
		w.t.Fatalf("the log's blob: %v", err)
	}
	defer func() { _ = r.Close() }()
	return decodeLog(w.t, r)
}

// nothingLeft waits until the agent is done with everything, and looks
// awaitOutput waits until the command has said something.
func (w *world) awaitOutput(id sandbox.ID) {
	w.t.Helper()
	l, err := w.a.get(id)
	if err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(patient); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		l.mu.Lock()
		said := l.output != nil && l.output.Bytes() > 0
		l.mu.Unlock()
		if said {
			return
		}
	}
	w.t.Fatal("the command says nothing")
}

// whether anything is left of it.
func (w *world) nothingLeft() {
	w.t.Helper()
	deadline := time.After(patient)
	for _, l := range w.a.all() {
		select {
		case <-l.over:
		case <-deadline:
			w.t.Fatalf("the agent is not done with %s", l.id)
		}
	}
	if n := w.driver.Live(); n != 0 {
		w.t.Errorf("%d VMs are left", n)
	}
	w.network.nothingLeft(w.t)
	names, err := os.ReadDir(w.a.sandboxesDir())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range names {
		w.t.Errorf("left among the sandboxes: %s", n.Name())
	}
	for _, e := range w.a.journal.Entries() {
		w.t.Errorf("left in the journal: %+v", e)
	}
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	for id := range maps.Keys(w.a.byID) {
		w.t.Errorf("left in the agent: %s", id)
	}
	if len(w.a.slots) != 0 {
		w.t.Errorf("user IDs are left in use: %v", w.a.slots)
	}
}

// crash leaves the node's folder as a SIGKILL now would, lets nobody hear of
// the agent any more, and starts another one on that folder.
func (w *world) crash() {
	w.t.Helper()
	w.line.cut.Store(true)
	after := w.t.TempDir()
	copied := func() error {
		if err := os.RemoveAll(after); err != nil {
			return err
		}
		return os.CopyFS(after, os.DirFS(w.dir))
	}
	err := copied()
	for range 100 { // files may go away while they are copied
		if err == nil {
			break
		}
		err = copied()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	dead := w.a
	cancel := w.cancel
	w.t.Cleanup(func() {
		cancel()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = dead.Stop(ctx) // nobody hears its ends
	})
	w.dir, w.cfg.Dir = after, after
	w.driver = w.newDriver(w.o)
	w.cfg.Driver = w.driver
	w.start(nil)
}

// line is an agent's line to the control plane.
type line struct {
	*control
	cut atomic.Bool
}

func (l *line) dead() error {
	if l.cut.Load() {
		return nodewire.StatusOf(fault.New(fault.Unavailable, "dead"))
	}
	return nil
}

func (l *line) Heartbeat(ctx context.Context, req *nodev1.HeartbeatRequest, _ ...grpc.CallOption) (*nodev1.HeartbeatResponse, error) {
	if err := l.dead(); err != nil {
		return nil, err
	}
	return l.control.Heartbeat(ctx, req)
}

func (l *line) Accept(ctx context.Context, req *nodev1.AcceptRequest, _ ...grpc.CallOption) (*nodev1.AcceptResponse, error) {
	if err := l.dead(); err != nil {
		return nil, err
	}
	return l.control.Accept(ctx, req)
}

func (l *line) Report(ctx context.Context, req *nodev1.ReportRequest, _ ...grpc.CallOption) (*nodev1.ReportResponse, error) {
	if err := l.dead(); err != nil {
		return nil, err
	}
	return l.control.Report(ctx, req)
}

func (l *line) Join(ctx context.Context, req *nodev1.JoinRequest, _ ...grpc.CallOption) (*nodev1.JoinResponse, error) {
	if err := l.dead(); err != nil {
		return nil, err
	}
	return l.control.Join(ctx, req)
}

func decodeLog(t testing.TB, r io.Reader) string {
	t.Helper()
	var b strings.Builder
	for e, err := range hermes.Decode(r) {
		if err != nil {
			t.Fatalf("the log: %v", err)
		}
		fmt.Fprintf(&b, "%s:%s", e.Stream, e.Data)
	}
	return b.String()
}
