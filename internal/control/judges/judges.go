// Package judges is the admission bench: it hears the judges on a resolved
// request, in order, and says the outcome with its reasons.
//
// Judges are pure: they get values and return values. Who admits a request
// carries the outcome out, and has aeacus write it down.
package judges

import (
	"context"
	"fmt"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Case is what the judges get: one request, resolved, under one policy.
type Case struct {
	Policy  *themis.Policy
	Tenant  themis.Tenant
	Request sandbox.Resolved
}

// NewCase brings a tenant's resolved request before the policy that it was
// resolved with. A tenant the policy does not name is PolicyDenied.
func NewCase(p *themis.Policy, tenant string, req sandbox.Resolved) (Case, error) {
	t, ok := p.Tenant(tenant)
	if !ok {
		return Case{}, fault.New(fault.PolicyDenied, "the policy does not name the tenant").
			WithHint("Ask an operator to add it to the policy, or use another tenant's token.")
	}
	return Case{Policy: p, Tenant: t, Request: req}, nil
}

// Plea is a request as it comes before the bench.
type Plea struct {
	Policy    *themis.Policy
	Principal sandbox.Principal
	Request   sandbox.Request
	Lookup    themis.Lookup
}

// Heard is what a hearing made of a request.
type Heard struct {
	Request sandbox.Resolved
	Secrets sandbox.Secrets
	Outcome Outcome
}

// Judge decides on one side of a case. The same case always gets the same
// opinion, and the case is not changed.
type Judge interface {
	Name() string
	Judge(c Case) Opinion
}

// Opinion is what one judge says. The zero value allows.
type Opinion struct {
	Refusals []sandbox.Reason // empty: allowed. Judge is filled in by the bench
	Kind     fault.Kind       // of the refusals: PolicyDenied or QuotaExceeded
	Limits   *sandbox.Limits  // of the judge that knows them; else nil
}

// Outcome is what the bench says.
type Outcome struct {
	Verdict sandbox.Verdict // its Digest and KeyID come with the signature
	Limits  sandbox.Limits  // that the ledger enforces; zero after a refusal
	Kind    fault.Kind      // of a refusal; Internal, the zero value, when allowed
	Hint    string          // what the caller can do about a refusal
}

// Allowed reports whether the request may be admitted.
func (o Outcome) Allowed() bool { return o.Verdict.Decision == sandbox.Allow }

// Err is the refusal as an error: the first reason of its kind with its
// field. It is nil when the request was allowed.
func (o Outcome) Err() error {
	if o.Allowed() {
		return nil
	}
	r := o.Verdict.Reasons[0]
	e := fault.New(o.Kind, "%s", r.Message).WithHint("%s", o.Hint)
	e.Field = r.Field
	if more := len(o.Verdict.Reasons) - 1; more > 0 {
		e.Message = fmt.Sprintf("%s (and %d more)", r.Message, more)
	}
	return e
}

// Bench is the judges in their order. It may be used by many at once.
type Bench struct {
	judges []Judge
}

// New makes a bench.
func New(judges ...Judge) *Bench { return &Bench{judges: judges} }

// Hear resolves a request under its policy and judges it: the one way from a
// request to an outcome. An error means that there is none; its kinds are
// Resolve's.
func (b *Bench) Hear(ctx context.Context, p Plea) (Heard, error) {
	res, secrets, err := p.Policy.Resolve(ctx, p.Principal, p.Request, p.Lookup)
	if err != nil {
		return Heard{}, err
	}
	c, err := NewCase(p.Policy, p.Principal.Tenant, res)
	if err != nil {
		return Heard{}, err
	}
	return Heard{Request: res, Secrets: secrets, Outcome: b.Judge(c)}, nil
}

// Judge hears every judge, so that a caller learns all reasons at once. It is
// allowed only if all judges allow it; a bench without judges allows nothing.
// Where one refuses by policy and another for quota, it is refused by policy,
// and these reasons come first: more quota would not help.
func (b *Bench) Judge(c Case) Outcome {
	out := Outcome{Verdict: sandbox.Verdict{Decision: sandbox.Deny, PolicyVersion: c.Policy.Version()}}
	var policy, quota []sandbox.Reason
	for _, j := range b.judges {
		o := j.Judge(c)
		for _, r := range o.Refusals {
			r.Judge = j.Name()
			if o.Kind == fault.QuotaExceeded {
				quota = append(quota, r)
			} else {
				policy = append(policy, r)
			}
		}
		if o.Limits != nil {
			out.Limits = *o.Limits
		}
	}
	out.Verdict.Reasons = append(policy, quota...)
	switch {
	case len(policy) > 0:
		out.Kind, out.Hint = fault.PolicyDenied, "Change what the reasons name, or ask an operator for another policy."
	case len(quota) > 0:
		out.Kind, out.Hint = fault.QuotaExceeded, "Ask for less, or ask an operator for a larger quota; waiting does not help."
	case len(b.judges) == 0:
		out.Kind, out.Hint = fault.Unavailable, "Ask an operator: this server has no judges."
		out.Verdict.Reasons = []sandbox.Reason{{Judge: "judges", Message: "there is no judge"}}
	default:
		out.Verdict.Decision = sandbox.Allow
		return out
	}
	out.Limits = sandbox.Limits{}
	return out
}
