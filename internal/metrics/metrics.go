// Package metrics is the table of metrics: their names, units, labels and what
// they mean.
//
// Everything that is counted is a row of it: instruments are made from rows,
// and docs/metrics.md is printed from them. What an instrument is given as a
// label's value is held to the row: a value that the row does not know, or that
// is one too many, becomes Other. So no label ever holds a sandbox, a tenant or
// what a tenant wrote, whatever a caller passes.
//
// No label holds a tenant's or a node's name either, though policy and registry
// bound them: whoever has a token with scope read may read the metrics, and
// tenants are not told of each other, nor of nodes.
package metrics

import (
	"slices"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Name is the name of a metric.
type Name string

// Kind is what a metric is.
type Kind string

// The kinds.
const (
	CounterKind   Kind = "counter"   // grows; begins at 0 with its process
	GaugeKind     Kind = "gauge"     // what is now
	HistogramKind Kind = "histogram" // how often values were up to each bound
)

// Row is a metric.
type Row struct {
	Name    Name
	Kind    Kind
	Unit    string // as in the name's end; "" for a plain number
	Labels  []Label
	Buckets []float64 // upper bounds, of a histogram
	Ledger  bool      // read of the ledger when it is asked for: every server of the same ledger says the same
	Help    string
}

// Label is a label of a metric.
type Label struct {
	Name   string
	Values []string // all that there are; nil where they are not known here
	Of     string   // without Values: what they are of
}

// Other stands for a label's value that is not to be told.
const Other = "other"

// most bounds the values of a label whose values are not known here.
const most = 200

// The metrics of the API server.
const (
	APIRequests       Name = "tartarus_api_requests_total"
	APIRequestSeconds Name = "tartarus_api_request_seconds"
	APIStreams        Name = "tartarus_api_streams"
	Admissions        Name = "tartarus_admissions_total"
	Refusals          Name = "tartarus_refusals_total"
	AuditFailures     Name = "tartarus_audit_write_failures_total"
	Checkpoints       Name = "tartarus_audit_checkpoints_total"
	PolicyRefused     Name = "tartarus_policy_refused"
)

// The metrics of queue, sandboxes and nodes, as the control plane knows them.
const (
	QueueDepth     Name = "tartarus_queue_depth"
	QueueOldest    Name = "tartarus_queue_oldest_seconds"
	QueueLimited   Name = "tartarus_queue_limited_tenants"
	Sandboxes      Name = "tartarus_sandboxes"
	Ended          Name = "tartarus_sandboxes_ended_total"
	Requeued       Name = "tartarus_sandboxes_requeued_total"
	StageSeconds   Name = "tartarus_stage_seconds"
	Nodes          Name = "tartarus_nodes"
	NodesVCPUs     Name = "tartarus_nodes_vcpus"
	NodesMemory    Name = "tartarus_nodes_memory_bytes"
	NodesDisk      Name = "tartarus_nodes_disk_bytes"
	CommitSeconds  Name = "tartarus_ledger_commit_seconds"
	CommitSteps    Name = "tartarus_ledger_commit_steps"
	CommitFailures Name = "tartarus_ledger_commit_failures_total"
	ReadFailures   Name = "tartarus_metrics_read_failures_total"
)

// The metrics of one node.
const (
	NodeSandboxes      Name = "tartarus_node_sandboxes"
	NodeEnded          Name = "tartarus_node_sandboxes_ended_total"
	NodeStartSeconds   Name = "tartarus_node_start_seconds"
	NodeStepSeconds    Name = "tartarus_node_step_seconds"
	NodeBootsGivenUp   Name = "tartarus_node_boots_given_up_total"
	NodeUndoFailures   Name = "tartarus_node_undo_failures_total"
	VMMMemory          Name = "tartarus_vmm_memory_bytes"
	VMMMemoryLargest   Name = "tartarus_vmm_memory_largest_bytes"
	VMMMemoryPeak      Name = "tartarus_vmm_memory_peak_bytes"
	NodeCPUSeconds     Name = "tartarus_node_cpu_seconds_total"
	NodeLogBytes       Name = "tartarus_node_log_bytes_total"
	NodeLogsTruncated  Name = "tartarus_node_logs_truncated_total"
	NodeLogsLost       Name = "tartarus_node_logs_lost_total"
	TraceSpans         Name = "tartarus_trace_spans_total"
	TraceExportSeconds Name = "tartarus_trace_export_seconds"
)

// The stages of a sandbox's road, as in StageSeconds.
const (
	StageJudged      = "judged"
	StageQueued      = "queued"
	StagePlaced      = "placed"
	StageVMReady     = "vm_ready"
	StageFirstOutput = "first_output"
	StageTotal       = "total"
)

// Values of labels that more than one package names.
const (
	OutcomeAdmitted = "admitted"
	OutcomeRepeated = "repeated"
	CodeOK          = "ok"
	RuleNone        = "none"

	QueueReady   = "ready"
	QueueWaiting = "waiting"
	QueueClaimed = "claimed"

	NodeReady    = "ready"
	NodeSilent   = "silent"
	NodeDraining = "draining"

	KindCapacity = "capacity"
	KindInUse    = "in_use"

	SinkFile         = "file"
	SinkSyslog       = "syslog"
	CheckpointKept   = "kept"
	CheckpointFailed = "failed"
	CheckpointLost   = "lost"

	SpansEnded = "ended"
	SpansSent  = "sent"
	SpansLost  = "lost"
)

// seconds fit what takes from 1 ms to 10 min.
func seconds() []float64 {
	return []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
}

// Table is every metric, in the order of the page.
func Table() []Row {
	return slices.Concat(apiRows(), controlRows(), nodeRows())
}

func apiRows() []Row {
	method := Label{Name: "method", Of: "methods of the API, and Metrics, OpenAPI, Reflection"}
	return []Row{
		{
			Name: APIRequests, Kind: CounterKind, Labels: []Label{method, {Name: "code", Values: append([]string{CodeOK}, codes()...)}},
			Help: "Requests that were answered, by method and error code (ok without one).",
		},
		{
			Name: APIRequestSeconds, Kind: HistogramKind, Unit: "seconds", Labels: []Label{method}, Buckets: seconds(),
			Help: "How long requests took; streams and waits for as long as they were open.",
		},
		{Name: APIStreams, Kind: GaugeKind, Help: "Open streams and waits."},
		{
			Name: Admissions, Kind: CounterKind, Labels: []Label{{Name: "outcome", Values: append([]string{OutcomeAdmitted, OutcomeRepeated}, codes()...)}},
			Help: "Requests to run, by outcome: admitted, repeated (by its idempotency key), or the error code.",
		},
		{
			Name: Refusals, Kind: CounterKind,
			Labels: []Label{{Name: "kind", Values: codes()}, {Name: "rule", Of: "the policy's rules, maxima and quotas; " + RuleNone + " for what came to no verdict"}},
			Help:   "Reasons for which requests to run were refused, by error code and the policy's name for the rule. A request may have several.",
		},
		{Name: AuditFailures, Kind: CounterKind, Help: "Steps that could not be taken because the ledger, and so the audit, could not be written. Above 0, runs are refused."},
		{
			Name: Checkpoints, Kind: CounterKind,
			Labels: []Label{{Name: "sink", Values: []string{SinkFile, SinkSyslog}}, {Name: "outcome", Values: []string{CheckpointKept, CheckpointFailed, CheckpointLost}}},
			Help:   "Checkpoints of the audit log, by kind of sink and outcome: kept, failed (and tried again), lost (a later one covers it).",
		},
		{Name: PolicyRefused, Kind: GaugeKind, Help: "1 while the policy's file has a version that does not hold, and the one before goes on to; else 0."},
	}
}

func controlRows() []Row {
	use := []Label{{Name: "kind", Values: []string{KindCapacity, KindInUse}}}
	const ofNodes = " Capacity is that of the nodes that are ready; in use is what live sandboxes take on any."
	return []Row{
		{
			Name: QueueDepth, Kind: GaugeKind, Ledger: true, Labels: []Label{{Name: "state", Values: []string{QueueReady, QueueWaiting, QueueClaimed}}},
			Help: "Requests in the queue: ready to be taken, waiting to be tried again, or being placed.",
		},
		{Name: QueueOldest, Kind: GaugeKind, Unit: "seconds", Ledger: true, Help: "Age of the oldest request in the queue; 0 when it is empty."},
		{Name: QueueLimited, Kind: GaugeKind, Help: "Tenants whose requests wait for their own limits, as this scheduler last saw."},
		{
			Name: Sandboxes, Kind: GaugeKind, Ledger: true, Labels: []Label{{Name: "state", Values: liveStates()}},
			Help: "Live sandboxes, by state (docs/states.md).",
		},
		{
			Name: Ended, Kind: CounterKind, Labels: []Label{{Name: "state", Values: []string{string(sandbox.Succeeded), string(sandbox.Failed)}}, {Name: "cause", Values: causes()}},
			Help: "Sandboxes that ended, by state and cause (docs/states.md), wherever they were.",
		},
		{Name: Requeued, Kind: CounterKind, Help: "Assignments given back to the queue: refused by their node, or fenced before it accepted them."},
		{
			Name: StageSeconds, Kind: HistogramKind, Unit: "seconds", Buckets: seconds(),
			Labels: []Label{{Name: "stage", Values: []string{StageJudged, StageQueued, StagePlaced, StageVMReady, StageFirstOutput, StageTotal}}},
			Help: "How long each stage of a sandbox's road took by itself: judged and sealed; queued until a scheduler took it; placed on a node; " +
				"until its VM was ready; from then until its first output; and in total, from creation to end.",
		},
		{
			Name: Nodes, Kind: GaugeKind, Ledger: true, Labels: []Label{{Name: "state", Values: []string{NodeReady, NodeSilent, NodeDraining}}},
			Help: "Nodes: ready for more, silent for longer than their lease, or draining.",
		},
		{Name: NodesVCPUs, Kind: GaugeKind, Ledger: true, Labels: use, Help: "vCPUs." + ofNodes},
		{Name: NodesMemory, Kind: GaugeKind, Unit: "bytes", Ledger: true, Labels: use, Help: "Memory, each VM's overhead counted." + ofNodes},
		{Name: NodesDisk, Kind: GaugeKind, Unit: "bytes", Ledger: true, Labels: use, Help: "Disk." + ofNodes},
		{
			Name: CommitSeconds, Kind: HistogramKind, Unit: "seconds",
			Buckets: []float64{0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10},
			Help:    "How long the ledger took to make a group of steps durable.",
		},
		{Name: CommitSteps, Kind: HistogramKind, Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256}, Help: "Steps in one commit of the ledger."},
		{Name: CommitFailures, Kind: CounterKind, Help: "Commits of the ledger that failed as a whole: nothing of them happened."},
		{Name: ReadFailures, Kind: CounterKind, Help: "Times that the metrics which are read of the ledger could not be read; they are missing then."},
	}
}

