package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/hades"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/control/moirai"
	"github.com/tartarus-vm/tartarus/internal/measure"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

const (
	placements = 2000 // a round
	tenants    = 20   // that wait
)

// Fleet is a control plane with many nodes behind which there is nothing: an
// order that was signed for a node counts as taken.
type Fleet struct {
	Book *sqliteledger.Ledger

	key   *seal.Key
	box   *seal.Box
	queue *acheron.Queue
	*hades.Registry

	mu     sync.Mutex
	asked  map[sandbox.ID]time.Time // of the round
	placed []sandbox.Assignment     // of the round
	lasted []float64                // ms, from asking for a request until its order was signed
	cpu    []float64                // µs of this process for each placement of a round
	all    chan struct{}            // closed when all of the round are placed
}

// NewFleet makes one with its ledger in dir. The caller closes it.
func NewFleet(ctx context.Context, dir string, nodes int) (_ *Fleet, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f := &Fleet{box: seal.NewBox()}
	if f.Book, err = sqliteledger.Open(ctx, sqliteledger.Config{Path: filepath.Join(dir, "ledger.db")}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Book.Close())
		}
	}()
	if f.key, err = seal.NewKey(); err != nil {
		return nil, err
	}
	f.Registry, err = hades.New(hades.Config{
		Ledger: f.Book, Key: f.key, Box: f.box, Lease: 24 * time.Hour, // nobody beats
		Dial: func(node, _ string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:"+node, grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
	})
	if err != nil {
		return nil, err
	}
	for n := range nodes {
		if err := f.join(ctx, fmt.Sprintf("node-%04d", n)); err != nil {
			return nil, err
		}
	}
	f.queue, err = acheron.New(acheron.Config{Ledger: f.Book, Owner: "bench"})
	return f, err
}

func (f *Fleet) join(ctx context.Context, id string) error {
	doc, err := nodewire.EncodeNode(sandbox.Node{
		ID: id, Capacity: sandbox.Capacity{VCPUs: 64, MemoryMiB: 256 << 10, DiskMiB: 1 << 20},
		Labels:    map[string]string{"zone": "a", "disk": "ssd"},
		Runtime:   sandbox.Runtime{Driver: "firecracker", Version: "1.17.0", Accelerator: "kvm"},
		Isolation: sandbox.Isolation{Accelerator: "kvm", Confinement: []string{"jailer", "seccomp", "cgroup_memory", "cgroup_cpu", "own_uid", "network_namespace"}},
	})
	if err != nil {
		return err
	}
	_, err = f.Join(ctx, &nodev1.JoinRequest{Node: doc})
	return err
}

// Close lets go of nodes and ledger.
func (f *Fleet) Close() error { return errors.Join(f.Registry.Close(), f.Book.Close()) }

