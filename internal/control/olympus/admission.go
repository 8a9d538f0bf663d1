package olympus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/aeacus"
	"github.com/tartarus-vm/tartarus/internal/control/judges/minos"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// Policies hands out the policy that holds now.
type Policies interface{ Active() *themis.Policy }

// AdmissionConfig is what an Admission is made of; all but Clock, Tracer and
// Contracts is needed.
type AdmissionConfig struct {
	Policies Policies
	Lookup   themis.Lookup
	Bench    *judges.Bench
	Key      *seal.Key
	Box      *seal.Box
	Ledger   ledger.Admissions
	Clock    func() time.Time // time.Now if nil
	Tracer   *tracing.Tracer  // nil: no traces

	// Contracts says why no node can hold a contract, however it is placed;
	// nil: nodes hold any. It is asked of what the judges allow.
	Contracts func(sandbox.NetworkContract) error
}

// Admission is the way in: a request becomes a queued record with a signed
// verdict, or a refusal that the audit knows of.
type Admission struct {
	cfg    AdmissionConfig
	rate   minos.Rate
	nobody themis.Tenant // the shared rate of tenants that the policy does not name
}

const (
	keyLife      = 24 * time.Hour  // of an idempotency key
	verdictSlack = 5 * time.Minute // beyond the longest way of a request to its start
)

