package sandbox

import "slices"

// State is where a sandbox is on its road.
type State string

// The states. A client treats one it does not know as live unless the record
// has ended_at.
const (
	Refused   State = "refused"
	Queued    State = "queued"
	Assigned  State = "assigned"
	Starting  State = "starting"
	Running   State = "running"
	Stopping  State = "stopping"
	Succeeded State = "succeeded"
	Failed    State = "failed"
)

// StateInfo is a row of the table of states.
type StateInfo struct {
	State   State
	Meaning string
	Next    []State // the states that may follow; empty for an end
}

// states is the state machine. Everything that changes a state asks it, and
// docs/states.md is printed from it.
var states = []StateInfo{
	{Refused, "The policy refused it; nothing ran.", nil},
	{Queued, "Admitted, and waiting for a node or for the tenant's own limit.", []State{Assigned, Failed}},
	{Assigned, "Bound to a node that has not accepted it yet.", []State{Queued, Starting, Failed}},
	{Starting, "The node accepted it and prepares the VM. From here on it never runs anywhere else.", []State{Running, Stopping, Succeeded, Failed}},
	{Running, "The order to execute has left.", []State{Stopping, Succeeded, Failed}},
	{Stopping, "A cause to end it is known, and it is being ended.", []State{Succeeded, Failed}},
	{Succeeded, "The command exited with code 0.", nil},
	{Failed, "Everything else; the exit record has the cause.", nil},
}

// States is a copy of the table of states, in the order of the road.
func States() []StateInfo {
	out := slices.Clone(states)
	for i := range out {
		out[i].Next = slices.Clone(out[i].Next)
	}
	return out
}

func (s State) info() (StateInfo, bool) {
	for _, r := range states {
		if r.State == s {
			return r, true
		}
	}
	return StateInfo{}, false
}

// Valid reports whether s is a state of the table.
func (s State) Valid() bool { _, ok := s.info(); return ok }

// Live reports whether a sandbox in state s still has something ahead of it.
func (s State) Live() bool { r, ok := s.info(); return ok && len(r.Next) > 0 }

// Accepted reports whether a sandbox in state s was accepted by its node: it
// never runs again anywhere else.
func (s State) Accepted() bool { return s == Starting || s == Running || s == Stopping }

// OnNode reports whether a sandbox in state s takes room on a node.
func (s State) OnNode() bool { return s == Assigned || s.Accepted() }

// May reports whether next may follow s.
func (s State) May(next State) bool {
	r, ok := s.info()
	return ok && slices.Contains(r.Next, next)
}