// Assign signs the order as the registry does, and counts it as taken.
func (f *Fleet) Assign(_ context.Context, a sandbox.Assignment, adm sandbox.Admitted) error {
	now := time.Now()
	if _, err := f.box.Open(a.Sandbox, adm.Secrets); err != nil {
		return err
	}
	if _, err := f.key.SignOrder(seal.Order{
		Kind: seal.OrderAssign, Assignment: a, Verdict: adm.Record.Verdict.Digest, Issued: now, Expires: now.Add(time.Minute),
	}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lasted = append(f.lasted, float64(time.Since(f.asked[a.Sandbox]))/float64(time.Millisecond))
	if f.placed = append(f.placed, a); len(f.placed) == placements {
		close(f.all)
	}
	return nil
}

// timed is the queue; it notes when each request was asked for.
type timed struct {
	*acheron.Queue
	f *Fleet
}

func (q timed) Next(ctx context.Context) (ledger.Claim, error) {
	asked := time.Now()
	c, err := q.Queue.Next(ctx)
	q.f.mu.Lock()
	defer q.f.mu.Unlock()
	q.f.asked[c.Admitted.Record.ID] = asked
	return c, err
}

// Round has so many requests wait, lets the scheduler at them, and tells how
// many it placed a second. What it placed has ended then.
func (f *Fleet) Round(ctx context.Context) (float64, error) {
	if err := f.fill(ctx); err != nil {
		return 0, err
	}
	f.asked, f.placed, f.all = map[sandbox.ID]time.Time{}, nil, make(chan struct{})
	ring, err := seal.NewRing(f.key.Public())
	if err != nil {
		return 0, err
	}
	s, err := moirai.New(moirai.Config{Queue: timed{f.queue, f}, Ledger: f.Book, Nodes: f, Verdicts: ring})
	if err != nil {
		return 0, err
	}
	sctx, cancel := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	before, err := Look(os.Getpid())
	if err != nil {
		cancel()
		return 0, err
	}
	began := time.Now()
	go func() { stopped <- s.Run(sctx) }()
	select {
	case <-f.all:
	case <-ctx.Done():
	}
	took := time.Since(began)
	cancel()
	if err := errors.Join(<-stopped, ctx.Err()); err != nil {
		return 0, err
	}
	after, err := Look(os.Getpid())
	if err != nil {
		return 0, err
	}
	f.cpu = append(f.cpu, float64((after.CPU-before.CPU).Microseconds())/placements)
	return placements / took.Seconds(), f.end(ctx)
}

// fill admits the requests of a round.
func (f *Fleet) fill(ctx context.Context) error {
	n := 0
	_, err := Crowd(placements, func() (func() error, func(), error) {
		return func() error {
			f.mu.Lock()
			n++
			tenant := fmt.Sprintf("tenant-%02d", n%tenants)
			f.mu.Unlock()
			return f.admit(ctx, tenant)
		}, func() {}, nil
	})
	return err
}

func (f *Fleet) admit(ctx context.Context, tenant string) error {
	a, err := request(f.key, f.box, tenant)
	if err != nil {
		return err
	}
	_, _, err = f.Book.Admit(ctx, a, sandbox.AuditEntry{Time: a.Record.CreatedAt, Tenant: tenant, Action: "run", Sandbox: a.Record.ID, Decision: sandbox.Allow}, ledger.IdempotencyKey{})
	return err
}

// end ends what was placed.
func (f *Fleet) end(ctx context.Context) error {
	n := 0
	_, err := Crowd(len(f.placed), func() (func() error, func(), error) {
		return func() error {
			f.mu.Lock()
			a := f.placed[n]
			n++
			f.mu.Unlock()
			_, err := f.Book.End(ctx, a, sandbox.End{At: time.Now(), Exit: sandbox.ExitRecord{Cause: sandbox.Killed, Source: sandbox.FromHost}})
			return err
		}, func() {}, nil
	})
	return err
}

var plenty = sandbox.Limits{Live: 1 << 30, Running: 1 << 30, VCPUs: 1 << 30, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}

func digest(c string) sandbox.Digest { return sandbox.Digest("sha256:" + strings.Repeat(c, 64)) }

// request is a run as it is when it was admitted.
func request(key *seal.Key, box *seal.Box, tenant string) (a sandbox.Admitted, err error) {
	now := time.Now()
	id := sandbox.MakeID(ulid.Make().String())
	r := sandbox.Resolved{
		Template: "base", Command: []string{"python3", "-c", "print(40+2)"}, WorkingDir: "/work", User: "sandbox",
		TemplateDigest: digest("a"), GuestDigest: digest("b"), SecretsDigest: digest("c"), Labels: map[string]string{"team": "ci"},
		Resources:   sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64, Processes: 64},
		MaxDuration: time.Minute, StartTimeout: time.Minute, QueueTimeout: time.Hour, CapacityWait: time.Minute, LogBytes: 16 << 20,
	}
	a.Limits = plenty
	var d sandbox.Digest
	if a.Verdict, d, err = key.SignVerdict(seal.Verdict{Sandbox: id, Tenant: tenant, PolicyVersion: string(digest("d")), Issued: now, Expires: now.Add(2 * time.Hour), Request: r}); err != nil {
		return a, err
	}
	a.Record = sandbox.Record{
		ID: id, Tenant: tenant, State: sandbox.Queued, CreatedAt: now, Request: r,
		Verdict: sandbox.Verdict{Decision: sandbox.Allow, PolicyVersion: string(digest("d")), Digest: d, KeyID: key.ID()},
	}
	a.Secrets, err = box.Seal(id, []byte("what is secret of it"))
	return a, err
}

