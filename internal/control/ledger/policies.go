package ledger

import (
	"context"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Policies are the texts that requests were judged by. A record names its
// policy by version alone; here is what that version said.
type Policies interface {
	// ActivatePolicy makes p the active policy: its text and the audit entry
	// are written in one step, durably. before is the version that the entry
	// tells the difference to, "" for none; if another is active by now it is a
	// Conflict. If p is the active one already, nothing is written and
	// activated is false, whatever before says. A version that was active
	// earlier becomes active again. p's Seq and ReplacedAt are set.
	ActivatePolicy(ctx context.Context, p Policy, before string, audit sandbox.AuditEntry) (activated bool, err error)

	// ActivePolicy is the policy that was activated last; NotFound if none ever
	// was.
	ActivePolicy(ctx context.Context) (Policy, error)

	// Policy finds one by its version, or by a beginning of it. A beginning
	// that several have is a Conflict.
	Policy(ctx context.Context, version string) (Policy, error)

	// ListPolicies returns a part of those that are kept, the one activated
	// last first, without their texts.
	ListPolicies(ctx context.Context, q PolicyQuery) ([]Policy, error)
}

// Policy is one version of the policy, as it is kept.
type Policy struct {
	Version     string // SHA-256 of the text
	Text        string // "" in lists
	Bytes       int    // of the text
	Origin      string // where it was read
	Seq         int64  // grows with every activation; the active one has the largest
	ActivatedAt time.Time
	ReplacedAt  time.Time // zero while it is active
}

// Active reports whether p is the policy that holds.
func (p Policy) Active() bool { return p.ReplacedAt.IsZero() }

// PolicyQuery selects policies.
type PolicyQuery struct {
	Before int64 // Seq: only those activated earlier; 0 for all
	Limit  int   // 100 if zero, at most 1000
}

// PolicyGrace is how long Prune leaves a policy that was replaced, whoever
// names it: a request that was judged by it may be on its way into the ledger.
const PolicyGrace = time.Hour

// ErrNoPolicy is the answer to a version that is not there.
func ErrNoPolicy() error {
	return fault.New(fault.NotFound, "there is no such version of the policy").
		WithHint("`tartarus policy ls` lists the versions that are kept: the active one, and those that records name")
}

// ErrManyPolicies is Policy's answer to a beginning that several have.
func ErrManyPolicies() error {
	return fault.New(fault.Conflict, "more than one version of the policy begins so").
		WithHint("give more of the version")
}

// ErrPolicyBefore is ActivatePolicy's answer where another policy is active
// than the caller knew of.
func ErrPolicyBefore() error {
	return fault.New(fault.Conflict, "another policy was activated meanwhile").WithHint("read the active one again")
}

// CheckPolicy guards against a policy that could not be found again.
func CheckPolicy(p Policy) error {
	if p.Version == "" || p.ActivatedAt.IsZero() {
		return fault.Invalid("version", "", "a policy needs a version and a time")
	}
	return nil
}
