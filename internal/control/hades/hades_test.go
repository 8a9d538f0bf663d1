package hades_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/control/hades"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is a node's side of the line; it notes what it is told.
type agent struct {
	nodev1.UnimplementedNodeServiceServer
	ring *seal.Ring

	mu    sync.Mutex
	kills []seal.Order
	stdin []byte
}

func (a *agent) Kill(_ context.Context, req *nodev1.KillRequest) (*nodev1.KillResponse, error) {
	o, err := a.ring.OpenOrder(req.GetOrder(), time.Now())
	if err != nil {
		return nil, nodewire.StatusOf(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kills = append(a.kills, o)
	return &nodev1.KillResponse{}, nil
}

func (a *agent) Assign(_ context.Context, req *nodev1.AssignRequest) (*nodev1.AssignResponse, error) {
	if _, err := a.ring.OpenOrder(req.GetOrder(), time.Now()); err != nil {
		return nil, nodewire.StatusOf(err)
	}
	return nil, status.Error(codes.FailedPrecondition, "had it")
}

func (a *agent) Stdin(s grpc.ClientStreamingServer[nodev1.StdinRequest, nodev1.StdinResponse]) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return s.SendAndClose(&nodev1.StdinResponse{})
		}
		a.mu.Lock()
		a.stdin = append(a.stdin, m.GetData()...)
		a.mu.Unlock()
	}
}

func (a *agent) Logs(_ *nodev1.LogsRequest, s grpc.ServerStreamingServer[nodev1.LogsResponse]) error {
	return errors.Join(
		s.Send(&nodev1.LogsResponse{Offset: 0, Stream: "stdout", Data: []byte("one")}),
		s.Send(&nodev1.LogsResponse{Offset: 3, Stream: "stderr", Data: []byte("two")}))
}

// world is a registry on a book in memory, with one node that can be dialled.
type world struct {
	t     *testing.T
	book  ledger.Ledger
	key   *seal.Key
	box   *seal.Box
	reg   *hades.Registry
	agent *agent
	ago   time.Duration // when place does so
}

const lease = 200 * time.Millisecond

func newWorld(t *testing.T) *world {
	t.Helper()
	key, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.NewRing(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, book: memledger.New(), key: key, box: seal.NewBox(), agent: &agent{ring: ring}}
	lis := bufconn.Listen(64 << 10)
	srv := grpc.NewServer()
	nodev1.RegisterNodeServiceServer(srv, w.agent)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(lis) }()
	w.reg, err = hades.New(hades.Config{
		Ledger: w.book, Key: key, Box: w.box, Lease: lease,
		Dial: func(_, address string) (*grpc.ClientConn, error) {
			if address != "here" {
				return nil, errors.New("no such host")
			}
			return grpc.NewClient("passthrough:node", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.reg.Close()
		srv.Stop()
		<-done
		w.book.Close()
	})
	return w
}

func (w *world) join() int64 {
	w.t.Helper()
	b, err := nodewire.EncodeNode(sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 8, MemoryMiB: 4096, DiskMiB: 4096}})
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.reg.Join(w.t.Context(), &nodev1.JoinRequest{Node: b, Address: "here"})
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.GetLeaseMs() != lease.Milliseconds() || len(resp.GetKeys()) != 1 || !slices.Equal(resp.GetKeys()[0], w.key.Public()) {
		w.t.Fatalf("Join answered %v", resp)
	}
	return resp.GetEpoch()
}

func (w *world) beat(epoch int64, live ...string) *nodev1.HeartbeatResponse {
	w.t.Helper()
	resp, err := w.reg.Heartbeat(w.t.Context(), &nodev1.HeartbeatRequest{Node: "n1", Epoch: epoch, Live: live})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

var ids = []string{"01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAW", "01ARZ3NDEKTSV4RRFFQ69G5FAX"}

// place admits sandbox i and binds it to the node.
func (w *world) place(i int, epoch int64) sandbox.Assignment {
	w.t.Helper()
	ctx, now := w.t.Context(), time.Now().Add(-w.ago)
	id := sandbox.MakeID(ids[i])
	sealed, err := w.box.Seal(id, []byte("{}"))
	if err != nil {
		w.t.Fatal(err)
	}
	rec := sandbox.Record{
		ID: id, Tenant: "t", State: sandbox.Queued, CreatedAt: now,
		Request: sandbox.Resolved{Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}},
		Verdict: sandbox.Verdict{Decision: sandbox.Allow, Digest: sandbox.Digest("sha256:" + strings.Repeat("ab", 32))},
	}
	limits := sandbox.Limits{Live: 10, Running: 10, VCPUs: 10, MemoryMiB: 4096, DiskMiB: 4096}
	if _, _, err := w.book.Admit(ctx, sandbox.Admitted{Record: rec, Limits: limits, Secrets: sealed}, sandbox.AuditEntry{Time: now, Tenant: "t", Action: "run"}, ledger.IdempotencyKey{}); err != nil {
		w.t.Fatal(err)
	}
	c, ok, err := w.book.Claim(ctx, "test", now, time.Minute, nil)
	if err != nil || !ok {
		w.t.Fatalf("Claim: %v, %v", ok, err)
	}
	a, err := w.book.Place(ctx, c, "n1", epoch, now)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) record(a sandbox.Assignment) sandbox.Record {
	w.t.Helper()
	rec, err := w.book.Get(w.t.Context(), a.Sandbox)
	if err != nil {
		w.t.Fatal(err)
	}
	return rec
}

