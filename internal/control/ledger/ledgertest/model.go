package ledgertest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Model has random steps taken by a ledger and by a model of it that is as
// plain as can be, and compares. The model shares no code with the back ends.
func Model(t *testing.T, open Open) {
	rapid.Check(t, func(rt *rapid.T) {
		l := open(t)
		defer func() {
			if err := l.Close(); err != nil {
				rt.Errorf("closing the ledger: %v", err)
			}
		}()
		m := &model{world: world{t: t, l: l, ctx: t.Context(), now: epoch0}, rt: rt, epochs: map[string]int64{}, served: map[string]int{}}
		rt.Repeat(map[string]func(*rapid.T){
			"":        m.compare,
			"admit":   m.admits,
			"claim":   m.claims,
			"overdue": m.claimsOverdue,
			"release": m.releases,
			"drop":    m.drops,
			"place":   m.places,
			"requeue": m.requeues,
			"accept":  m.accepts,
			"advance": m.advances,
			"end":     m.ends,
			"kill":    m.kills,
			"join":    m.joins,
			"prune":   m.prunes,

			"activate": m.activates,
			"wait": func(rt *rapid.T) {
				m.later(time.Duration(rapid.IntRange(1, 20).Draw(rt, "seconds")) * time.Second)
			},
			"wait long": func(*rapid.T) { m.later(ledger.PolicyGrace / 2) },
		})
	})
}

// model is what the ledger should be.
type model struct {
	world
	rt     *rapid.T
	boxes  []*box // oldest first
	epochs map[string]int64
	served map[string]int
	turn   int
	given  []ledger.Claim       // every claim ever made
	bound  []sandbox.Assignment // every assignment ever made
	audit  int

	policies []ledger.Policy // kept, the active one last
	seq      int64           // of the last activation
}

// box is a sandbox of the model.
type box struct {
	id        sandbox.ID
	tenant    string
	policy    string
	state     sandbox.State
	vcpus     int
	limits    sandbox.Limits
	deadline  time.Time // zero: none
	attempt   int
	node      string
	epoch     int64
	kill      sandbox.Cause
	accepted  bool
	started   bool
	cause     sandbox.Cause
	road      []sandbox.State
	endedAt   time.Time
	token     int64
	owner     string
	held      bool // by the last claim
	until     time.Time
	notBefore time.Time
}

const modelCapacity = 5 // vCPUs of each node

func (b *box) live() bool { return b.state != sandbox.Succeeded && b.state != sandbox.Failed }

func (b *box) onNode() bool { return b.live() && b.state != sandbox.Queued }

func (b *box) enter(s sandbox.State) {
	b.state = s
	b.road = append(b.road, s)
}

func (b *box) finish(s sandbox.State, cause sandbox.Cause, at time.Time) {
	b.enter(s)
	b.cause, b.kill, b.held, b.endedAt = cause, "", false, at
}

func (m *model) find(id sandbox.ID) *box {
	for _, b := range m.boxes {
		if b.id == id {
			return b
		}
	}
	return nil
}

// agree compares the kind of an error with what the model expects; "" is none.
func (m *model) agree(rt *rapid.T, what string, err error, want string) {
	rt.Helper()
	got := ""
	if err != nil {
		got = fault.KindOf(err).String()
	}
	if got != want {
		rt.Fatalf("%s: got %q (%v), the model says %q", what, got, err, want)
	}
}

func (m *model) admits(rt *rapid.T) {
	tenant := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "tenant")
	a := m.request(tenant)
	res := &a.Record.Request.Resources
	res.VCPUs = rapid.IntRange(1, 3).Draw(rt, "vcpus")
	a.Limits.Live = rapid.IntRange(2, 6).Draw(rt, "live")
	a.Limits.Running = rapid.IntRange(1, 3).Draw(rt, "running")
	a.Limits.VCPUs = rapid.IntRange(2, 6).Draw(rt, "vcpu limit")
	if rapid.Bool().Draw(rt, "impatient") {
		a.Record.Request.QueueTimeout = time.Minute
	}
	a.Record.Verdict.PolicyVersion = rapid.SampledFrom(modelPolicies).Draw(rt, "policy")
	live, want := 0, ""
	for _, b := range m.boxes {
		if b.tenant == tenant && b.live() {
			live++
		}
	}
	if live >= a.Limits.Live {
		want = "quota_exceeded"
	}
	_, _, err := m.l.Admit(m.ctx, a, m.world.audit("run"), ledger.IdempotencyKey{})
	m.agree(rt, "Admit", err, want)
	if err != nil {
		return
	}
	b := &box{id: a.Record.ID, tenant: tenant, policy: a.Record.Verdict.PolicyVersion, vcpus: res.VCPUs, limits: a.Limits}
	if d := a.Record.Request.QueueTimeout; d > 0 {
		b.deadline = m.now.Add(d)
	}
	b.enter(sandbox.Queued)
	m.boxes = append(m.boxes, b)
	m.audit++
}

