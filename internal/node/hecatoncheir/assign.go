package hecatoncheir

import (
	"context"
	"slices"
	"time"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/styx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/thanatos"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// assign checks an assignment, writes it into the journal and begins its
// life.
func (a *Agent) assign(ctx context.Context, req *nodev1.AssignRequest) error {
	received := time.Now()
	order, err := a.open(req, received)
	if err != nil {
		return err
	}
	secrets, err := seal.DecodeSecrets(req.GetSecrets(), order.Verdict.Request.SecretsDigest)
	if err != nil {
		return err
	}
	if err := a.able(order.Verdict.Request); err != nil {
		return err
	}
	l := newLife(a, offer{order, secrets, received, a.loggerOf(ctx, order.Order.Assignment)})
	if again, err := a.reserve(l); again || err != nil {
		return err
	}
	if err := a.pass("journal assign", l.id, func() error { return a.journal.Assign(entryOf(order, l.uid(), received)) }); err != nil {
		a.release(l)
		return err
	}
	close(l.taken)
	go func() {
		defer a.lives.Done()
		l.run(a.base)
	}()
	return nil
}

// open checks signatures, spans and addressee.
func (a *Agent) open(req *nodev1.AssignRequest, now time.Time) (seal.Assign, error) {
	a.mu.Lock()
	ring, here := a.ring, seal.Here{Node: a.cfg.NodeID, Epoch: a.epoch, Now: now}
	ready := a.joined && !a.stopping
	a.mu.Unlock()
	if !ready {
		return seal.Assign{}, fault.New(fault.Unavailable, "the node takes nothing now").WithRetryAfter(time.Second)
	}
	o, err := ring.OpenOrder(req.GetOrder(), now)
	if err != nil {
		return seal.Assign{}, err
	}
	if o.Assignment.Node == here.Node && o.Assignment.Epoch != here.Epoch {
		return seal.Assign{}, fault.New(fault.Conflict, "the order is for epoch %d of this node, which is at %d", o.Assignment.Epoch, here.Epoch)
	}
	return ring.OpenAssign(req.GetOrder(), req.GetVerdict(), here)
}

// able says whether this node can run such a request at all.
func (a *Agent) able(r sandbox.Resolved) error {
	if err := styx.Check(r.Network); err != nil {
		return err
	}
	if !r.Network.Empty() && !a.networked() {
		return fault.New(fault.Unsupported, "this node gives sandboxes no network card, and %d network grants were asked for", len(r.Network.Allow)).
			WithHint("leave network.allow empty, or bring what the command needs in as files")
	}
	info := a.cfg.Driver.Info()
	if info.MaxVCPUs > 0 && r.Resources.VCPUs > info.MaxVCPUs {
		return fault.New(fault.Unsupported, "driver %s gives a VM %d vCPUs at most, not %d", info.Name, info.MaxVCPUs, r.Resources.VCPUs)
	}
	if r.Resources.VCPUs < 1 || r.Resources.MemoryMiB < tartarus.MinMemoryMiB || r.Resources.DiskMiB < 1 || r.LogBytes < 0 {
		return fault.Invalid("resources", "this comes from the control plane: look at its policy", "no VM can be made with %+v", r.Resources)
	}
	return meets(r.Isolation, info.Isolation)
}

// networked reports whether this node gives sandboxes network cards.
func (a *Agent) networked() bool { return a.cfg.Network != nil && a.cfg.Driver.Info().CanNetwork }

// meets holds what the driver gives against the floor of the policy. There is
// no silent fallback.
func meets(floor sandbox.IsolationFloor, has sandbox.Isolation) error {
	if floor.Accelerator != "" && floor.Accelerator != has.Accelerator {
		return fault.New(fault.Unsupported, "the policy insists on accelerator %s, and this node has %s", floor.Accelerator, has.Accelerator)
	}
	for _, layer := range floor.Confinement {
		if !slices.Contains(has.Confinement, layer) {
			return fault.New(fault.Unsupported, "the policy insists on confinement %s, which this node lacks", layer)
		}
	}
	return nil
}

// reserve gives l its place and its room. again says that the very same
// assignment has them already.
func (a *Agent) reserve(l *life) (again bool, err error) {
	a.mu.Lock()
	other, here := a.byID[l.id]
	if !here {
		defer a.mu.Unlock()
		if a.stopping || !a.joined {
			return false, fault.New(fault.Unavailable, "the node takes nothing now").WithRetryAfter(time.Second)
		}
		if err := a.room(l.req.Resources); err != nil {
			return false, err
		}
		if l.slot, err = a.takeSlot(); err != nil {
			return false, err
		}
		a.byID[l.id] = l
		a.lives.Add(1) // under mu, so that Stop cannot overlook it
		return false, nil
	}
	a.mu.Unlock()
	if other.assignment == l.assignment {
		<-other.taken // its answer is the journal's
		_, still := a.journal.Get(l.id)
		if !still {
			return false, fault.New(fault.Conflict, "this node has had sandbox %q", l.id)
		}
		return true, nil
	}
	if l.assignment.Attempt > other.assignment.Attempt && !other.accepted() {
		// The control plane gave the earlier attempt up, so it will never be
		// accepted. This one can be taken once that is out of the way.
		other.disown()
		other.death.Take(thanatos.Order{Cause: sandbox.NodeLost, Message: "overtaken by a later attempt"})
		return false, fault.New(fault.Unavailable, "the node still ends attempt %d of sandbox %q", other.assignment.Attempt, l.id)
	}
	return false, fault.New(fault.Conflict, "this node has sandbox %q in attempt %d", l.id, other.assignment.Attempt)
}

// release takes back what reserve gave to a life that never began.
func (a *Agent) release(l *life) {
	a.mu.Lock()
	delete(a.byID, l.id)
	delete(a.slots, l.slot)
	a.mu.Unlock()
	close(l.taken)
	close(l.cut)
	close(l.over)
	a.lives.Done()
}

// room is for a.mu's holder.
func (a *Agent) room(r sandbox.Resources) error {
	var used sandbox.Capacity
	for _, l := range a.byID {
		if !l.freed {
			used.VCPUs += l.req.Resources.VCPUs
			used.MemoryMiB += l.req.Resources.MemoryMiB + sandbox.VMOverheadMiB
			used.DiskMiB += l.req.Resources.DiskMiB
		}
	}
	for _, c := range []struct {
		what              string
		used, more, limit int64
	}{
		{"vCPUs", int64(used.VCPUs), int64(r.VCPUs), int64(a.cfg.Capacity.VCPUs)},
		{"memory in MiB", used.MemoryMiB, r.MemoryMiB + sandbox.VMOverheadMiB, a.cfg.Capacity.MemoryMiB},
		{"disk in MiB", used.DiskMiB, r.DiskMiB, a.cfg.Capacity.DiskMiB},
	} {
		if c.more > c.limit-c.used {
			return fault.New(fault.QuotaExceeded, "the node has no room: %s: used %d, asked for %d more, capacity %d", c.what, c.used, c.more, c.limit)
		}
	}
	return nil
}

// takeSlot is for a.mu's holder: the smallest number that no VM has.
func (a *Agent) takeSlot() (int, error) {
	n := 0
	for a.slots[n] {
		n++
	}
	if c := a.cfg.UIDs.Count; c > 0 && n >= c {
		return 0, fault.New(fault.QuotaExceeded, "the node has no room: all %d user IDs for VMMs are in use", c).
			WithHint("give the node more of them with --vmm-uids")
	}
	a.slots[n] = true
	return n, nil
}

func entryOf(o seal.Assign, uid int, now time.Time) journal.Entry {
	r := o.Verdict.Request
	return journal.Entry{
		Assignment: o.Order.Assignment, Verdict: o.Digest, Expires: o.Verdict.Expires,
		Template: r.TemplateDigest, Guest: r.GuestDigest, Resources: r.Resources, AssignedAt: now.UTC().Round(0), UID: uid,
	}
}
