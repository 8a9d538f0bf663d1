// Package hecatoncheir is the node agent: one a host, it owns the whole life of
// the host's sandboxes.
//
// A life is a list of named steps, each with do and undo, each safe to repeat
// (steps.go). While the VM is prepared the control plane is asked for the
// leave to execute; the order to execute leaves only with both. From then on
// the erinyes watch, thanatos ends, cocytus records, and the steps are undone
// in reverse. What must survive the agent's death is in the journal; an agent
// that comes back ends what it finds there and tells the control plane.
//
//	agent.go    what an agent is made of, its start and its end
//	lease.go    joining, heartbeats, and what happens when they fail
//	assign.go   whether an assignment is taken
//	life.go     the road of one sandbox
//	steps.go    the steps and their undoing
//	watch.go    what can end a running sandbox
//	end.go      ending, recording, reporting
//	tell.go     progress on its way to the control plane
//	recover.go  what an earlier process left
//	service.go  NodeService
package hecatoncheir
