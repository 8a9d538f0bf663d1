package ledgerstep

import (
	"slices"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// is reports whether a names the entry's present assignment.
func (e *Entry) is(a sandbox.Assignment) bool {
	r := &e.Record
	return r.Runtime.Attempt == a.Attempt && r.Node == a.Node && r.Epoch == a.Epoch
}

// overtaken is the error for an assignment that is not the present one, or
// whose node has joined again since. epoch is the node's present one.
func (e *Entry) overtaken(a sandbox.Assignment, epoch int64) error {
	if err := e.other(a); err != nil {
		return err
	}
	if a.Epoch != epoch {
		return fault.New(fault.Conflict, "attempt %d of %s is fenced: node %q is at epoch %d, not %d",
			a.Attempt, a.Sandbox, a.Node, epoch, a.Epoch)
	}
	return nil
}

// other is the error for an assignment that is not the present one.
func (e *Entry) other(a sandbox.Assignment) error {
	if !e.Record.State.OnNode() || !e.is(a) {
		return fault.New(fault.Conflict, "attempt %d of %s on node %q is not its present one", a.Attempt, a.Sandbox, a.Node)
	}
	return nil
}

func (e *Entry) forbids(what string) error {
	return fault.New(fault.Conflict, "%s is %s and cannot be %s", e.Record.ID, e.Record.State, what)
}

// Requeue gives an assignment back to the queue.
func (e *Entry) Requeue(a sandbox.Assignment, notBefore time.Time, reason string) error {
	r := &e.Record
	if r.Runtime.Attempt == a.Attempt && r.AcceptedAt.IsZero() && (r.State == sandbox.Queued || !r.State.Live()) {
		return nil // done before, or ended before anything ran
	}
	if r.State != sandbox.Assigned || !e.is(a) {
		return fault.New(fault.Conflict, "attempt %d of %s on node %q cannot be given back: it is %s in attempt %d",
			a.Attempt, a.Sandbox, a.Node, r.State, r.Runtime.Attempt)
	}
	at := later(r.AssignedAt, utc(notBefore))
	if r.Kill != "" {
		return e.finish(sandbox.End{At: at, Exit: sandbox.ExitRecord{Cause: r.Kill}})
	}
	r.Node, r.Epoch, r.AssignedAt = "", 0, time.Time{}
	r.Timings.Queued, r.Timings.Placed = 0, 0
	e.Turn.NotBefore = utc(notBefore)
	e.enter(sandbox.Event{Time: at, State: sandbox.Queued, Message: reason})
	return nil
}

// Accept records that the node accepted.
func (e *Entry) Accept(a sandbox.Assignment, epoch int64, now time.Time) error {
	if err := e.overtaken(a, epoch); err != nil {
		return err
	}
	if e.Record.State.Accepted() {
		return nil
	}
	if e.Record.Kill != "" {
		return fault.New(fault.Conflict, "%s is to be ended: %s", e.Record.ID, e.Record.Kill)
	}
	e.Record.AcceptedAt = utc(now)
	e.enter(sandbox.Event{Time: utc(now), State: sandbox.Starting})
	return nil
}

// Advance records what the node tells.
func (e *Entry) Advance(a sandbox.Assignment, epoch int64, p sandbox.Progress) error {
	if err := e.overtaken(a, epoch); err != nil {
		return err
	}
	if err := e.checkProgress(p); err != nil {
		return err
	}
	e.progress(p)
	return nil
}

// checkProgress says whether the state allows p.
func (e *Entry) checkProgress(p sandbox.Progress) error {
	r := &e.Record
	if !r.State.Accepted() {
		return e.forbids("advanced")
	}
	switch p.State {
	case "":
		return nil
	case sandbox.Running:
		if !r.StartedAt.IsZero() {
			return nil // done before, though it may have gone on since
		}
	case sandbox.Stopping:
		if p.Cause != "" && !p.Cause.Valid() {
			return fault.Invalid("cause", "", "there is no cause %q", p.Cause)
		}
		if r.State == sandbox.Stopping {
			return nil
		}
	default:
		return fault.Invalid("state", "", "progress cannot be %q, only running or stopping", p.State)
	}
	if p.At.IsZero() {
		return fault.Invalid("at", "", "progress to %s has no time", p.State)
	}
	if !r.State.May(p.State) {
		return e.forbids(string(p.State))
	}
	return nil
}

// progress applies what checkProgress allowed.
func (e *Entry) progress(p sandbox.Progress) {
	e.facts(p)
	r := &e.Record
	switch {
	case p.State == sandbox.Running && r.StartedAt.IsZero():
		r.StartedAt = utc(p.At)
		e.enter(sandbox.Event{Time: r.StartedAt, State: sandbox.Running})
	case p.State == sandbox.Stopping && r.State != sandbox.Stopping:
		if r.Kill == "" {
			r.Kill = p.Cause
		}
		e.enter(sandbox.Event{Time: utc(p.At), State: sandbox.Stopping, Cause: p.Cause})
	}
}

// facts fills in what was not known.
func (e *Entry) facts(p sandbox.Progress) {
	r := &e.Record
	for _, f := range []struct {
		to   *string
		from string
	}{
		{&r.Runtime.Driver, p.Runtime.Driver}, {&r.Runtime.Version, p.Runtime.Version},
		{&r.Runtime.Accelerator, p.Runtime.Accelerator}, {&r.Runtime.Start, p.Runtime.Start},
		{&r.Isolation.Accelerator, p.Isolation.Accelerator},
	} {
		if *f.to == "" && f.from != "" {
			*f.to, e.Changed = f.from, true
		}
	}
	for _, f := range []struct {
		to   *[]string
		from []string
	}{
		{&r.Isolation.Confinement, p.Isolation.Confinement}, {&r.Isolation.Missing, p.Isolation.Missing},
	} {
		if len(*f.to) == 0 && len(f.from) > 0 {
			*f.to, e.Changed = slices.Clone(f.from), true
		}
	}
	for _, f := range []struct {
		to *float64
		at time.Time
	}{
		{&r.Timings.VMReady, p.VMReady}, {&r.Timings.FirstOutput, p.FirstOutput},
	} {
		if *f.to == 0 && !f.at.IsZero() {
			*f.to, e.Changed = ms(r.CreatedAt, f.at), true
		}
	}
}

// End writes the end. a is checked when its Attempt is not 0.
func (e *Entry) End(a sandbox.Assignment, end sandbox.End) error {
	if !e.Record.State.Live() {
		return nil
	}
	if a.Attempt != 0 {
		if err := e.other(a); err != nil {
			return err
		}
	}
	return e.finish(end)
}

// finish ends a live entry.
func (e *Entry) finish(end sandbox.End) error {
	exit := end.Exit
	switch {
	case !exit.Cause.Valid():
		return fault.Invalid("exit.cause", "", "there is no cause %q", exit.Cause)
	case end.At.IsZero():
		return fault.Invalid("at", "", "the end of %s has no time", e.Record.ID)
	case !e.Record.State.May(exit.State()):
		return e.forbids(string(exit.State()))
	}
	// What the node had not told before: steps that came to pass are written,
	// and what does not fit any more is no reason to keep a dead one alive.
	if p := end.Progress; e.checkProgress(p) == nil {
		e.progress(p)
	} else {
		e.facts(p)
	}
	if exit.Source == "" {
		exit.Source = exit.Cause.Source()
	}
	r := &e.Record
	r.Exit = exit
	r.LogDigest = end.LogDigest
	r.EndedAt = utc(end.At)
	r.Timings.Total = ms(r.CreatedAt, end.At)
	r.Kill = "" // carried out, or come too late
	e.Turn = Turn{}
	e.enter(sandbox.Event{Time: r.EndedAt, State: exit.State(), Cause: exit.Cause, Message: exit.Message})
	return nil
}

// Kill records that it is to be ended.
func (e *Entry) Kill(cause sandbox.Cause, now time.Time) error {
	r := &e.Record
	switch {
	case !cause.Valid() || cause == sandbox.Exited:
		return fault.Invalid("cause", "", "%q is no cause to end a sandbox", cause)
	case !r.State.Live():
		return nil
	case r.State == sandbox.Queued:
		return e.finish(sandbox.End{At: now, Exit: sandbox.ExitRecord{Cause: cause}})
	case r.Kill == "":
		r.Kill = cause
		e.Changed = true
	}
	return nil
}
