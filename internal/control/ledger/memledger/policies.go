package memledger

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// ActivatePolicy implements ledger.Policies.
func (l *Ledger) ActivatePolicy(ctx context.Context, p ledger.Policy, before string, audit sandbox.AuditEntry) (activated bool, err error) {
	err = l.step(ctx, func() (bool, error) {
		if err := ledger.CheckPolicy(p); err != nil {
			return false, err
		}
		last := l.activePolicy()
		if last.Version == p.Version {
			return false, nil
		}
		if last.Version != before {
			return false, ledger.ErrPolicyBefore()
		}
		if err := l.append(audit); err != nil {
			return false, err
		}
		if last.Version != "" {
			last.ReplacedAt = p.ActivatedAt.UTC().Round(0)
			l.policies[last.Version] = last
		}
		l.policySeq++
		p.Seq, p.Bytes, p.ActivatedAt, p.ReplacedAt = l.policySeq, len(p.Text), p.ActivatedAt.UTC().Round(0), time.Time{}
		l.policies[p.Version] = p
		activated = true
		return true, nil
	})
	return activated, err
}

// activePolicy is the zero value if there is none.
func (l *Ledger) activePolicy() ledger.Policy {
	for _, p := range l.policies {
		if p.Seq == l.policySeq {
			return p
		}
	}
	return ledger.Policy{}
}

// ActivePolicy implements ledger.Policies.
func (l *Ledger) ActivePolicy(ctx context.Context) (p ledger.Policy, err error) {
	err = l.read(ctx, func() error {
		if p = l.activePolicy(); p.Version == "" {
			return ledger.ErrNoPolicy()
		}
		return nil
	})
	return p, err
}

// Policy implements ledger.Policies.
func (l *Ledger) Policy(ctx context.Context, version string) (p ledger.Policy, err error) {
	err = l.read(ctx, func() error {
		var exact bool
		if p, exact = l.policies[version]; exact {
			return nil
		}
		var found []ledger.Policy
		for v := range maps.Values(l.policies) {
			if version != "" && strings.HasPrefix(v.Version, version) {
				found = append(found, v)
			}
		}
		switch len(found) {
		case 0:
			return ledger.ErrNoPolicy()
		case 1:
			p = found[0]
			return nil
		}
		return ledger.ErrManyPolicies()
	})
	return p, err
}

// ListPolicies implements ledger.Policies.
func (l *Ledger) ListPolicies(ctx context.Context, q ledger.PolicyQuery) (out []ledger.Policy, err error) {
	err = l.read(ctx, func() error {
		all := slices.SortedFunc(maps.Values(l.policies), func(a, b ledger.Policy) int { return cmp.Compare(b.Seq, a.Seq) })
		for _, p := range all {
			if q.Before == 0 || p.Seq < q.Before {
				p.Text = ""
				out = append(out, p)
			}
		}
		out = out[:min(len(out), ledger.PageSize(q.Limit))]
		return nil
	})
	return out, err
}

// prunePolicies removes those that nothing needs.
func (l *Ledger) prunePolicies(now time.Time) {
	named := map[string]bool{}
	for _, r := range l.rows {
		named[r.entry.Record.Verdict.PolicyVersion] = true
	}
	maps.DeleteFunc(l.policies, func(version string, p ledger.Policy) bool {
		return !p.Active() && !p.ReplacedAt.After(now.Add(-ledger.PolicyGrace)) && !named[version]
	})
}
