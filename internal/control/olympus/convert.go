package olympus

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// requestOf is a request to run as the rest of the house knows it. Fields are
// judged by the policy, not here.
func requestOf(in *apiv1.RunRequest) (sandbox.Request, error) {
	out := sandbox.Request{
		Template: in.GetTemplate(), Command: in.GetCommand(), Name: in.GetName(), Env: in.GetEnv(),
		WorkingDir: in.GetWorkingDir(), User: in.GetUser(), Stdin: in.GetStdin(), StdinOpen: in.GetStdinOpen(),
		Resources: sandbox.Resources{
			VCPUs: int(in.GetResources().GetVcpus()), MemoryMiB: int64(in.GetResources().GetMemoryMib()),
			DiskMiB: int64(in.GetResources().GetDiskMib()), Processes: int(in.GetResources().GetProcesses()),
		},
		Labels: in.GetLabels(), NodeSelector: in.GetNodeSelector(),
	}
	if d := in.GetMaxDuration(); d != nil {
		if err := d.CheckValid(); err != nil {
			return out, fault.Invalid("max_duration", `Send seconds, as in "90s".`, "max_duration is not a duration")
		}
		out.MaxDuration = d.AsDuration()
	}
	for _, f := range in.GetFiles() {
		out.Files = append(out.Files, sandbox.File{Path: f.GetPath(), Mode: f.GetMode(), Data: f.GetData()})
	}
	for _, g := range in.GetNetwork().GetAllow() {
		grant := sandbox.Grant{Domain: g.GetDomain(), CIDR: g.GetCidr(), Protocol: g.GetProtocol()}
		for _, p := range g.GetPorts() {
			grant.Ports = append(grant.Ports, int(p))
		}
		out.Network.Allow = append(out.Network.Allow, grant)
	}
	return out, nil
}

// recordOf is a record as callers see it: tenants are not told of nodes.
func recordOf(r sandbox.Record, who sandbox.Principal) *apiv1.Sandbox {
	out := &apiv1.Sandbox{
		Id: string(r.ID), Name: r.Name, Tenant: r.Tenant, State: string(r.State),
		Request: resolvedOf(r.Request), Verdict: verdictOf(r.Verdict), Runtime: runtimeOf(r.Runtime),
		Isolation: isolationOf(r.Isolation),
		CreatedAt: timeOf(r.CreatedAt), AssignedAt: timeOf(r.AssignedAt), AcceptedAt: timeOf(r.AcceptedAt),
		StartedAt: timeOf(r.StartedAt), EndedAt: timeOf(r.EndedAt),
		Usage: usageOf(r.Exit.Usage),
		Timings: &apiv1.Timings{
			Judged: r.Timings.Judged, Queued: r.Timings.Queued, Placed: r.Timings.Placed,
			VmReady: r.Timings.VMReady, FirstOutput: r.Timings.FirstOutput, Total: r.Timings.Total,
		},
	}
	if who.Has(sandbox.ScopeAdmin) {
		out.Node = r.Node
	}
	if r.Exit.Cause != "" {
		out.Exit = exitOf(r.Exit)
	}
	return out
}

func resolvedOf(r sandbox.Resolved) *apiv1.ResolvedRequest {
	out := &apiv1.ResolvedRequest{
		Template: r.Template, TemplateDigest: string(r.TemplateDigest), GuestDigest: string(r.GuestDigest),
		Command: r.Command, Name: r.Name, WorkingDir: r.WorkingDir, User: r.User,
		StdinBytes: float64(r.StdinBytes), StdinOpen: r.StdinOpen,
		Resources: &apiv1.Resources{
			Vcpus: int32(r.Resources.VCPUs), MemoryMib: int32(r.Resources.MemoryMiB),
			DiskMib: int32(r.Resources.DiskMiB), Processes: int32(r.Resources.Processes),
		},
		MaxDuration: durationpb.New(r.MaxDuration), StartTimeout: durationpb.New(r.StartTimeout),
		QueueTimeout: durationpb.New(r.QueueTimeout), CapacityWait: durationpb.New(r.CapacityWait),
		LogBytes: float64(r.LogBytes), Network: &apiv1.NetworkContract{}, Labels: r.Labels, NodeSelector: r.NodeSelector,
	}
	for _, e := range r.Env {
		out.Env = append(out.Env, &apiv1.SecretRef{Name: e.Name, Bytes: float64(e.Bytes)})
	}
	for _, f := range r.Files {
		out.Files = append(out.Files, &apiv1.FileRef{Path: f.Path, Mode: f.Mode, Bytes: float64(f.Bytes)})
	}
	for _, g := range r.Network.Allow {
		grant := &apiv1.Grant{Domain: g.Domain, Cidr: g.CIDR, Protocol: g.Protocol}
		for _, p := range g.Ports {
			grant.Ports = append(grant.Ports, int32(p))
		}
		out.Network.Allow = append(out.Network.Allow, grant)
	}
	return out
}