// sums are those of the tenant's sandboxes on nodes.
func (m *model) sums(of func(b *box) bool) (running, vcpus int) {
	for _, b := range m.boxes {
		if b.onNode() && of(b) {
			running++
			vcpus += b.vcpus
		}
	}
	return running, vcpus
}

func (m *model) claims(rt *rapid.T) {
	early := rapid.Bool().Draw(rt, "early")
	skip := rapid.SampledFrom([][]string{nil, nil, {"a"}, {"b"}}).Draw(rt, "skip")
	var want *box
	for _, b := range m.boxes {
		offered := b.state == sandbox.Queued && (!b.held || !b.until.After(m.now)) && (early || !b.notBefore.After(m.now))
		if !offered || slices.Contains(skip, b.tenant) {
			continue
		}
		if want == nil {
			want = b
			continue
		}
		if b.tenant == want.tenant {
			continue // oldest first
		}
		mine, _ := m.sums(func(x *box) bool { return x.tenant == b.tenant })
		theirs, _ := m.sums(func(x *box) bool { return x.tenant == want.tenant })
		if mine < theirs || mine == theirs && m.served[b.tenant] < m.served[want.tenant] {
			want = b
		}
	}
	claim := m.l.Claim
	if early {
		claim = m.l.ClaimEarly
	}
	c, ok, err := claim(m.ctx, scheduler, m.now, lease, skip)
	m.agree(rt, "Claim", err, "")
	m.took(rt, c, ok, want)
}

func (m *model) claimsOverdue(rt *rapid.T) {
	var want *box
	for _, b := range m.boxes {
		if b.state == sandbox.Queued && (!b.held || !b.until.After(m.now)) && !b.deadline.IsZero() && !b.deadline.After(m.now) &&
			(want == nil || b.deadline.Before(want.deadline)) {
			want = b
		}
	}
	c, ok, err := m.l.ClaimOverdue(m.ctx, scheduler, m.now, lease)
	m.agree(rt, "ClaimOverdue", err, "")
	m.took(rt, c, ok, want)
}

// took compares a claim with the box it should be of.
func (m *model) took(rt *rapid.T, c ledger.Claim, ok bool, want *box) {
	switch {
	case ok != (want != nil):
		rt.Fatalf("claimed %v (%s), the model says %v (%+v)", ok, c.Admitted.Record.ID, want != nil, want)
	case !ok:
		return
	case c.Admitted.Record.ID != want.id:
		rt.Fatalf("claimed %s, the model says %s", c.Admitted.Record.ID, want.id)
	case c.Token <= want.token:
		rt.Fatalf("token %d follows %d", c.Token, want.token)
	}
	want.token, want.owner, want.held, want.until = c.Token, c.Owner, true, m.now.Add(lease)
	m.turn++
	m.served[want.tenant] = m.turn
	m.given = append(m.given, c)
}

// someClaim is one of those made, mostly a late one.
func (m *model) someClaim(rt *rapid.T) (ledger.Claim, *box) {
	if len(m.given) == 0 {
		rt.Skip("no claim yet")
	}
	i := len(m.given) - 1 - rapid.IntRange(0, min(5, len(m.given)-1)).Draw(rt, "claim")
	c := m.given[i]
	return c, m.find(c.Admitted.Record.ID)
}

// holds is the kind of error for a claim.
func holds(c ledger.Claim, b *box) string {
	switch {
	case b == nil:
		return "not_found"
	case b.state != sandbox.Queued || !b.held || b.token != c.Token:
		return "conflict"
	}
	return ""
}

