// Package ledgerstep is what each step of the ledger does to one record, as
// plain values.
//
// The back ends load an Entry, ask it to take a step, and write what it became;
// where and how they keep it is their affair. An Entry whose step returned an
// error is unchanged. A step that was done already returns nil and leaves
// Changed false.
package ledgerstep

import (
	"slices"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Entry is one sandbox as the ledger holds it.
type Entry struct {
	Record sandbox.Record
	Turn   Turn  // while Queued
	Seq    int64 // of its last event

	// Changed says that a step did something, Events which events it wrote.
	Changed bool
	Events  []sandbox.Event
}

// Turn is a queued record's place in the queue.
type Turn struct {
	Owner     string    // of the last claim
	Token     int64     // grows with every claim, and stays
	ClaimedAt time.Time // of the last claim
	Until     time.Time // when the claim ends; zero without one
	NotBefore time.Time
	Waiting   ledger.Waiting
}

// ReadyAt is the time from which on the request is offered.
func (t Turn) ReadyAt() time.Time { return later(t.NotBefore, t.Until) }

// Deadline is when the request has waited too long; zero for never.
func (e *Entry) Deadline() time.Time {
	if e.Record.Request.QueueTimeout <= 0 {
		return time.Time{}
	}
	return e.Record.CreatedAt.Add(e.Record.Request.QueueTimeout)
}

// OverdueAt is the time from which on ClaimOverdue offers it; zero for never.
func (e *Entry) OverdueAt() time.Time {
	if d := e.Deadline(); !d.IsZero() {
		return later(d, e.Turn.Until)
	}
	return time.Time{}
}

// Admit makes the entry of a new request. It returns what else is kept of it
// unchanged in a.
func Admit(a sandbox.Admitted, audit sandbox.AuditEntry) (*Entry, error) {
	rec := a.Record
	if err := checkNew(rec, sandbox.Queued); err != nil {
		return nil, err
	}
	at := utc(audit.Time)
	if at.IsZero() {
		at = utc(rec.CreatedAt)
	}
	rec.State = sandbox.Queued
	rec.CreatedAt = utc(rec.CreatedAt)
	if rec.Timings.Judged == 0 {
		rec.Timings.Judged = ms(rec.CreatedAt, at)
	}
	e := &Entry{Record: rec}
	e.write(sandbox.Event{Time: at, State: sandbox.Queued})
	return e, nil
}

// Refuse makes the entry of a refused request.
func Refuse(rec sandbox.Record, audit sandbox.AuditEntry) (*Entry, error) {
	if err := checkNew(rec, sandbox.Refused); err != nil {
		return nil, err
	}
	at := utc(audit.Time)
	if at.IsZero() {
		at = utc(rec.CreatedAt)
	}
	rec.State = sandbox.Refused
	rec.CreatedAt = utc(rec.CreatedAt)
	if rec.EndedAt = utc(rec.EndedAt); rec.EndedAt.IsZero() {
		rec.EndedAt = at
	}
	if rec.Timings.Judged == 0 {
		rec.Timings.Judged = ms(rec.CreatedAt, at)
	}
	e := &Entry{Record: rec}
	e.write(sandbox.Event{Time: at, State: sandbox.Refused})
	return e, nil
}

// checkNew guards against a caller's mistake; nothing of it comes from users.
func checkNew(rec sandbox.Record, want sandbox.State) error {
	switch {
	case !rec.ID.Valid():
		return fault.Invalid("id", "", "a record needs an ID; %q is none", rec.ID)
	case rec.Tenant == "":
		return fault.Invalid("tenant", "", "record %s has no tenant", rec.ID)
	case rec.CreatedAt.IsZero():
		return fault.Invalid("created_at", "", "record %s has no created_at", rec.ID)
	case rec.State != "" && rec.State != want:
		return fault.Invalid("state", "", "a new record is %s, not %s", want, rec.State)
	}
	return nil
}

// Claim gives the queued entry to owner. The back end has chosen it.
func (e *Entry) Claim(owner string, now time.Time, lease time.Duration) {
	now = utc(now)
	e.Turn.Owner = owner
	e.Turn.Token++
	e.Turn.ClaimedAt = now
	e.Turn.Until = now.Add(lease)
	e.Changed = true
}

// holds is nil while c is the last claim made of a queued entry.
func (e *Entry) holds(c ledger.Claim) error {
	if e.Record.State != sandbox.Queued || e.Turn.Until.IsZero() || e.Turn.Owner != c.Owner || e.Turn.Token != c.Token {
		return fault.New(fault.Conflict, "the claim %d of %s on %s is no longer held", c.Token, c.Owner, e.Record.ID)
	}
	return nil
}

// Release gives a claim back.
func (e *Entry) Release(c ledger.Claim, notBefore time.Time, w ledger.Waiting) error {
	if err := e.holds(c); err != nil {
		return err
	}
	e.Turn.Until = time.Time{}
	e.Turn.NotBefore = utc(notBefore)
	w.NoNodeSince = utc(w.NoNodeSince)
	w.Reasons = slices.Clone(w.Reasons)
	e.Turn.Waiting = w
	e.Changed = true
	return nil
}

// Drop ends a claimed entry in the queue.
func (e *Entry) Drop(c ledger.Claim, end sandbox.End) error {
	if err := e.holds(c); err != nil {
		return err
	}
	return e.finish(end)
}

// Bind is where Place puts a request.
type Bind struct {
	Node  sandbox.Node // with InUse as it is without this request
	Usage ledger.Usage // of the tenant
	Epoch int64        // as the scheduler saw the node's
}

// Place binds a claimed entry to a node.
func (e *Entry) Place(c ledger.Claim, b Bind, limits sandbox.Limits, now time.Time) (sandbox.Assignment, error) {
	var none sandbox.Assignment
	if err := e.holds(c); err != nil {
		return none, err
	}
	if !now.Before(e.Turn.Until) {
		return none, fault.New(fault.Conflict, "the lease of %s on %s has passed", c.Owner, e.Record.ID)
	}
	if b.Node.Epoch != b.Epoch { // the claim is still held: it may go elsewhere
		return none, fault.New(fault.Unavailable, "node %q is at epoch %d, not %d", b.Node.ID, b.Node.Epoch, b.Epoch)
	}
	res := e.Record.Request.Resources
	if err := b.Usage.Fits(limits, res); err != nil {
		return none, err
	}
	if err := ledger.FitsNode(b.Node, res); err != nil {
		return none, err
	}
	r := &e.Record
	r.Timings.Queued = ms(r.CreatedAt, e.Turn.ClaimedAt)
	r.Timings.Placed = ms(r.CreatedAt, now)
	r.AssignedAt = utc(now)
	r.Node, r.Epoch = b.Node.ID, b.Epoch
	r.Runtime.Attempt++
	e.Turn = Turn{Token: e.Turn.Token}
	e.enter(sandbox.Event{Time: r.AssignedAt, State: sandbox.Assigned})
	return sandbox.Assignment{Sandbox: r.ID, Attempt: r.Runtime.Attempt, Node: r.Node, Epoch: r.Epoch}, nil
}

// enter changes the state and writes its event. The caller has asked May.
func (e *Entry) enter(ev sandbox.Event) {
	e.Record.State = ev.State
	e.write(ev)
}

func (e *Entry) write(ev sandbox.Event) {
	e.Seq++
	ev.Seq = e.Seq
	e.Events = append(e.Events, ev)
	e.Changed = true
}

// ms is the time from a to b as Timings count it; never negative.
func ms(a, b time.Time) float64 {
	return max(0, float64(b.Sub(a))/float64(time.Millisecond))
}

// utc is t as it is kept: without zone and monotonic clock, to the nanosecond.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Round(0)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
