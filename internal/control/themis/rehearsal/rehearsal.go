// Package rehearsal is the test of a policy: requests that are judged as the
// server would, and what is expected of each.
//
// Nothing is stood in for but the templates: a request is read by the API's own
// reader, resolved by themis and heard by the bench. What depends on the moment
// (rate, what is in use) is not part of it.
package rehearsal

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/rhadamanthus"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// API is the form in which cases are written: the API's own.
type API interface {
	// Request reads a request as callers send it.
	Request(body []byte) (sandbox.Request, error)
	// Resolved reads a part of a resolved request as records show it, and
	// returns it whole, in the one form that Show has too.
	Resolved(body []byte) ([]byte, error)
	// Show is a resolved request as records show it.
	Show(r sandbox.Resolved) ([]byte, error)
}

// Stage is what cases are tried on: the server's own.
type Stage struct {
	API   API
	Bench *judges.Bench
}

// Report is what became of the cases of a file.
type Report struct {
	File     string
	Policy   string // the policy's file
	Version  string
	Results  []Result // in the order of the file
	Untested []string // rules that denied in no case
}

// Result is what became of a case.
type Result struct {
	Name string
	Line int // in the file
	OK   bool
	// Expected and Got tell what differs; empty if OK.
	Expected, Got string
}

// Run tries the cases in a file, or in tests.yaml of a folder. An error means
// that file or policy cannot be read, with its place; a case that fails is
// none.
func (s Stage) Run(ctx context.Context, path string) (Report, error) {
	file, err := find(path)
	if err != nil {
		return Report{}, err
	}
	set, err := s.read(file)
	if err != nil {
		return Report{}, err
	}
	p, policyFile, err := themis.Load(set.policy)
	if err != nil {
		return Report{}, err
	}
	out := Report{File: file, Policy: policyFile, Version: p.Version()}
	denied := map[string]bool{}
	for _, c := range set.cases {
		got, err := s.try(ctx, p, c)
		if err != nil {
			return Report{}, fmt.Errorf("%s: line %d: %w", file, c.line, err)
		}
		for _, r := range got.reasons {
			denied[r.Rule] = true
		}
		r := Result{Name: c.name, Line: c.line}
		if r.Expected, r.Got, err = c.compare(got); err != nil {
			return Report{}, fmt.Errorf("%s: line %d: %w", file, c.line, err)
		}
		r.OK = r.Expected == ""
		out.Results = append(out.Results, r)
	}
	for _, r := range p.Rules() {
		if !denied[r.Name] {
			out.Untested = append(out.Untested, r.Name)
		}
	}
	return out, nil
}

// answer is what a policy says to a request.
type answer struct {
	allowed  bool
	reasons  []sandbox.Reason
	resolved []byte // as a record shows it; nil if it came to no verdict
}

// try judges one case. A request that comes to no verdict is denied too: what
// the caller is told is the reason.
func (s Stage) try(ctx context.Context, p *themis.Policy, c testCase) (answer, error) {
	heard, err := s.Bench.Hear(ctx, judges.Plea{
		Policy: p, Principal: sandbox.Principal{Tenant: c.tenant}, Request: c.request, Lookup: anyTemplate{},
	})
	var f *fault.Error
	if errors.As(err, &f) && (f.Kind == fault.InvalidArgument || f.Kind == fault.PolicyDenied) {
		return answer{reasons: []sandbox.Reason{{Rule: f.Kind.String(), Message: f.Message, Field: f.Field}}}, nil
	}
	if err != nil {
		return answer{}, err
	}
	shown, err := s.API.Show(heard.Request)
	return answer{allowed: heard.Outcome.Allowed(), reasons: heard.Outcome.Verdict.Reasons, resolved: shown}, err
}

// compare says what was expected and what came instead; nothing if they agree.
func (c testCase) compare(got answer) (expected, came string, err error) {
	if c.allow != got.allowed || !c.allow && !slices.ContainsFunc(got.reasons, c.means) {
		return c.expected(), got.String(), nil
	}
	if c.resolved == nil {
		return "", "", nil
	}
	if got.resolved == nil {
		return "resolved values", got.String(), nil
	}
	return differ(c.resolved, c.plain, got.resolved)
}

// means reports whether r is the reason that the case names: its rule, or a
// part of its message. A rule that could not be evaluated denies as well, but
// is not what its name stands for.
func (c testCase) means(r sandbox.Reason) bool {
	if r.Rule == c.reason {
		return !strings.HasPrefix(r.Message, rhadamanthus.Unevaluated)
	}
	return strings.Contains(r.Message, c.reason)
}

func (c testCase) expected() string {
	if c.allow {
		return "allow"
	}
	return "deny: " + c.reason
}

// mostReasons bounds how many are told in a line.
const mostReasons = 3

// String is the answer in a line.
func (a answer) String() string {
	if a.allowed {
		return "allow"
	}
	var out []string
	for i, r := range a.reasons {
		if i == mostReasons {
			out = append(out, fmt.Sprintf("and %d more", len(a.reasons)-i))
			break
		}
		out = append(out, r.Rule+": "+r.Message)
	}
	return "deny: " + strings.Join(out, "; ")
}

// anyTemplate knows every template.
type anyTemplate struct{}

func (anyTemplate) Template(_ context.Context, name string) (sandbox.Template, error) {
	return sandbox.Template{Name: name, Digest: digest(name)}, nil
}

func (anyTemplate) GuestDigest(context.Context) (sandbox.Digest, error) { return digest(""), nil }

func digest(s string) sandbox.Digest {
	sum := sha256.Sum256([]byte(s))
	return sandbox.Digest("sha256:" + hex.EncodeToString(sum[:]))
}