func (m *model) releases(rt *rapid.T) {
	c, b := m.someClaim(rt)
	at := m.now.Add(time.Duration(rapid.IntRange(0, 30).Draw(rt, "pause")) * time.Second)
	want := holds(c, b)
	m.agree(rt, "Release", m.l.Release(m.ctx, c, at, ledger.Waiting{}), want)
	if want == "" {
		b.held, b.notBefore = false, at
	}
}

func (m *model) drops(rt *rapid.T) {
	c, b := m.someClaim(rt)
	want := holds(c, b)
	_, err := m.l.Drop(m.ctx, c, sandbox.End{At: m.now, Exit: sandbox.ExitRecord{Cause: sandbox.NoCapacity}})
	m.agree(rt, "Drop", err, want)
	if want == "" {
		b.finish(sandbox.Failed, sandbox.NoCapacity, m.now)
	}
}

func (m *model) places(rt *rapid.T) {
	c, b := m.someClaim(rt)
	node := rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "node")
	epoch := m.epochs[node] - int64(rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(rt, "epochs ago"))
	want := holds(c, b)
	if want == "" {
		running, vcpus := m.sums(func(x *box) bool { return x.tenant == b.tenant })
		_, used := m.sums(func(x *box) bool { return x.node == node })
		switch {
		case !b.until.After(m.now), m.epochs[node] == 0:
			want = "conflict"
		case epoch != m.epochs[node]:
			want = "unavailable"
		case running+1 > b.limits.Running, vcpus+b.vcpus > b.limits.VCPUs:
			want = "quota_exceeded"
		case used+b.vcpus > modelCapacity:
			want = "unavailable"
		}
	}
	if b != nil && m.epochs[node] == 0 {
		want = "conflict"
	}
	a, err := m.l.Place(m.ctx, c, node, epoch, m.now)
	m.agree(rt, "Place", err, want)
	if want != "" {
		return
	}
	b.attempt++
	b.node, b.epoch, b.held, b.notBefore = node, epoch, false, time.Time{}
	b.enter(sandbox.Assigned)
	if a != (sandbox.Assignment{Sandbox: b.id, Attempt: b.attempt, Node: node, Epoch: epoch}) {
		rt.Fatalf("the assignment is %+v, the model has %+v", a, b)
	}
	m.bound = append(m.bound, a)
}

// someAssignment is one of those made, mostly a late one. mine says that it is
// its sandbox's present one.
func (m *model) someAssignment(rt *rapid.T) (a sandbox.Assignment, b *box, mine bool) {
	if len(m.bound) == 0 {
		rt.Skip("no assignment yet")
	}
	a = m.bound[len(m.bound)-1-rapid.IntRange(0, min(5, len(m.bound)-1)).Draw(rt, "assignment")]
	b = m.find(a.Sandbox)
	return a, b, b != nil && b.onNode() && b.attempt == a.Attempt
}

func (m *model) requeues(rt *rapid.T) {
	a, b, mine := m.someAssignment(rt)
	want, done := "conflict", false
	switch {
	case b == nil:
		want = "not_found"
	case b.attempt == a.Attempt && !b.accepted && !b.onNode():
		want, done = "", true
	case mine && b.state == sandbox.Assigned:
		want = ""
	}
	at := m.now.Add(time.Second)
	m.agree(rt, "Requeue", m.l.Requeue(m.ctx, a, at, "x"), want)
	switch {
	case want != "" || done:
	case b.kill != "":
		b.finish(sandbox.Failed, b.kill, at)
	default:
		b.enter(sandbox.Queued)
		b.node, b.epoch, b.notBefore = "", 0, at
	}
}

func (m *model) accepts(rt *rapid.T) {
	a, b, mine := m.someAssignment(rt)
	want := "conflict"
	switch {
	case b == nil:
		want = "not_found"
	case mine && a.Epoch == m.epochs[a.Node] && (b.accepted || b.kill == ""):
		want = ""
	}
	m.agree(rt, "Accept", m.l.Accept(m.ctx, a, m.now), want)
	if want == "" && !b.accepted {
		b.accepted = true
		b.enter(sandbox.Starting)
	}
}

