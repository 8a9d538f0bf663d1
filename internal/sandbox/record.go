package sandbox

import "time"

// Record is a sandbox as the ledger keeps it and its owner reads it.
type Record struct {
	ID        ID         `json:"id"`
	Name      string     `json:"name,omitempty"`
	Tenant    string     `json:"tenant"`
	RequestID string     `json:"request_id,omitempty"` // of the call that made it; for logs alone
	State     State      `json:"state"`
	Request   Resolved   `json:"request"`
	Verdict   Verdict    `json:"verdict"`
	Runtime   Runtime    `json:"runtime"`
	Isolation Isolation  `json:"isolation"`
	Node      string     `json:"node,omitempty"`
	Epoch     int64      `json:"epoch,omitempty"` // of Node, when it was assigned
	Exit      ExitRecord `json:"exit"`
	LogDigest Digest     `json:"log_digest,omitempty"` // the log's blob, once ended

	CreatedAt  time.Time `json:"created_at"`
	AssignedAt time.Time `json:"assigned_at,omitzero"`
	AcceptedAt time.Time `json:"accepted_at,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"` // the order to execute
	EndedAt    time.Time `json:"ended_at,omitzero"`

	Timings Timings `json:"timings"`
	Kill    Cause   `json:"kill,omitempty"` // a cause to end it that is known but not carried out yet
}

// Verdict is what the record tells of the judgement.
type Verdict struct {
	Decision      Decision `json:"decision"`
	PolicyVersion string   `json:"policy_version"` // SHA-256 of the policy's text
	Reasons       []Reason `json:"reasons,omitempty"`
	Digest        Digest   `json:"digest,omitempty"` // of the signed bytes; none for a refusal
	KeyID         string   `json:"key_id,omitempty"`
}

// Decision is allow or deny.
type Decision string

// The decisions.
const (
	Allow Decision = "allow"
	Deny  Decision = "deny"
)

// Reason is one sentence of a judge.
type Reason struct {
	Judge   string `json:"judge"`
	Rule    string `json:"rule,omitempty"` // the policy's name for it
	Message string `json:"message"`
	Field   string `json:"field,omitempty"` // as in network.allow[0].cidr
}

// Runtime is what ran it.
type Runtime struct {
	Driver      string `json:"driver,omitempty"`
	Version     string `json:"version,omitempty"`
	Accelerator string `json:"accelerator,omitempty"` // tcg, kvm, none
	Start       string `json:"start,omitempty"`       // cold, restored, standby
	Attempt     int    `json:"attempt"`               // 1 for the first assignment
}

// Isolation is what really stood between the guest and the host.
type Isolation struct {
	Accelerator string   `json:"accelerator,omitempty"`
	Confinement []string `json:"confinement,omitempty"` // layers that were on
	Missing     []string `json:"missing,omitempty"`     // layers that were not, each with why
}

// ExitRecord is the end of a sandbox.
type ExitRecord struct {
	Cause     Cause      `json:"cause,omitempty"`
	Source    Source     `json:"source,omitempty"`
	Code      *int       `json:"code,omitempty"`   // nil unless the command exited
	Signal    int        `json:"signal,omitempty"` // 0 unless the command was signaled
	Message   string     `json:"message,omitempty"`
	LimitsHit []LimitHit `json:"limits_hit,omitempty"` // the guest's word
	Usage     Usage      `json:"usage"`
}

// State is the state that the exit record makes: only exited with code 0 is
// succeeded.
func (e ExitRecord) State() State {
	if e.Cause == Exited && e.Code != nil && *e.Code == 0 {
		return Succeeded
	}
	return Failed
}

// LimitHit counts how often a limit inside the guest was met.
type LimitHit struct {
	Limit string `json:"limit"` // disk, processes, memory
	Count int64  `json:"count"`
}

// Usage is what a sandbox used.
type Usage struct {
	CPUSeconds       float64 `json:"cpu_seconds"`
	MemoryPeakBytes  int64   `json:"memory_peak_bytes"`
	DiskWrittenBytes int64   `json:"disk_written_bytes"`
	NetworkRxBytes   int64   `json:"network_rx_bytes"`
	NetworkTxBytes   int64   `json:"network_tx_bytes"`
	LogBytes         int64   `json:"log_bytes"`
	LogTruncated     bool    `json:"log_truncated"`
}

// Timings are milliseconds from created_at to the end of each stage; 0 until
// it is known.
type Timings struct {
	Judged      float64 `json:"judged"`
	Queued      float64 `json:"queued"` // claimed by the scheduler
	Placed      float64 `json:"placed"` // bound to a node
	VMReady     float64 `json:"vm_ready"`
	FirstOutput float64 `json:"first_output"`
	Total       float64 `json:"total"`
}

// Event is one change of state.
type Event struct {
	Seq     int64     `json:"seq"` // per sandbox, from 1, without gaps
	Time    time.Time `json:"time"`
	State   State     `json:"state"`
	Cause   Cause     `json:"cause,omitempty"`
	Message string    `json:"message,omitempty"`
}