// Placement is how fast requests get from the queue to nodes, for each of some
// numbers of them. dir is for ledgers.
func Placement(ctx context.Context, dir string, rounds int, fleets ...int) (rows []measure.Row, err error) {
	floor, err := OpenBare(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, floor.Close()) }()
	for _, nodes := range fleets {
		more, err := placementOn(ctx, filepath.Join(dir, fmt.Sprintf("fleet-%d", nodes)), rounds, nodes, floor)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func placementOn(ctx context.Context, dir string, rounds, nodes int, floor *Bare) (_ []measure.Row, err error) {
	f, err := NewFleet(ctx, dir, nodes)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	pairs, err := measure.Alternate(ctx, rounds, f.Round, func(context.Context) (float64, error) {
		return floor.pairs(placements, moirai.DefaultWorkers)
	})
	if err != nil {
		return nil, err
	}
	var rates, tails, cpu []measure.Pair
	goals := []measure.Goal{measure.AtLeast(500)}
	var tailGoals []measure.Goal
	if nodes <= 1000 {
		goals, tailGoals = []measure.Goal{measure.AtLeast(2000)}, []measure.Goal{measure.AtMost(5)}
	}
	f.cpu, f.lasted = f.cpu[1:], f.lasted[placements:] // as of pairs, the first does not count
	for n, p := range pairs {
		rates = append(rates, p)
		cpu = append(cpu, measure.Pair{Value: f.cpu[n]})
		tails = append(tails, measure.Pair{Value: measure.Percentile(f.lasted[n*placements:(n+1)*placements], 99)})
	}
	return []measure.Row{
		measure.Of(measure.Row{
			Name: fmt.Sprintf("placements, %d nodes", nodes), Unit: "/s", Goals: goals,
			Includes: fmt.Sprintf("%d requests of %d tenants wait: claim (durable), check of the verdict's signature, ranking of all nodes, binding (durable, with the sums of tenant and node), the signed order; not its way over the wire", placements, tenants),
			FloorOf:  "as many workers that do two bare durable SQLite group commits one after the other",
		}, rates),
		measure.Of(measure.Row{
			Name: fmt.Sprintf("placement p99, %d nodes", nodes), Unit: "ms", Goals: tailGoals,
			Includes: "the same, from asking for the next request until its order is signed, under that load",
		}, tails),
		measure.Of(measure.Row{
			Name: fmt.Sprintf("CPU of a placement, %d nodes", nodes), Unit: "µs",
			Includes: "the same, all of the process",
		}, cpu),
	}, nil
}

// FillEnded has n sandboxes of a tenant end in a ledger.
func FillEnded(ctx context.Context, l *sqliteledger.Ledger, n int, tenant string) error {
	key, err := seal.NewKey()
	if err != nil {
		return err
	}
	box := seal.NewBox()
	_, err = Crowd(n, func() (func() error, func(), error) {
		return func() error {
			a, err := request(key, box, tenant)
			if err != nil {
				return err
			}
			a.Record.CreatedAt = a.Record.CreatedAt.Add(-time.Hour)
			if _, _, err := l.Admit(ctx, a, sandbox.AuditEntry{Time: a.Record.CreatedAt, Tenant: tenant, Action: "run", Sandbox: a.Record.ID, Decision: sandbox.Allow}, ledger.IdempotencyKey{}); err != nil {
				return err
			}
			_, err = l.End(ctx, sandbox.Assignment{Sandbox: a.Record.ID}, sandbox.End{At: time.Now(), Exit: sandbox.ExitRecord{Cause: sandbox.Killed, Source: sandbox.FromHost}})
			return err
		}, func() {}, nil
	})
	return err
}