func (m *model) advances(rt *rapid.T) {
	a, b, mine := m.someAssignment(rt)
	to := rapid.SampledFrom([]sandbox.State{"", sandbox.Running, sandbox.Running, sandbox.Stopping}).Draw(rt, "to")
	want := "conflict"
	switch {
	case b == nil:
		want = "not_found"
	case mine && a.Epoch == m.epochs[a.Node] && b.accepted &&
		(to != sandbox.Running || b.started || b.state == sandbox.Starting):
		want = ""
	}
	m.agree(rt, "Advance", m.l.Advance(m.ctx, a, sandbox.Progress{State: to, At: m.now, Cause: sandbox.Memory}), want)
	if want != "" {
		return
	}
	switch {
	case to == sandbox.Running && !b.started:
		b.started = true
		b.enter(to)
	case to == sandbox.Stopping && b.state != sandbox.Stopping:
		if b.kill == "" {
			b.kill = sandbox.Memory
		}
		b.enter(to)
	}
}

func (m *model) ends(rt *rapid.T) {
	a, b, mine := m.someAssignment(rt)
	if rapid.IntRange(0, 4).Draw(rt, "whatever attempt") == 0 {
		a.Attempt = 0
	}
	exit, to := exited(rapid.IntRange(0, 1).Draw(rt, "code")), sandbox.Failed
	if *exit.Code == 0 {
		to = sandbox.Succeeded
	}
	want := "conflict"
	switch {
	case b == nil:
		want = "not_found"
	case !b.live():
		want = ""
	case (mine || a.Attempt == 0) && (b.accepted || to == sandbox.Failed):
		want = ""
	}
	_, err := m.l.End(m.ctx, a, sandbox.End{At: m.now, Exit: exit})
	m.agree(rt, "End", err, want)
	if want == "" && b.live() {
		b.finish(to, sandbox.Exited, m.now)
	}
}

func (m *model) kills(rt *rapid.T) {
	if len(m.boxes) == 0 {
		rt.Skip("no sandbox yet")
	}
	b := rapid.SampledFrom(m.boxes).Draw(rt, "box")
	cause := rapid.SampledFrom([]sandbox.Cause{sandbox.Killed, sandbox.Internal}).Draw(rt, "cause")
	_, err := m.l.Kill(m.ctx, b.id, cause, m.now, m.world.audit("kill"))
	m.agree(rt, "Kill", err, "")
	m.audit++
	switch {
	case !b.live():
	case b.state == sandbox.Queued:
		b.finish(sandbox.Failed, cause, m.now)
	case b.kill == "":
		b.kill = cause
	}
}

func (m *model) joins(rt *rapid.T) {
	node := rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "node")
	epoch, err := m.l.Join(m.ctx, sandbox.Node{ID: node, Capacity: sandbox.Capacity{VCPUs: modelCapacity, MemoryMiB: 1 << 30, DiskMiB: 1 << 30}})
	m.agree(rt, "Join", err, "")
	m.epochs[node]++
	if epoch != m.epochs[node] {
		rt.Fatalf("epoch %d, the model says %d", epoch, m.epochs[node])
	}
}

func (m *model) prunes(rt *rapid.T) {
	keep := ledger.Retention{
		Age:   time.Duration(rapid.IntRange(0, 60).Draw(rt, "age")) * time.Second,
		Count: rapid.IntRange(0, 4).Draw(rt, "count"),
	}
	ended := slices.DeleteFunc(slices.Clone(m.boxes), func(b *box) bool { return b.live() })
	slices.SortFunc(ended, func(a, b *box) int {
		if c := b.endedAt.Compare(a.endedAt); c != 0 {
			return c
		}
		return strings.Compare(string(b.id), string(a.id))
	})
	gone := map[sandbox.ID]bool{}
	for i, b := range ended {
		if keep.Count > 0 && i >= keep.Count || keep.Age > 0 && m.now.Sub(b.endedAt) > keep.Age {
			gone[b.id] = true
		}
	}
	n, err := m.l.Prune(m.ctx, keep, m.now)
	m.agree(rt, "Prune", err, "")
	if n != len(gone) {
		rt.Fatalf("Prune(%+v) removed %d, the model says %d", keep, n, len(gone))
	}
	m.boxes = slices.DeleteFunc(m.boxes, func(b *box) bool { return gone[b.id] })
	m.policies = slices.DeleteFunc(m.policies, func(p ledger.Policy) bool {
		named := slices.ContainsFunc(m.boxes, func(b *box) bool { return b.policy == p.Version })
		return !p.ReplacedAt.IsZero() && m.now.Sub(p.ReplacedAt) >= ledger.PolicyGrace && !named
	})
}
