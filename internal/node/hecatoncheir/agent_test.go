package hecatoncheir

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/metrics"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// refused assigns what the node must not take.
func (w *world) refused(req *nodev1.AssignRequest, want fault.Kind) {
	w.t.Helper()
	_, err := w.a.Assign(context.Background(), req)
	if err = nodewire.FromStatus(err); !fault.Is(err, want) {
		w.t.Errorf("got %v (%v), want %v", err, fault.KindOf(err), want)
	}
}

func TestAssignmentsThatAreRefused(t *testing.T) {
	w := newWorld(t, options{config: func(c *Config) {
		c.Capacity = sandbox.Capacity{VCPUs: 4, MemoryMiB: 1000, DiskMiB: 1000}
	}})
	stranger, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		job  job
		key  *seal.Key
		edit func(*nodev1.AssignRequest)
		want fault.Kind
	}{
		{name: "another node", job: job{order: func(o *seal.Order) { o.Assignment.Node = "n2" }}, want: fault.PolicyDenied},
		{name: "an older epoch", job: job{order: func(o *seal.Order) { o.Assignment.Epoch = 99 }}, want: fault.Conflict},
		{name: "expired", job: job{order: func(o *seal.Order) {
			o.Issued, o.Expires = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}}, want: fault.PolicyDenied},
		{name: "another verdict's order", job: job{order: func(o *seal.Order) { o.Verdict = digestOfNothing }}, want: fault.PolicyDenied},
		{name: "an unknown key", key: stranger, want: fault.PolicyDenied},
		{name: "other secrets", edit: func(r *nodev1.AssignRequest) { r.Secrets = []byte(`{}`) }, want: fault.PolicyDenied},
		{name: "nothing", edit: func(r *nodev1.AssignRequest) { r.Reset() }, want: fault.PolicyDenied},
		{name: "network", job: job{change: func(r *sandbox.Resolved) {
			r.Network.Allow = []sandbox.Grant{{Domain: "a.example", Ports: []int{443}}}
		}}, want: fault.Unsupported},
		{name: "accelerator", job: job{change: func(r *sandbox.Resolved) { r.Isolation.Accelerator = "kvm" }}, want: fault.Unsupported},
		{name: "confinement", job: job{change: func(r *sandbox.Resolved) { r.Isolation.Confinement = []string{"landlock"} }}, want: fault.Unsupported},
		{name: "no vCPUs", job: job{change: func(r *sandbox.Resolved) { r.Resources.VCPUs = 0 }}, want: fault.InvalidArgument},
		{name: "too many vCPUs for the driver", job: job{change: func(r *sandbox.Resolved) { r.Resources.VCPUs = 65 }}, want: fault.Unsupported},
		{name: "too many vCPUs", job: job{change: func(r *sandbox.Resolved) { r.Resources.VCPUs = 5 }}, want: fault.QuotaExceeded},
		{name: "too much memory, with the VMM's", job: job{change: func(r *sandbox.Resolved) { r.Resources.MemoryMiB = 1000 - sandbox.VMOverheadMiB + 1 }}, want: fault.QuotaExceeded},
		{name: "too much disk", job: job{change: func(r *sandbox.Resolved) { r.Resources.DiskMiB = 1001 }}, want: fault.QuotaExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			own := w.c.key
			if c.key != nil {
				w.c.key = c.key
			}
			c.job.command = []string{"true"}
			req, _ := w.request(c.job)
			w.c.key = own
			if c.edit != nil {
				c.edit(req)
			}
			w.refused(req, c.want)
		})
	}
	w.nothingLeft()
	if n := w.driver.Started(); n != 0 {
		t.Errorf("%d VMs were started", n)
	}
}

