package cli

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

const oldPolicy = "sha256:0123456789abcdef"

func (s *fakeServer) GetPolicy(_ context.Context, req *apiv1.GetPolicyRequest) (*apiv1.Policy, error) {
	p := &apiv1.Policy{Version: "sha256:fedcba9876543210", Text: "version: 1 # \x1b[2J\n", ActivatedAt: timestamppb.New(time.Unix(60, 0))}
	if req.GetVersion() != "" {
		p.Version, p.Origin, p.ReplacedAt = req.GetVersion(), "/etc/\x1bpolicy.yaml", timestamppb.New(time.Unix(120, 0))
		return p, nil
	}
	p.Problem = &apiv1.PolicyProblem{Message: "line 3, column 4: unknown\nkey", Hint: "mend it", Since: timestamppb.New(time.Unix(180, 0))}
	return p, nil
}

func (s *fakeServer) ListPolicies(_ context.Context, req *apiv1.ListPoliciesRequest) (*apiv1.ListPoliciesResponse, error) {
	active := &apiv1.Policy{Version: "sha256:fedcba9876543210", Bytes: 12, ActivatedAt: timestamppb.New(time.Unix(120, 0))}
	old := &apiv1.Policy{Version: oldPolicy, Bytes: 11, Origin: "/etc/policy.yaml", ActivatedAt: timestamppb.New(time.Unix(60, 0)), ReplacedAt: active.GetActivatedAt()}
	if req.GetPageToken() == "7" {
		return &apiv1.ListPoliciesResponse{Policies: []*apiv1.Policy{old}}, nil
	}
	return &apiv1.ListPoliciesResponse{Policies: []*apiv1.Policy{active}, NextPageToken: "7"}, nil
}

func TestPolicyShow(t *testing.T) {
	c := with(newFake().listen(t))
	r := c.main(t, "policy", "show")
	if r.code != 0 || r.out != "# version sha256:fedcba9876543210\n# built-in, active since 1970-01-01T00:01:00Z\nversion: 1 # \\x1b[2J\n" {
		t.Errorf("%+v", r)
	}
	if r.errout != "tartarus: what the file has now is refused, since 1970-01-01T00:03:00Z: line 3, column 4: unknown; key\n  hint: mend it\n" {
		t.Errorf("stderr %q", r.errout)
	}
	r = c.main(t, "policy", "show", "--version", oldPolicy)
	if r.code != 0 || r.errout != "" || !strings.HasPrefix(r.out, "# version "+oldPolicy+"\n# /etc/\\x1bpolicy.yaml, active from 1970-01-01T00:01:00Z to 1970-01-01T00:02:00Z\n") {
		t.Errorf("%+v", r)
	}
	r = c.main(t, "policy", "show", "-o", "json")
	var p struct{ Version, Text string }
	if err := json.Unmarshal([]byte(r.out), &p); err != nil || p.Version == "" || p.Text != "version: 1 # \x1b[2J\n" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestPolicyLs(t *testing.T) {
	c := with(newFake().listen(t))
	r := c.main(t, "policy", "ls")
	want := `VERSION              ACTIVE SINCE          UNTIL  BYTES  FILE
sha256:fedcba987654  1970-01-01T00:02:00Z  -      12     built-in
`
	if r.code != 0 || r.out != want || r.errout != "more with --after 7\n" {
		t.Errorf("%+v", r)
	}
	r = c.main(t, "policy", "ls", "--after", "7")
	if r.code != 0 || !strings.Contains(r.out, "sha256:0123456789ab  1970-01-01T00:01:00Z  1970-01-01T00:02:00Z  11     /etc/policy.yaml\n") || r.errout != "" {
		t.Errorf("%+v", r)
	}
}

func TestPolicyCheck(t *testing.T) {
	inside := Inside{CheckPolicy: func(_ context.Context, path string) (PolicySummary, error) {
		if path == "bad" {
			return PolicySummary{}, hint{errors.New("bad: line 1, column 2: unknown key")}
		}
		return PolicySummary{File: path + "/p\x1b", Version: "sha256:0a", Tenants: 2, Rules: 3}, nil
	}}
	c := call{inside: inside}
	if r := c.main(t, "policy", "check", "dir"); r.code != 0 || r.out != "dir/p\\x1b: ok, sha256:0a, tenants: 2, rules: 3\n" || r.errout != "" {
		t.Errorf("%+v", r)
	}
	if r := c.main(t, "policy", "check", "bad"); r.code != 1 || r.out != "" || !strings.HasPrefix(r.errout, "tartarus: bad: line 1, column 2: unknown key\n  hint: ") {
		t.Errorf("%+v", r)
	}
	if r := c.main(t, "policy", "check", "dir", "-o", "yaml"); r.code != 0 || !strings.Contains(r.out, "tenants: 2\nrules: 3\n") {
		t.Errorf("%+v", r)
	}
	if r := c.main(t, "policy", "check"); r.code != 2 || !strings.Contains(r.errout, "FILE is missing") {
		t.Errorf("%+v", r)
	}
}

func TestPolicyTest(t *testing.T) {
	inside := Inside{TestPolicy: func(_ context.Context, path string) (PolicyReport, error) {
		r := PolicyReport{File: path, Version: "sha256:0a", Untested: []string{}, Cases: []PolicyCase{{Name: "a \x1b[2J", Line: 4, OK: true}}}
		switch path {
		case "broken":
			return PolicyReport{}, errors.New("broken: line 1")
		case "fails":
			r.Cases = append(r.Cases, PolicyCase{Name: "b", Line: 9, Expected: "deny: no-root", Got: "allow"})
			r.Untested = []string{"no-root", "quiet"}
		}
		return r, nil
	}}
	c := call{inside: inside}
	if r := c.main(t, "policy", "test", "a", "b"); r.code != 0 || r.out != "ok   a:4: a \\x1b[2J\nok   b:4: a \\x1b[2J\n" || r.errout != "2 cases, 0 failed\n" {
		t.Errorf("%+v", r)
	}
	r := c.main(t, "policy", "test", "fails")
	if r.code != 1 || r.out != "ok   fails:4: a \\x1b[2J\nFAIL fails:9: b: expected deny: no-root, got allow\n" ||
		r.errout != "fails: no case sees these rules deny: no-root, quiet\n2 cases, 1 failed\n" {
		t.Errorf("%+v", r)
	}
	r = c.main(t, "policy", "test", "fails", "a", "-o", "json")
	var got []PolicyReport
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != 1 || len(got) != 2 || got[0].Cases[1].Got != "allow" || got[1].Untested == nil {
		t.Errorf("%+v, %v", r, err)
	}
	if r := c.main(t, "policy", "test", "a", "broken"); r.code != 1 || !strings.Contains(r.out, "ok   a:4") || r.errout != "tartarus: broken: line 1\n" {
		t.Errorf("%+v", r)
	}
	if r := c.main(t, "policy", "test"); r.code != 2 {
		t.Errorf("%+v", r)
	}
}
