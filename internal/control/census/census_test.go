package census_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/census"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	start  = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	plenty = sandbox.Limits{Live: 1 << 20, Running: 1 << 20, VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}
)

// world is a census of a ledger in memory.
type world struct {
	t   *testing.T
	reg *prometheus.Registry
	c   *census.Census
	l   ledger.Ledger
	n   int
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, reg: prometheus.NewRegistry()}
	var err error
	w.c, err = census.New(census.Config{Metrics: w.reg})
	w.must(err)
	w.l = memledger.NewObserved(w.c)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func idOf(n int) sandbox.ID { return sandbox.MakeID(fmt.Sprintf("%026d", n)) }

func request(n int, tenant string) sandbox.Admitted {
	return sandbox.Admitted{
		Record: sandbox.Record{
			ID: idOf(n), Tenant: tenant, State: sandbox.Queued, CreatedAt: start, Timings: sandbox.Timings{Judged: 1},
			Request: sandbox.Resolved{Command: []string{"true"}, Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}},
		},
		Limits: plenty,
	}
}

func (w *world) admit() sandbox.ID {
	w.t.Helper()
	w.n++
	a := request(w.n, "t")
	_, _, err := w.l.Admit(w.t.Context(), a, sandbox.AuditEntry{Time: start, Tenant: "t", Action: "run"}, ledger.IdempotencyKey{})
	w.must(err)
	return a.Record.ID
}

// place claims the next request and binds it to n1 a millisecond later.
func (w *world) place(epoch int64, at time.Time) sandbox.Assignment {
	w.t.Helper()
	c, ok, err := w.l.Claim(w.t.Context(), "s", at, time.Minute, nil)
	w.must(err)
	if !ok {
		w.t.Fatal("nothing to claim")
	}
	a, err := w.l.Place(w.t.Context(), c, "n1", epoch, at.Add(time.Millisecond))
	w.must(err)
	return a
}

func (w *world) join() int64 {
	w.t.Helper()
	epoch, err := w.l.Join(w.t.Context(), sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 8, MemoryMiB: 1 << 20, DiskMiB: 1 << 20}})
	w.must(err)
	return epoch
}