func nodeRows() []Row {
	step := []Label{{Name: "step", Values: Steps()}}
	return []Row{
		{Name: NodeSandboxes, Kind: GaugeKind, Help: "Sandboxes on this node, those included whose end is not yet told."},
		{Name: NodeEnded, Kind: CounterKind, Labels: []Label{{Name: "cause", Values: causes()}}, Help: "Sandboxes that ended on this node, by cause (docs/states.md)."},
		{Name: NodeStartSeconds, Kind: HistogramKind, Unit: "seconds", Buckets: seconds(), Help: "From the assignment to the order to execute."},
		{Name: NodeStepSeconds, Kind: HistogramKind, Unit: "seconds", Buckets: seconds(), Labels: step, Help: "How long each step of preparing a sandbox took, failed ones included."},
		{Name: NodeBootsGivenUp, Kind: CounterKind, Help: "VMs that were ended and started anew because their guest did not come up."},
		{Name: NodeUndoFailures, Kind: CounterKind, Labels: step, Help: "Steps that could not be undone; the node's next start tries again. Above 0, something is left on the host."},
		{Name: VMMMemory, Kind: GaugeKind, Unit: "bytes", Help: "Memory of the host that all VMMs of this node take now, private pages."},
		{Name: VMMMemoryLargest, Kind: GaugeKind, Unit: "bytes", Help: "The most that one VMM of this node takes now."},
		{
			Name: VMMMemoryPeak, Kind: HistogramKind, Unit: "bytes", Buckets: []float64{16 << 20, 32 << 20, 64 << 20, 128 << 20, 256 << 20, 512 << 20, 1 << 30, 2 << 30, 4 << 30, 8 << 30, 16 << 30},
			Help: "The most that each VMM took in its life, at its end. Where the host did not see it, it is missing.",
		},
		{Name: NodeCPUSeconds, Kind: CounterKind, Unit: "seconds", Help: "CPU time of ended sandboxes."},
		{Name: NodeLogBytes, Kind: CounterKind, Unit: "bytes", Help: "Output of ended sandboxes that was kept."},
		{Name: NodeLogsTruncated, Kind: CounterKind, Help: "Logs that were full: output was cut."},
		{Name: NodeLogsLost, Kind: CounterKind, Help: "Logs that could not be stored at the end."},
		{
			Name: TraceSpans, Kind: CounterKind, Labels: []Label{{Name: "outcome", Values: []string{SpansEnded, SpansSent, SpansLost}}},
			Help: "Spans of traces: ended, of these sent to the collector, and lost because it did not take them. What is neither waits, or was dropped because too much did. Only where traces are on.",
		},
		{Name: TraceExportSeconds, Kind: HistogramKind, Unit: "seconds", Buckets: seconds(), Help: "How long sending spans to the collector took, failed ones included. Only where traces are on."},
	}
}

// Steps are the steps of preparing a sandbox, as a node names them.
func Steps() []string {
	return []string{"folder", "network", "log", "standby", "images", "scratch", "vm", "setup"}
}

func codes() (out []string) {
	for _, r := range fault.Table() {
		out = append(out, r.Code)
	}
	return out
}

func causes() (out []string) {
	for _, c := range sandbox.Causes() {
		out = append(out, string(c.Cause))
	}
	return out
}

func liveStates() (out []string) {
	for _, s := range sandbox.States() {
		if s.State.Live() {
			out = append(out, string(s.State))
		}
	}
	return out
}