// becomes waits until the record says so.
func (w *world) becomes(a sandbox.Assignment, s sandbox.State, c sandbox.Cause) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	changed := w.book.Watch(ctx)
	for {
		rec := w.record(a)
		if rec.State == s && rec.Exit.Cause == c {
			return
		}
		if _, ok := <-changed; !ok {
			w.t.Fatalf("%s is %s (%q), want %s (%q)", a.Sandbox, rec.State, rec.Exit.Cause, s, c)
		}
	}
}

// sweeping runs the registry's watch for the length of the test.
func (w *world) sweeping() {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.reg.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
}

func (w *world) accept(a sandbox.Assignment) error {
	_, err := w.reg.Accept(w.t.Context(), &nodev1.AcceptRequest{Assignment: nodewire.EncodeAssignment(a)})
	return nodewire.FromStatus(err)
}

func TestJoinRaisesTheEpochAndFencesTheOld(t *testing.T) {
	w := newWorld(t)
	first := w.join()
	offered, accepted := w.place(0, first), w.place(1, first)
	if err := w.accept(accepted); err != nil {
		t.Fatal(err)
	}
	w.sweeping()
	second := w.join()
	if second <= first {
		t.Fatalf("epochs %d, then %d", first, second)
	}
	if _, err := w.reg.Heartbeat(t.Context(), &nodev1.HeartbeatRequest{Node: "n1", Epoch: first}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a heartbeat of the old epoch: %v", err)
	}
	w.beat(second)
	w.becomes(offered, sandbox.Queued, "")
	w.becomes(accepted, sandbox.Failed, sandbox.NodeLost)
	if err := w.accept(offered); !fault.Is(err, fault.Conflict) {
		t.Errorf("accepting a fenced assignment: %v", err)
	}
}