// Limits are plain numbers that a tenant may not pass. The zero value allows
// nothing.
type Limits struct {
	Live      int   `json:"live"`       // queued or on a node; checked by Admit
	Running   int   `json:"running"`    // on a node; this and the rest are checked by Place
	VCPUs     int   `json:"vcpus"`      // of those on nodes
	MemoryMiB int64 `json:"memory_mib"` // of those on nodes
	DiskMiB   int64 `json:"disk_mib"`   // of those on nodes
}

// Admitted is a request that passed the judges: what the queue holds.
type Admitted struct {
	Record  Record
	Limits  Limits
	Verdict []byte // the exact bytes that travel, signature included (package seal)
	Secrets []byte // sealed; erased at the end
}

// Assignment binds a sandbox to a node. All four together name one chance to
// run; a node that was restarted or fenced has another epoch.
type Assignment struct {
	Sandbox ID     `json:"sandbox"`
	Attempt int    `json:"attempt"`
	Node    string `json:"node"`
	Epoch   int64  `json:"epoch"`
}

// Progress is what a node tells of an accepted sandbox. Zero fields say
// nothing new.
type Progress struct {
	State       State     `json:"state,omitempty"` // Running or Stopping, or "" for facts only
	At          time.Time `json:"at,omitzero"`
	Cause       Cause     `json:"cause,omitempty"` // with Stopping
	Runtime     Runtime   `json:"runtime"`
	Isolation   Isolation `json:"isolation"`
	VMReady     time.Time `json:"vm_ready,omitzero"`
	FirstOutput time.Time `json:"first_output,omitzero"`
}

// End is the end of a sandbox.
type End struct {
	At        time.Time  `json:"at"`
	Exit      ExitRecord `json:"exit"`
	LogDigest Digest     `json:"log_digest,omitempty"` // none when it never ran
	Progress  Progress   `json:"progress"`             // facts that had not been told before
}

// Principal is who calls.
type Principal struct {
	Tenant  string
	Scopes  []Scope
	TokenID string // for the audit; never the token
}

// Scope is a right of a token.
type Scope string

// The scopes.
const (
	ScopeRun   Scope = "run"
	ScopeRead  Scope = "read"
	ScopeAdmin Scope = "admin" // sees all tenants, and holds the other two
)

// Has reports whether p may do what s guards.
func (p Principal) Has(s Scope) bool {
	for _, x := range p.Scopes {
		if x == s || x == ScopeAdmin {
			return true
		}
	}
	return false
}

// AuditEntry tells who asked for what and what was answered. It never holds a
// secret or a token.
type AuditEntry struct {
	Seq           int64     `json:"seq"` // set by the ledger
	Time          time.Time `json:"time"`
	Tenant        string    `json:"tenant"`
	TokenID       string    `json:"token_id,omitempty"`
	Source        string    `json:"source,omitempty"` // remote address or "unix"
	RequestID     string    `json:"request_id,omitempty"`
	Action        string    `json:"action"` // run, kill, token.create, …
	Sandbox       ID        `json:"sandbox,omitempty"`
	Decision      Decision  `json:"decision"`
	PolicyVersion string    `json:"policy_version,omitempty"`
	Reasons       []Reason  `json:"reasons,omitempty"`
	Difference    string    `json:"difference,omitempty"` // what a new policy changes, as lines with + and -
	PrevDigest    Digest    `json:"prev_digest"`          // of the entry before, set by the ledger
}

// Node is a host as the scheduler sees it.
type Node struct {
	ID        string            `json:"id"`
	Epoch     int64             `json:"epoch"` // grows with every join
	Capacity  Capacity          `json:"capacity"`
	InUse     Capacity          `json:"in_use"` // a sum over live records, never a counter
	Labels    map[string]string `json:"labels,omitempty"`
	Runtime   Runtime           `json:"runtime"`
	Isolation Isolation         `json:"isolation"`
	Network   bool              `json:"network"` // can give a sandbox a network card
	Draining  bool              `json:"draining"`
	SeenAt    time.Time         `json:"seen_at"`
}

// Capacity is room on a node. VCPUs may be more than the host has cores;
// memory and disk never are more than there is.
type Capacity struct {
	VCPUs     int   `json:"vcpus"`
	MemoryMiB int64 `json:"memory_mib"`
	DiskMiB   int64 `json:"disk_mib"`
}

// Template is a root disk that a sandbox can be made from.
type Template struct {
	Name      string    `json:"name"`
	Digest    Digest    `json:"digest"`
	Bytes     int64     `json:"bytes"`
	CreatedAt time.Time `json:"created_at"`
	Packages  string    `json:"packages,omitempty"` // what it was made of, in a line
}

// VMOverheadMiB is what a VM costs its host beyond the guest's memory: the
// VMM itself with its bounded translation buffer. Placement and the host's
// memory limit count it.
const VMOverheadMiB = 96