// NewAdmission makes an Admission.
func NewAdmission(cfg AdmissionConfig) (*Admission, error) {
	if cfg.Policies == nil || cfg.Lookup == nil || cfg.Bench == nil || cfg.Key == nil || cfg.Box == nil || cfg.Ledger == nil {
		return nil, errors.New("olympus: the admission needs policies, lookup, bench, key, box and ledger")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Admission{
		cfg:    cfg,
		nobody: themis.Tenant{Quota: themis.Quota{RatePerMinute: 60, Burst: 10}},
	}, nil
}

// Entry is one request to run that stands at the door.
type Entry struct {
	Principal sandbox.Principal
	Source    string
	RequestID string
	Key       string // idempotency key; "" for none
	Hash      sandbox.Digest

	// Decode reads the request. It is asked after the tenant's rate was, since
	// a malformed request leaves an audit entry.
	Decode func() (sandbox.Request, error)
}

// refusal is an error with the judges' reasons.
type refusal struct {
	error
	reasons []sandbox.Reason
}

func (r refusal) Unwrap() error { return r.error }

// Run admits a request, or says why not. What the policy refuses leaves a
// refused record, whose ID is in the error; what is malformed or over a quota
// leaves an audit entry; what comes too fast leaves nothing. created is false
// when the idempotency key had made the record already.
func (a *Admission) Run(ctx context.Context, e Entry) (rec sandbox.Record, created bool, err error) {
	now := a.cfg.Clock()
	call := aeacus.Call{Principal: e.Principal, Source: e.Source, RequestID: e.RequestID, Time: now}
	policy := a.cfg.Policies.Active()
	tenant, known := policy.Tenant(e.Principal.Tenant)
	if !known {
		tenant = a.nobody
	}
	if err := a.rate.Allow(tenant, now); err != nil {
		return rec, false, err
	}
	adm, outcome, err := a.judge(ctx, e, policy, now)
	if err != nil {
		return rec, false, a.refused(ctx, call, policy, err)
	}
	audit := aeacus.Judged(call, adm.Record.ID, outcome)
	if !outcome.Allowed() {
		return rec, false, a.refuse(ctx, adm.Record, outcome, audit)
	}
	if a.cfg.Contracts != nil {
		if err := a.cfg.Contracts(adm.Record.Request.Network); err != nil {
			return rec, false, a.refused(ctx, call, policy, err)
		}
	}
	if adm, err = a.seal(adm); err != nil {
		return rec, false, err
	}
	key := ledger.IdempotencyKey{}
	if e.Key != "" {
		key = ledger.IdempotencyKey{Key: e.Key, Hash: e.Hash, Expires: now.Add(keyLife)}
	}
	sealed := a.cfg.Clock()
	rec, created, err = a.cfg.Ledger.Admit(ctx, adm.Admitted, audit, key)
	if created {
		a.cfg.Tracer.Stage(tracing.Span{Sandbox: rec.ID, Name: "judge", Begin: now, End: sealed})
		a.cfg.Tracer.Stage(tracing.Span{Sandbox: rec.ID, Name: "admit", Begin: sealed, End: a.cfg.Clock()})
	}
	if fault.Is(err, fault.QuotaExceeded) || fault.Is(err, fault.Conflict) {
		err = a.refused(ctx, call, policy, err)
	}
	return rec, created, err
}

// judged is a request on its way through admission.
type judged struct {
	sandbox.Admitted // its Secrets are the sealed ones
	plain            sandbox.Secrets
}

// judge resolves a request and hears the bench.
func (a *Admission) judge(ctx context.Context, e Entry, policy *themis.Policy, now time.Time) (judged, judges.Outcome, error) {
	var out judged
	var outcome judges.Outcome
	req, err := e.Decode()
	if err != nil {
		return out, outcome, err
	}
	heard, err := a.cfg.Bench.Hear(ctx, judges.Plea{Policy: policy, Principal: e.Principal, Request: req, Lookup: a.cfg.Lookup})
	if err != nil {
		return out, outcome, err
	}
	id, err := ulid.New(ulid.Timestamp(now), rand.Reader)
	if err != nil {
		return out, outcome, fmt.Errorf("making an ID: %w", err)
	}
	outcome = heard.Outcome
	out.plain = heard.Secrets
	out.Record = sandbox.Record{
		ID: sandbox.MakeID(id.String()), Name: heard.Request.Name, Tenant: e.Principal.Tenant, State: sandbox.Queued,
		Request: heard.Request, Verdict: outcome.Verdict, CreatedAt: now, RequestID: e.RequestID,
	}
	out.Limits = outcome.Limits
	return out, outcome, nil
}

// seal signs the verdict and seals the secrets.
func (a *Admission) seal(j judged) (judged, error) {
	rec := &j.Record
	secrets, _, err := seal.EncodeSecrets(j.plain)
	if err != nil {
		return j, err
	}
	if j.Secrets, err = a.cfg.Box.Seal(rec.ID, secrets); err != nil {
		return j, err
	}
	r := rec.Request
	j.Verdict, rec.Verdict.Digest, err = a.cfg.Key.SignVerdict(seal.Verdict{
		Sandbox: rec.ID, Tenant: rec.Tenant, PolicyVersion: rec.Verdict.PolicyVersion, Request: r,
		Issued: rec.CreatedAt, Expires: rec.CreatedAt.Add(r.QueueTimeout + r.CapacityWait + r.StartTimeout + verdictSlack),
	})
	if err != nil {
		return j, err
	}
	rec.Verdict.KeyID = a.cfg.Key.ID()
	rec.Timings.Judged = float64(a.cfg.Clock().Sub(rec.CreatedAt)) / float64(time.Millisecond)
	return j, nil
}

// refuse writes down what the bench refused: a record where the policy did,
// an audit entry where it was a quota.
func (a *Admission) refuse(ctx context.Context, rec sandbox.Record, o judges.Outcome, audit sandbox.AuditEntry) error {
	ctx = context.WithoutCancel(ctx) // who hangs up is in the audit all the same
	out := refusal{error: o.Err(), reasons: o.Verdict.Reasons}
	if o.Kind != fault.PolicyDenied {
		if err := a.cfg.Ledger.Audit(ctx, audit); err != nil {
			return unwritten(err)
		}
		return out
	}
	rec.State, rec.EndedAt = sandbox.Refused, rec.CreatedAt
	if err := a.cfg.Ledger.Refuse(ctx, rec, audit); err != nil {
		return unwritten(err)
	}
	a.cfg.Tracer.Stage(tracing.Span{Sandbox: rec.ID, Name: "judge", Begin: rec.CreatedAt, End: a.cfg.Clock(), Err: out})
	var f *fault.Error
	if errors.As(out.error, &f) {
		told := *f
		told.Sandbox = string(rec.ID)
		out.error = &told
	}
	return out
}

// refused writes the audit entry of a request that came to no verdict. Without
// it there is no answer but unavailable.
func (a *Admission) refused(ctx context.Context, call aeacus.Call, policy *themis.Policy, err error) error {
	ctx = context.WithoutCancel(ctx) // who hangs up is in the audit all the same
	if werr := a.cfg.Ledger.Audit(ctx, aeacus.Refused(call, aeacus.Run, policy.Version(), err)); werr != nil {
		return unwritten(werr)
	}
	return err
}

// unwritten is the error of an audit that cannot be written.
func unwritten(err error) error {
	return fault.Wrap(fault.Unavailable, err, "the audit cannot be written now").
		WithHint("Try again; the server's log says what is wrong.").WithRetryAfter(time.Second)
}