func TestEndsToldBeforeTheFirstHeartbeatStay(t *testing.T) {
	w := newWorld(t)
	a := w.place(0, w.join())
	if err := w.accept(a); err != nil {
		t.Fatal(err)
	}
	w.sweeping()
	second := w.join()
	code := 7
	end, err := nodewire.EncodeEnd(sandbox.End{At: time.Now(), Exit: sandbox.ExitRecord{Cause: sandbox.Exited, Source: sandbox.FromGuest, Code: &code}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.reg.Report(t.Context(), &nodev1.ReportRequest{Assignment: nodewire.EncodeAssignment(a), End: end}); err != nil {
		t.Fatal(err)
	}
	w.beat(second)
	w.becomes(a, sandbox.Failed, sandbox.Exited)
}

func TestASilentNodeIsLostAfterLeaseAndMargin(t *testing.T) {
	w := newWorld(t)
	epoch := w.join()
	offered, accepted := w.place(0, epoch), w.place(1, epoch)
	if err := w.accept(accepted); err != nil {
		t.Fatal(err)
	}
	silent := time.Now()
	w.sweeping()
	w.becomes(accepted, sandbox.Failed, sandbox.NodeLost)
	if d := time.Since(silent); d < lease {
		t.Errorf("lost after %v, before the lease of %v was over", d, lease)
	}
	w.becomes(offered, sandbox.Queued, "")
}

func TestHeartbeatNamesWhatToForget(t *testing.T) {
	w := newWorld(t)
	epoch := w.join()
	a := w.place(0, epoch)
	stranger := string(sandbox.MakeID(ids[2]))
	got := w.beat(epoch, string(a.Sandbox), stranger).GetForget()
	if !slices.Equal(got, []string{stranger}) {
		t.Errorf("forget %q, want %q", got, stranger)
	}
}

// TestWhatNoOrderReachedIsQueuedAgain: the scheduler died, or its ledger failed,
// after a sandbox was bound and before the order for it had left.
func TestWhatNoOrderReachedIsQueuedAgain(t *testing.T) {
	w := newWorld(t)
	epoch := w.join()
	w.ago = time.Hour
	stranded, accepted := w.place(0, epoch), w.place(1, epoch)
	w.ago = 0
	young := w.place(2, epoch)
	if err := w.accept(accepted); err != nil {
		t.Fatal(err)
	}
	w.beat(epoch, string(stranded.Sandbox))
	if rec := w.record(stranded); rec.State != sandbox.Assigned {
		t.Errorf("one that its node has is %s", rec.State)
	}
	w.beat(epoch)
	if rec := w.record(stranded); rec.State != sandbox.Queued {
		t.Errorf("one that its node never had is %s", rec.State)
	}
	for _, a := range []sandbox.Assignment{accepted, young} {
		if rec := w.record(a); rec.State == sandbox.Queued {
			t.Errorf("%s was taken back", a.Sandbox)
		}
	}
	if err := w.accept(stranded); !fault.Is(err, fault.Conflict) {
		t.Errorf("an order that came too late got leave: %v", err)
	}
}

func TestKillIsSignedBoundAndRepeated(t *testing.T) {
	w := newWorld(t)
	epoch := w.join()
	a := w.place(0, epoch)
	if err := w.accept(a); err != nil {
		t.Fatal(err)
	}
	rec, err := w.book.Kill(t.Context(), a.Sandbox, sandbox.Killed, time.Now(), sandbox.AuditEntry{Time: time.Now(), Tenant: "t", Action: "kill"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reg.Kill(t.Context(), rec, time.Second); err != nil {
		t.Fatal(err)
	}
	w.beat(epoch, string(a.Sandbox)) // it has not ended yet: it is told again
	w.agent.mu.Lock()
	defer w.agent.mu.Unlock()
	if len(w.agent.kills) != 2 {
		t.Fatalf("%d kills arrived", len(w.agent.kills))
	}
	o := w.agent.kills[0]
	if o.Assignment != a || o.Cause != sandbox.Killed || o.Grace != time.Second || o.Verdict != rec.Verdict.Digest {
		t.Errorf("the order is %+v", o)
	}
}

func TestAKillBeforeAcceptEndsItThere(t *testing.T) {
	w := newWorld(t)
	a := w.place(0, w.join())
	if _, err := w.book.Kill(t.Context(), a.Sandbox, sandbox.Killed, time.Now(), sandbox.AuditEntry{Time: time.Now(), Tenant: "t", Action: "kill"}); err != nil {
		t.Fatal(err)
	}
	if err := w.accept(a); !fault.Is(err, fault.Conflict) {
		t.Errorf("Accept answered %v", err)
	}
	if rec := w.record(a); rec.State != sandbox.Failed || rec.Exit.Cause != sandbox.Killed {
		t.Errorf("it is %s, cause %q", rec.State, rec.Exit.Cause)
	}
}

func TestOrdersAndBytes(t *testing.T) {
	w := newWorld(t)
	a := w.place(0, w.join())
	adm, err := w.book.Admitted(t.Context(), a.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.reg.Assign(t.Context(), a, adm); !fault.Is(err, fault.Conflict) {
		t.Errorf("the node's refusal came as %v", err)
	}
	stale := a
	stale.Epoch++
	if err := w.reg.Assign(t.Context(), stale, adm); !fault.Is(err, fault.Conflict) {
		t.Errorf("an assignment of another epoch: %v", err)
	}
	if err := w.reg.Stdin(t.Context(), w.record(a), strings.NewReader("hello")); err != nil {
		t.Error(err)
	}
	if string(w.agent.stdin) != "hello" {
		t.Errorf("stdin arrived as %q", w.agent.stdin)
	}
	var got []hermes.Entry
	if err := w.reg.Logs(t.Context(), w.record(a), 0, false, func(c hermes.Entry) error { got = append(got, c); return nil }); err != nil || len(got) != 2 || got[1].Offset != 3 {
		t.Errorf("logs %v, %v", got, err)
	}
	stop := errors.New("enough")
	if err := w.reg.Logs(t.Context(), w.record(a), 0, false, func(hermes.Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a reader that stops got %v", err)
	}
}

func TestMalformedReportsAreRefused(t *testing.T) {
	w := newWorld(t)
	a := w.place(0, w.join())
	for name, req := range map[string]*nodev1.ReportRequest{
		"no assignment": {},
		"bad progress":  {Assignment: nodewire.EncodeAssignment(a), Progress: []byte(`{"state":"queued"}`)},
		"bad end":       {Assignment: nodewire.EncodeAssignment(a), End: []byte(`{"exit":{"cause":"mood"}}`)},
	} {
		if _, err := w.reg.Report(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if rec := w.record(a); rec.State != sandbox.Assigned {
		t.Errorf("a refused report moved it to %s", rec.State)
	}
}
