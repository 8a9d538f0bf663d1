package ledgertest

import (
	"fmt"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// compare looks at everything after each step.
func (m *model) compare(rt *rapid.T) {
	p, err := m.l.List(m.ctx, ledger.Query{Limit: ledger.MaxPage})
	m.agree(rt, "List", err, "")
	if len(p.Records) != len(m.boxes) {
		rt.Fatalf("there are %d records, the model has %d", len(p.Records), len(m.boxes))
	}
	usage := map[string]ledger.Usage{}
	for i, b := range m.boxes {
		rec := p.Records[len(p.Records)-1-i]
		got := fmt.Sprint(rec.ID, rec.State, rec.Node, rec.Epoch, rec.Runtime.Attempt, rec.Kill, rec.Exit.Cause, rec.EndedAt)
		if want := fmt.Sprint(b.id, b.state, b.node, b.epoch, b.attempt, b.kill, b.cause, b.endedAt); got != want {
			rt.Fatalf("the record is %s, the model says %s", got, want)
		}
		ev, err := m.l.Events(m.ctx, b.id, 0)
		m.agree(rt, "Events", err, "")
		var road []sandbox.State
		for _, e := range ev {
			road = append(road, e.State)
		}
		if d := cmp.Diff(b.road, road); d != "" || ev[len(ev)-1].Seq != int64(len(ev)) {
			rt.Fatalf("the road of %s differs (-model +got):\n%s", b.id, d)
		}
		if _, err := m.l.Admitted(m.ctx, b.id); (err == nil) != b.live() {
			rt.Fatalf("Admitted of %s, live %v: %v", b.id, b.live(), err)
		}
		if !b.live() {
			continue
		}
		u := usage[b.tenant]
		u.Live++
		if b.onNode() {
			u.Running++
			u.VCPUs += b.vcpus
			u.MemoryMiB += 128
			u.DiskMiB += 64
		}
		usage[b.tenant] = u
	}
	got, err := m.l.Usage(m.ctx, nil)
	m.agree(rt, "Usage", err, "")
	if d := cmp.Diff(usage, got); d != "" {
		rt.Fatalf("usage differs (-model +got):\n%s", d)
	}
	m.compareNodes(rt)
	m.comparePolicies(rt)
	if audit := m.audits(); len(audit) != min(m.audit, ledger.MaxPage) {
		rt.Fatalf("there are %d audit entries, the model has %d", len(audit), m.audit)
	} else if err := ledger.VerifyAudit(nil, audit); err != nil {
		rt.Fatal(err)
	}
}

func (m *model) compareNodes(rt *rapid.T) {
	nodes, err := m.l.Nodes(m.ctx)
	m.agree(rt, "Nodes", err, "")
	onNodes := 0
	for _, n := range nodes {
		running, vcpus := m.sums(func(b *box) bool { return b.node == n.ID })
		onNodes += running
		want := sandbox.Capacity{VCPUs: vcpus, MemoryMiB: int64(running) * (128 + sandbox.VMOverheadMiB), DiskMiB: int64(running) * 64}
		if n.InUse != want || n.Epoch != m.epochs[n.ID] || vcpus > modelCapacity {
			rt.Fatalf("node %+v, the model says epoch %d and in use %+v", n, m.epochs[n.ID], want)
		}
	}
	d, err := m.l.Due(m.ctx, nil)
	m.agree(rt, "Due", err, "")
	if d.OnNodes != onNodes || d.Joins != m.epochs["n1"]+m.epochs["n2"] {
		rt.Fatalf("due is %+v, the model has %d on nodes", d, onNodes)
	}
	var offer time.Time
	queued := false
	for _, b := range m.boxes {
		if b.state != sandbox.Queued {
			continue
		}
		at := b.notBefore
		if b.held && b.until.After(at) {
			at = b.until
		}
		if !queued || at.Before(offer) {
			offer, queued = at, true
		}
	}
	if d.Offer.IsZero() == queued || d.Offer.After(m.now) != offer.After(m.now) || offer.After(m.now) && !offer.Equal(d.Offer) {
		rt.Fatalf("due is %+v, the model says %v, %v", d, queued, offer)
	}
}
