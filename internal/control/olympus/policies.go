package olympus

import (
	"context"
	"regexp"
	"strconv"
	"strings"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

// PolicySource is the policy that holds now, and how its file is to it.
type PolicySource interface {
	Policies
	Status() themis.Status
}

// PolicyVersions are the versions of the policy that are kept.
type PolicyVersions interface {
	Policy(ctx context.Context, version string) (ledger.Policy, error)
	ListPolicies(ctx context.Context, q ledger.PolicyQuery) ([]ledger.Policy, error)
}

// GetPolicy shows one version: the active one, or the one that is named.
func (x *operators) GetPolicy(ctx context.Context, req *apiv1.GetPolicyRequest) (*apiv1.Policy, error) {
	o := x.s.cfg.Operator
	active := o.Policies.Active().Version()
	version := active
	if req.GetVersion() != "" {
		var err error
		if version, err = versionOf(req.GetVersion()); err != nil {
			return nil, err
		}
	}
	kept, err := o.Versions.Policy(ctx, version)
	if err != nil {
		return nil, err
	}
	out := policyOf(kept)
	if st := o.Policies.Status(); st.Problem != "" && kept.Version == active {
		out.Problem = &apiv1.PolicyProblem{Message: clean(st.Problem), Hint: clean(st.Hint), Since: timeOf(st.ProblemAt)}
	}
	return out, nil
}

// versionForm is a version of the policy, or a beginning of one.
var versionForm = regexp.MustCompile(`^(sha256:)?[0-9a-f]{4,64}$`)

func versionOf(s string) (string, error) {
	if !versionForm.MatchString(s) {
		return "", fault.Invalid("version", "Send a version as GET /policies lists them, or at least 4 digits of its beginning.", "that is no version of a policy")
	}
	return "sha256:" + strings.TrimPrefix(s, "sha256:"), nil
}

// ListPolicies lists the versions that are kept. A page token is the last
// one's seq.
func (x *operators) ListPolicies(ctx context.Context, req *apiv1.ListPoliciesRequest) (*apiv1.ListPoliciesResponse, error) {
	q := ledger.PolicyQuery{}
	var err error
	if t := req.GetPageToken(); t != "" {
		if q.Before, err = strconv.ParseInt(t, 10, 64); err != nil || q.Before < 1 {
			return nil, fault.Invalid("page_token", "Send next_page_token of the page before.", "that is no page token")
		}
	}
	if q.Limit, err = pageSize(req.GetPageSize()); err != nil {
		return nil, err
	}
	kept, err := x.s.cfg.Operator.Versions.ListPolicies(ctx, q)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListPoliciesResponse{}
	for _, p := range kept {
		out.Policies = append(out.Policies, policyOf(p))
	}
	if n := len(kept); n == ledger.PageSize(q.Limit) {
		out.NextPageToken = strconv.FormatInt(kept[n-1].Seq, 10)
	}
	return out, nil
}

func policyOf(p ledger.Policy) *apiv1.Policy {
	return &apiv1.Policy{
		Version: p.Version, Text: p.Text, Bytes: float64(p.Bytes), Origin: clean(p.Origin),
		ActivatedAt: timeOf(p.ActivatedAt), ReplacedAt: timeOf(p.ReplacedAt),
	}
}
