package judges_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/minos"
	"github.com/tartarus-vm/tartarus/internal/control/judges/rhadamanthus"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// says is a judge that always says the same.
type says struct {
	name string
	o    judges.Opinion
}

func (s says) Name() string                     { return s.name }
func (s says) Judge(judges.Case) judges.Opinion { return s.o }

func someCase(t *testing.T) judges.Case {
	t.Helper()
	p, err := themis.Default()
	if err != nil {
		t.Fatal(err)
	}
	c, err := judges.NewCase(p, "local", sandbox.Resolved{Template: "base"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBench(t *testing.T) {
	limits := sandbox.Limits{Live: 7}
	allow := says{"allow", judges.Opinion{Limits: &limits}}
	quota := says{"quota", judges.Opinion{Kind: fault.QuotaExceeded, Refusals: []sandbox.Reason{{Message: "too much", Field: "resources.vcpus"}}}}
	policy := says{"policy", judges.Opinion{Kind: fault.PolicyDenied, Refusals: []sandbox.Reason{{Message: "no", Field: "user"}, {Message: "never"}}}}
	for name, c := range map[string]struct {
		bench  []judges.Judge
		kind   fault.Kind
		judges []string
		field  string
		text   string
	}{
		"nobody":           {nil, fault.Unavailable, []string{"judges"}, "", "there is no judge"},
		"quota":            {[]judges.Judge{allow, quota}, fault.QuotaExceeded, []string{"quota"}, "resources.vcpus", "too much"},
		"policy":           {[]judges.Judge{policy, allow}, fault.PolicyDenied, []string{"policy", "policy"}, "user", "no (and 1 more)"},
		"quota and policy": {[]judges.Judge{quota, policy}, fault.PolicyDenied, []string{"policy", "policy", "quota"}, "user", "no (and 2 more)"},
	} {
		o := judges.New(c.bench...).Judge(someCase(t))
		var who []string
		for _, r := range o.Verdict.Reasons {
			who = append(who, r.Judge)
		}
		if o.Allowed() || o.Kind != c.kind || o.Limits != (sandbox.Limits{}) || !slices.Equal(who, c.judges) {
			t.Errorf("%s: %+v", name, o)
		}
		var f *fault.Error
		if !errors.As(o.Err(), &f) || f.Kind != c.kind || f.Field != c.field || f.Message != c.text || f.Hint == "" {
			t.Errorf("%s: error %#v", name, o.Err())
		}
	}
	c := someCase(t)
	o := judges.New(allow, says{"silent", judges.Opinion{}}).Judge(c)
	if !o.Allowed() || o.Err() != nil || o.Limits != limits || o.Verdict.PolicyVersion != c.Policy.Version() || o.Verdict.Reasons != nil {
		t.Errorf("allowed: %+v, %v", o, o.Err())
	}
}

func TestUnknownTenant(t *testing.T) {
	if _, err := judges.NewCase(someCase(t).Policy, "nobody", sandbox.Resolved{}); !fault.Is(err, fault.PolicyDenied) {
		t.Errorf("error %v", err)
	}
}

// The smallest request passes the whole bench under the built-in policy.
func TestBuiltinPolicyAllowsTheDefaults(t *testing.T) {
	c := someCase(t)
	d := c.Policy.Defaults()
	c.Request = sandbox.Resolved{Template: d.Template, User: d.User, Resources: d.Resources, MaxDuration: d.MaxDuration}
	o := judges.New(minos.Minos{}, rhadamanthus.Rhadamanthus{}).Judge(c)
	if !o.Allowed() || o.Limits != c.Tenant.Quota.Limits {
		t.Errorf("%+v", o)
	}
}