// series are the values of all series, by name and values of labels; of
// histograms the sum, and the count under its name with #.
func (w *world) series() map[string]float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	w.must(err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			if h := m.GetHistogram(); h != nil {
				out[name], out[name+" #"] = h.GetSampleSum(), float64(h.GetSampleCount())
				continue
			}
			out[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

func (w *world) want(want map[string]float64) {
	w.t.Helper()
	got := w.series()
	for name, v := range want {
		if g, ok := got[name]; !ok || g-v > 1e-9 || v-g > 1e-9 {
			w.t.Errorf("%s is %v (there: %v), want %v", name, g, ok, v)
		}
	}
}

// TestRoad follows one sandbox through a refusal by its node to its end.
func TestRoad(t *testing.T) {
	w := newWorld(t)
	epoch := w.join()
	w.admit()
	ms := func(n int) time.Time { return start.Add(time.Duration(n) * time.Millisecond) }
	a := w.place(epoch, ms(11)) // queued for 10
	w.must(w.l.Requeue(t.Context(), a, ms(20), "refused"))
	a = w.place(epoch, ms(100))
	w.must(w.l.Accept(t.Context(), a, ms(102)))
	code := 0
	end := sandbox.End{At: ms(1000), Exit: sandbox.ExitRecord{Cause: sandbox.Exited, Code: &code}, Progress: sandbox.Progress{
		State: sandbox.Running, At: ms(401), VMReady: ms(401), FirstOutput: ms(451),
	}}
	for range 2 { // told twice, counted once
		_, err := w.l.End(t.Context(), a, end)
		w.must(err)
	}
	w.want(map[string]float64{
		"tartarus_stage_seconds judged": 0.001, "tartarus_stage_seconds queued": 0.010, "tartarus_stage_seconds placed": 0.002, // twice
		"tartarus_stage_seconds vm_ready": 0.300, "tartarus_stage_seconds first_output": 0.050, "tartarus_stage_seconds total": 1,
		"tartarus_stage_seconds placed #": 2, "tartarus_stage_seconds queued #": 1, "tartarus_stage_seconds total #": 1,
		"tartarus_sandboxes_requeued_total": 1, "tartarus_sandboxes_ended_total exited succeeded": 1, "tartarus_sandboxes_ended_total exited failed": 0,
	})
}

// Ends are counted wherever they come from; a refusal is none.
func TestEnds(t *testing.T) {
	w := newWorld(t)
	_, err := w.l.Kill(t.Context(), w.admit(), sandbox.Killed, start, sandbox.AuditEntry{Time: start})
	w.must(err)
	w.admit()
	c, _, err := w.l.Claim(t.Context(), "s", start, time.Minute, nil)
	w.must(err)
	_, err = w.l.Drop(t.Context(), c, sandbox.End{At: start, Exit: sandbox.ExitRecord{Cause: sandbox.NoCapacity}})
	w.must(err)
	refused := request(99, "t").Record
	refused.State = sandbox.Refused
	w.must(w.l.Refuse(t.Context(), refused, sandbox.AuditEntry{Time: start}))
	w.want(map[string]float64{
		"tartarus_sandboxes_ended_total killed failed": 1, "tartarus_sandboxes_ended_total no_capacity failed": 1,
		"tartarus_sandboxes_ended_total internal failed": 0, "tartarus_stage_seconds judged #": 3, "tartarus_stage_seconds total #": 2,
		"tartarus_stage_seconds first_output #": 0,
	})
}

func TestCommits(t *testing.T) {
	w := newWorld(t)
	w.c.Committed(7, 3*time.Millisecond, nil)
	w.c.Committed(2, time.Second, errors.New("the disk is full"))
	w.want(map[string]float64{
		"tartarus_ledger_commit_steps": 7, "tartarus_ledger_commit_steps #": 1, "tartarus_ledger_commit_seconds": 0.003,
		"tartarus_ledger_commit_failures_total": 1,
	})
}

// sources are what a census reads, made up.
type sources struct {
	depth acheron.Depth
	nodes []sandbox.Node
	err   error
}

func (s *sources) Live(context.Context) (map[sandbox.State]int, error) {
	return map[sandbox.State]int{sandbox.Queued: 3, sandbox.Running: 2}, nil
}
func (s *sources) Depth(context.Context) (acheron.Depth, error)  { return s.depth, s.err }
func (s *sources) Nodes(context.Context) ([]sandbox.Node, error) { return s.nodes, nil }
func (s *sources) Fresh() time.Duration                          { return time.Minute }

func TestRead(t *testing.T) {
	w := newWorld(t)
	now, full := time.Now(), sandbox.Capacity{VCPUs: 8, MemoryMiB: 100, DiskMiB: 10}
	s := &sources{
		depth: acheron.Depth{Ready: 1, Waiting: 2, Claimed: 3, Limited: 4, Oldest: 5 * time.Second},
		nodes: []sandbox.Node{
			{ID: "a", SeenAt: now, Capacity: full, InUse: sandbox.Capacity{VCPUs: 1, MemoryMiB: 10, DiskMiB: 1}},
			{ID: "b", SeenAt: now, Capacity: full, Draining: true},
			{ID: "c", SeenAt: now.Add(-time.Hour), Capacity: full, InUse: sandbox.Capacity{VCPUs: 2}},
			{ID: "d", Capacity: full},
		},
	}
	w.must(w.c.Read(census.Sources{Ledger: s, Queue: s, Nodes: s}))
	w.want(map[string]float64{
		"tartarus_queue_depth ready": 1, "tartarus_queue_depth waiting": 2, "tartarus_queue_depth claimed": 3,
		"tartarus_queue_limited_tenants": 4, "tartarus_queue_oldest_seconds": 5,
		"tartarus_sandboxes queued": 3, "tartarus_sandboxes running": 2,
		"tartarus_nodes ready": 1, "tartarus_nodes draining": 1, "tartarus_nodes silent": 2,
		"tartarus_nodes_vcpus capacity": 8, "tartarus_nodes_vcpus in_use": 3,
		"tartarus_nodes_memory_bytes capacity": 100 << 20, "tartarus_nodes_memory_bytes in_use": 10 << 20,
		"tartarus_nodes_disk_bytes capacity": 10 << 20, "tartarus_nodes_disk_bytes in_use": 1 << 20,
	})
}

// A ledger that cannot be read takes away its own metrics and no other.
func TestReadFailure(t *testing.T) {
	w := newWorld(t)
	s := &sources{err: errors.New("no")}
	w.must(w.c.Read(census.Sources{Ledger: s, Queue: s, Nodes: s}))
	w.series()
	got := w.series()
	if got["tartarus_metrics_read_failures_total"] < 1 {
		t.Errorf("the failure is not counted: %v", got)
	}
	for name := range got {
		if strings.HasPrefix(name, "tartarus_queue") || strings.HasPrefix(name, "tartarus_nodes") {
			t.Errorf("%s is told", name)
		}
	}
}

// failing is a ledger whose every step fails as it is told.
type failing struct {
	ledger.Ledger
	err error
}

func (f failing) Admit(context.Context, sandbox.Admitted, sandbox.AuditEntry, ledger.IdempotencyKey) (sandbox.Record, bool, error) {
	return sandbox.Record{}, false, f.err
}
func (f failing) Refuse(context.Context, sandbox.Record, sandbox.AuditEntry) error { return f.err }
func (f failing) Audit(context.Context, sandbox.AuditEntry) error                  { return f.err }
func (f failing) Kill(context.Context, sandbox.ID, sandbox.Cause, time.Time, sandbox.AuditEntry) (sandbox.Record, error) {
	return sandbox.Record{}, f.err
}

func TestAudited(t *testing.T) {
	for _, c := range []struct {
		err   error
		count float64
	}{
		{nil, 0}, {fault.New(fault.QuotaExceeded, "x"), 0}, {fault.New(fault.Conflict, "x"), 0},
		{fault.New(fault.Unavailable, "x"), 4}, {errors.New("the disk is full"), 4},
	} {
		w := newWorld(t)
		a := w.c.Audited(failing{err: c.err})
		ctx, audit := t.Context(), sandbox.AuditEntry{}
		_, _, admit := a.Admit(ctx, sandbox.Admitted{}, audit, ledger.IdempotencyKey{})
		_, kill := a.Kill(ctx, "", sandbox.Killed, start, audit)
		for _, err := range []error{admit, kill, a.Refuse(ctx, sandbox.Record{}, audit), a.Audit(ctx, audit)} {
			if !errors.Is(err, c.err) {
				t.Errorf("%v became %v", c.err, err)
			}
		}
		w.want(map[string]float64{"tartarus_audit_write_failures_total": c.count})
	}
}
