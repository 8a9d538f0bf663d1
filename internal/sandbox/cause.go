package sandbox

import "slices"

// Cause says what ended a sandbox. The first cause stays.
type Cause string

// The causes.
const (
	Exited       Cause = "exited"
	Signaled     Cause = "signaled"
	MaxDuration  Cause = "max_duration"
	Memory       Cause = "memory"
	Killed       Cause = "killed"
	StartFailed  Cause = "start_failed"
	StartTimeout Cause = "start_timeout"
	QueueTimeout Cause = "queue_timeout"
	NoCapacity   Cause = "no_capacity"
	NodeLost     Cause = "node_lost"
	GuestLost    Cause = "guest_lost"
	Internal     Cause = "internal"
)

// Source says whose word a cause is.
type Source string

// The sources. What the host saw beats what the guest says.
const (
	FromHost  Source = "host"
	FromGuest Source = "guest" // a claim: the guest is hostile
)

// CauseInfo is a row of the table of causes.
type CauseInfo struct {
	Cause   Cause
	Source  Source
	Meaning string
}

// causes is the table that docs/states.md is printed from.
var causes = []CauseInfo{
	{Exited, FromGuest, "The command exited; code has its exit code."},
	{Signaled, FromGuest, "The command died of a signal inside the guest; signal has its number."},
	{MaxDuration, FromHost, "It ran for max_duration, counted from started_at."},
	{Memory, FromHost, "Its VM went over the host's memory limit."},
	{Killed, FromHost, "A caller killed it."},
	{StartFailed, FromHost, "The VM or the command could not be started; message has the reason."},
	{StartTimeout, FromHost, "It did not start within start_timeout of its placement."},
	{QueueTimeout, FromHost, "It was not placed within queue_timeout of its creation."},
	{NoCapacity, FromHost, "For too long no node fitted it, even an empty one; message has the reasons by kind and count. (Where nodes are only full it waits for its turn, until queue_timeout.)"},
	{NodeLost, FromHost, "The node that had accepted it died or lost the control plane."},
	{GuestLost, FromHost, "The VM ended, stopped speaking or broke the protocol before the command had ended."},
	{Internal, FromHost, "A fault of Tartarus itself; its log has the details."},
}

// Causes is a copy of the table of causes.
func Causes() []CauseInfo { return slices.Clone(causes) }

// Source is whose word the cause is; causes not in the table are the host's.
func (c Cause) Source() Source {
	for _, r := range causes {
		if r.Cause == c {
			return r.Source
		}
	}
	return FromHost
}

// Valid reports whether c is a cause of the table.
func (c Cause) Valid() bool {
	return slices.ContainsFunc(causes, func(r CauseInfo) bool { return r.Cause == c })
}