func verdictOf(v sandbox.Verdict) *apiv1.Verdict {
	return &apiv1.Verdict{
		Decision: string(v.Decision), PolicyVersion: v.PolicyVersion, Reasons: reasonsOf(v.Reasons),
		Digest: string(v.Digest), KeyId: v.KeyID,
	}
}

func reasonsOf(reasons []sandbox.Reason) []*apiv1.Reason {
	var out []*apiv1.Reason
	for _, r := range reasons {
		out = append(out, &apiv1.Reason{Judge: r.Judge, Rule: r.Rule, Message: clean(r.Message), Field: r.Field})
	}
	return out
}

func runtimeOf(r sandbox.Runtime) *apiv1.Runtime {
	return &apiv1.Runtime{
		Driver: r.Driver, Version: r.Version, Accelerator: r.Accelerator, Start: r.Start, Attempt: int32(r.Attempt),
	}
}

func isolationOf(i sandbox.Isolation) *apiv1.Isolation {
	return &apiv1.Isolation{Accelerator: i.Accelerator, Confinement: i.Confinement, Missing: i.Missing}
}

func exitOf(e sandbox.ExitRecord) *apiv1.Exit {
	out := &apiv1.Exit{Cause: string(e.Cause), Source: string(e.Source), Message: clean(e.Message)}
	if e.Code != nil {
		code := int32(*e.Code)
		out.Code = &code
	}
	if e.Signal != 0 {
		signal := int32(e.Signal)
		out.Signal = &signal
	}
	for _, l := range e.LimitsHit {
		out.LimitsHit = append(out.LimitsHit, &apiv1.LimitHit{Limit: clean(l.Limit), Count: float64(l.Count)})
	}
	return out
}

func usageOf(u sandbox.Usage) *apiv1.Usage {
	return &apiv1.Usage{
		CpuSeconds: u.CPUSeconds, MemoryPeakBytes: float64(u.MemoryPeakBytes),
		DiskWrittenBytes: float64(u.DiskWrittenBytes), NetworkRxBytes: float64(u.NetworkRxBytes),
		NetworkTxBytes: float64(u.NetworkTxBytes), LogBytes: float64(u.LogBytes), LogTruncated: u.LogTruncated,
	}
}

func eventOf(e sandbox.Event) *apiv1.Event {
	return &apiv1.Event{
		Seq: int32(e.Seq), Time: timeOf(e.Time), State: string(e.State), Cause: string(e.Cause), Message: clean(e.Message),
	}
}

func entryOf(e hermes.Entry) *apiv1.LogEntry {
	out := &apiv1.LogEntry{Offset: float64(e.Offset), Stream: e.Stream, Time: timeOf(e.Time), Data: e.Data}
	if e.Stream == hermes.Truncated {
		out.Stream, out.Truncated = "", true
	}
	return out
}

func nodeOf(n sandbox.Node) *apiv1.Node {
	return &apiv1.Node{
		Id: n.ID, Epoch: float64(n.Epoch), Capacity: capacityOf(n.Capacity), InUse: capacityOf(n.InUse), Labels: n.Labels,
		Runtime: runtimeOf(n.Runtime), Isolation: isolationOf(n.Isolation), Network: n.Network, Draining: n.Draining,
		SeenAt: timeOf(n.SeenAt),
	}
}

func capacityOf(c sandbox.Capacity) *apiv1.Capacity {
	return &apiv1.Capacity{Vcpus: int32(c.VCPUs), MemoryMib: float64(c.MemoryMiB), DiskMib: float64(c.DiskMiB)}
}

func auditOf(a sandbox.AuditEntry) *apiv1.AuditEntry {
	return &apiv1.AuditEntry{
		Seq: float64(a.Seq), Time: timeOf(a.Time), Tenant: clean(a.Tenant), TokenId: a.TokenID, Source: clean(a.Source),
		RequestId: a.RequestID, Action: a.Action, Sandbox: string(a.Sandbox), Decision: string(a.Decision),
		PolicyVersion: a.PolicyVersion, Reasons: reasonsOf(a.Reasons), PrevDigest: string(a.PrevDigest),
		Difference: clean(a.Difference),
	}
}

func templateOf(t sandbox.Template) *apiv1.Template {
	return &apiv1.Template{
		Name: t.Name, Digest: string(t.Digest), Bytes: float64(t.Bytes), CreatedAt: timeOf(t.CreatedAt), Packages: t.Packages,
	}
}

func scopeNames(scopes []sandbox.Scope) []string {
	out := make([]string, len(scopes))
	for i, s := range scopes {
		out[i] = string(s)
	}
	return out
}

// timeOf is t, or unset for none.
func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