// A node whose user IDs are all in use takes nothing more until one is free.
func TestUIDsRunOut(t *testing.T) {
	w := newWorld(t, options{config: func(c *Config) { c.UIDs = UIDRange{First: 5000, Count: 2} }})
	one, as1 := w.request(job{command: []string{"sleep", "forever"}})
	two, as2 := w.request(job{command: []string{"sleep", "forever"}})
	three, as3 := w.request(job{command: []string{"true"}})
	uids := map[int]bool{}
	for _, req := range []*nodev1.AssignRequest{one, two} {
		if _, err := w.a.Assign(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for _, as := range []sandbox.Assignment{as1, as2} {
		e, ok := w.a.journal.Get(as.Sandbox)
		if uids[e.UID] = true; !ok || e.UID < 5000 || e.UID > 5001 {
			t.Errorf("journal entry %+v, %v", e, ok)
		}
	}
	if len(uids) != 2 {
		t.Errorf("two VMMs share the users %v", uids)
	}
	w.refused(three, fault.QuotaExceeded)
	if err := w.kill(one, as1, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as1)
	if _, err := w.a.Assign(t.Context(), three); err != nil {
		t.Errorf("the user ID of an ended one: %v", err)
	}
	w.c.awaitEnd(t, as3)
	if err := w.kill(two, as2, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as2)
	w.nothingLeft()
}

func TestRoomIsGivenBack(t *testing.T) {
	w := newWorld(t, options{config: func(c *Config) {
		c.Capacity = sandbox.Capacity{VCPUs: 2, MemoryMiB: 1 << 20, DiskMiB: 1 << 20}
	}})
	one, as1 := w.request(job{command: []string{"sleep", "forever"}})
	two, as2 := w.request(job{command: []string{"sleep", "forever"}})
	three, as3 := w.request(job{command: []string{"true"}})
	for _, req := range []*nodev1.AssignRequest{one, two} {
		if _, err := w.a.Assign(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	w.refused(three, fault.QuotaExceeded)
	if err := w.kill(one, as1, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as1) // from here on the control plane counts on the room
	if _, err := w.a.Assign(t.Context(), three); err != nil {
		t.Errorf("the room of an ended one: %v", err)
	}
	w.c.awaitEnd(t, as3)
	if err := w.kill(two, as2, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as2)
	w.nothingLeft()
}

func TestReplays(t *testing.T) {
	w := newWorld(t, options{})
	req, as := w.request(job{command: []string{"sleep", "forever"}})
	for range 3 { // repeating it while it lives is no error
		if _, err := w.a.Assign(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	w.c.awaitState(t, as, sandbox.Running)
	later, _ := w.request(job{id: as.Sandbox, attempt: 2, command: []string{"true"}})
	w.refused(later, fault.Conflict)
	if err := w.kill(req, as, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as)
	w.nothingLeft()
	w.refused(req, fault.Conflict)
	w.refused(later, fault.Conflict)
	w.stop()
	w.start(nil)
	w.refused(req, fault.Conflict) // its epoch is over
	again, _ := w.request(job{id: as.Sandbox, command: []string{"true"}})
	w.refused(again, fault.Conflict) // it was here, whatever the epoch
	if n := w.executed.count(as.Sandbox); n != 1 {
		t.Errorf("executed %d times", n)
	}
	// With an emptied journal the epoch is what holds.
	w.stop()
	if err := os.RemoveAll(w.dir); err != nil {
		t.Fatal(err)
	}
	w.start(nil)
	w.refused(req, fault.Conflict)
	w.refused(again, fault.Conflict)
	w.nothingLeft()
}

func TestManyRepeatsOfOneAssignment(t *testing.T) {
	w := newWorld(t, options{})
	req, as := w.request(job{command: []string{"sleep", "0.1"}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := w.a.Assign(context.Background(), req)
			if err = nodewire.FromStatus(err); err != nil && !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.c.awaitEnd(t, as)
	w.nothingLeft()
	if n := w.executed.count(as.Sandbox); n != 1 {
		t.Errorf("executed %d times", n)
	}
}

func TestAnOvertakenAttemptMakesWay(t *testing.T) {
	w := newWorld(t, options{})
	w.c.onAccept = func(a sandbox.Assignment) error {
		if a.Attempt == 1 {
			return fault.New(fault.Unavailable, "nobody answers")
		}
		return nil
	}
	as := w.assign(job{command: []string{"true"}})
	req, as2 := w.request(job{id: as.Sandbox, attempt: 2, command: []string{"true"}})
	deadline := time.Now().Add(patient)
	for {
		_, err := w.a.Assign(t.Context(), req)
		if err == nil {
			break
		}
		if err = nodewire.FromStatus(err); !fault.Is(err, fault.Unavailable) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if got := w.c.awaitEnd(t, as2); got.end.Exit.State() != sandbox.Succeeded {
		t.Errorf("%+v", got.end.Exit)
	}
	w.nothingLeft()
	if n := w.executed.count(as.Sandbox); n != 1 {
		t.Errorf("executed %d times", n)
	}
}

func TestKillOrdersForOthers(t *testing.T) {
	w := newWorld(t, options{})
	req, as := w.request(job{command: []string{"sleep", "forever"}})
	if _, err := w.a.Assign(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	other := as
	other.Attempt = 2
	if err := w.kill(req, other, 0); !fault.Is(err, fault.Conflict) {
		t.Errorf("another attempt: %v", err)
	}
	other = as
	other.Node = "n2"
	if err := w.kill(req, other, 0); !fault.Is(err, fault.PolicyDenied) {
		t.Errorf("another node: %v", err)
	}
	another, _ := w.request(job{command: []string{"true"}})
	if err := w.kill(another, as, 0); !fault.Is(err, fault.Conflict) {
		t.Errorf("another verdict: %v", err)
	}
	if _, err := w.a.Kill(t.Context(), &nodev1.KillRequest{Order: req.GetOrder()}); !fault.Is(nodewire.FromStatus(err), fault.PolicyDenied) {
		t.Errorf("an order to run as one to kill: %v", err)
	}
	w.c.awaitState(t, as, sandbox.Running)
	if err := w.kill(req, as, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as)
	w.nothingLeft()
}

// TestTheLeaseIsLost cuts the node off for longer than its lease.
func TestTheLeaseIsLost(t *testing.T) {
	w := newWorld(t, options{lease: 300 * time.Millisecond})
	var all []sandbox.Assignment
	for range 5 {
		all = append(all, w.assign(job{command: []string{"stubborn"}}))
	}
	for _, as := range all {
		w.c.awaitState(t, as, sandbox.Running)
	}
	w.c.setDumb(true)
	begin := time.Now()
	for w.driver.Live() > 0 && time.Since(begin) < patient {
		time.Sleep(5 * time.Millisecond)
	}
	if took := time.Since(begin); took < 150*time.Millisecond || took > 5*time.Second {
		t.Errorf("the sandboxes ended after %v", took)
	}
	req, _ := w.request(job{command: []string{"true"}})
	w.refused(req, fault.Unavailable)
	w.c.setDumb(false)
	for _, as := range all {
		if got := w.c.awaitEnd(t, as); got.end.Exit.Cause != sandbox.NodeLost {
			t.Errorf("%+v", got.end.Exit)
		}
	}
	w.awaitEpoch(2)
	if got := w.c.awaitEnd(t, w.assign(job{command: []string{"true"}})); got.end.Exit.State() != sandbox.Succeeded {
		t.Errorf("after it joined anew: %+v", got.end.Exit)
	}
	w.nothingLeft()
}

// TestWhatHadNoLeaveOutlivesTheLease: a node that loses the control plane before
// it had leave to execute tells no end. The sandbox never ran, and a later attempt
// of it does.
func TestWhatHadNoLeaveOutlivesTheLease(t *testing.T) {
	w := newWorld(t, options{lease: 300 * time.Millisecond})
	w.c.mu.Lock()
	w.c.onAccept = func(a sandbox.Assignment) error {
		if a.Attempt == 1 {
			return fault.New(fault.Unavailable, "not now")
		}
		return nil
	}
	w.c.mu.Unlock()
	as := w.assign(job{command: []string{"true"}})
	w.c.setDumb(true)
	w.awaitEmptyJournal()
	w.c.setDumb(false)
	w.awaitEpoch(2)
	got := w.c.awaitEnd(t, w.assign(job{id: as.Sandbox, attempt: 2, command: []string{"true"}}))
	if got.end.Exit.State() != sandbox.Succeeded {
		t.Errorf("its second attempt: %+v", got.end.Exit)
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if first := w.c.of(as); first.end != nil || first.accepted {
		t.Errorf("of its first attempt was told: %+v", first)
	}
}

func (w *world) awaitEpoch(epoch int64) {
	w.t.Helper()
	deadline := time.Now().Add(patient)
	for {
		w.a.mu.Lock()
		now, joined := w.a.epoch, w.a.joined
		w.a.mu.Unlock()
		if joined && now >= epoch {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the node is at epoch %d", now)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAShortSilenceEndsNothing(t *testing.T) {
	w := newWorld(t, options{lease: 2 * time.Second})
	req, as := w.request(job{command: []string{"sleep", "forever"}})
	if _, err := w.a.Assign(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w.c.awaitState(t, as, sandbox.Running)
	w.c.setDumb(true)
	time.Sleep(time.Second) // a heartbeat at least is lost
	w.c.setDumb(false)
	w.c.mu.Lock()
	beats := w.c.beats
	w.c.mu.Unlock()
	deadline := time.Now().Add(patient)
	for n := beats; n < beats+2 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.c.mu.Lock()
		n = w.c.beats
		w.c.mu.Unlock()
	}
	if w.driver.Live() != 1 {
		t.Error("it was ended by a short silence")
	}
	if err := w.kill(req, as, 0); err != nil {
		t.Fatal(err)
	}
	w.c.awaitEnd(t, as)
	w.nothingLeft()
}

func TestAFencedNodeJoinsAnew(t *testing.T) {
	w := newWorld(t, options{lease: 300 * time.Millisecond})
	as := w.assign(job{command: []string{"sleep", "forever"}})
	w.c.awaitState(t, as, sandbox.Running)
	w.c.change(func() { w.c.epoch++ }) // as if another process had joined in its name
	if got := w.c.awaitEnd(t, as); got.end.Exit.Cause != sandbox.NodeLost {
		t.Errorf("%+v", got.end.Exit)
	}
	w.awaitEpoch(3)
	w.nothingLeft()
}

func TestWhatIsToBeForgottenEnds(t *testing.T) {
	w := newWorld(t, options{lease: 150 * time.Millisecond})
	as := w.assign(job{command: []string{"sleep", "forever"}})
	w.c.awaitState(t, as, sandbox.Running)
	l, err := w.a.get(as.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	w.c.change(func() { w.c.forget = []string{string(as.Sandbox)} })
	select {
	case <-l.over:
	case <-time.After(patient):
		t.Fatal("it lives on")
	}
	w.nothingLeft()
}

// TestNoSecretIsWritten looks for a marker in everything the node wrote.
func TestNoSecretIsWritten(t *testing.T) {
	const marker = "MARK-7f3a-HUNTER2"
	var out bytes.Buffer
	var mu sync.Mutex
	w := newWorld(t, options{config: func(c *Config) { c.Logger = loggerTo(&out, &mu) }})
	req, as := w.request(job{command: []string{"sleep", "forever"}, secrets: sandbox.Secrets{
		Env: map[string]string{"TOKEN": marker}, Stdin: []byte(marker), Files: []sandbox.File{{Path: "/f", Data: []byte(marker)}},
	}})
	if _, err := w.a.Assign(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w.c.awaitState(t, as, sandbox.Running)
	files := 0
	look := func() {
		err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			files++
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte(marker)) {
				t.Errorf("%s holds a secret", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	look()
	if files < 3 {
		t.Errorf("only %d files were looked at", files)
	}
	if err := w.kill(req, as, 0); err != nil {
		t.Fatal(err)
	}
	got := w.c.awaitEnd(t, as)
	w.nothingLeft()
	look()
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(out.String(), marker) || strings.Contains(got.end.Exit.Message, marker) {
		t.Error("log or record hold a secret")
	}
	if out.Len() == 0 {
		t.Error("nothing was logged: the test is blind")
	}
}

func TestFigures(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, options{config: func(c *Config) { c.Metrics = reg }})
	for _, command := range []string{"true", "no-such-command"} {
		w.c.awaitEnd(t, w.assign(job{command: []string{command}}))
	}
	w.nothingLeft()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"tartarus_node_sandboxes_ended_total exited": 1, "tartarus_node_sandboxes_ended_total start_failed": 1,
		"tartarus_node_sandboxes_ended_total killed": 0, "tartarus_node_sandboxes": 0,
		"tartarus_node_undo_failures_total vm": 0, "tartarus_node_boots_given_up_total": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
}

// The table of metrics knows the steps by their names.
func TestStepsAreInTheTable(t *testing.T) {
	var names []string
	for _, s := range preparation {
		names = append(names, s.name)
	}
	if !slices.Equal(names, metrics.Steps()) {
		t.Errorf("the steps are %v, and the table of metrics has %v", names, metrics.Steps())
	}
}

func TestConfigs(t *testing.T) {
	good := Config{
		NodeID: "n", Dir: "/tmp/n", Driver: fakevm.New(fakevm.Config{}), Images: images{}, Scratch: scratches{},
		Blobs: &noBlobs{}, Control: newControl(t), Capacity: sandbox.Capacity{VCPUs: 1, MemoryMiB: 1, DiskMiB: 1},
	}
	if _, err := New(good); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for name, spoil := range map[string]func(*Config){
		"no node": func(c *Config) { c.NodeID = "" }, "relative folder": func(c *Config) { c.Dir = "n" },
		"no driver": func(c *Config) { c.Driver = nil }, "no control plane": func(c *Config) { c.Control = nil },
		"no room": func(c *Config) { c.Capacity.DiskMiB = 0 },
	} {
		bad := good
		spoil(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
