package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// PolicySummary is what is in a policy that was read.
type PolicySummary struct {
	File    string `json:"file"`
	Version string `json:"version"`
	Tenants int    `json:"tenants"`
	Rules   int    `json:"rules"`
}

// PolicyReport is what became of the cases of a test file.
type PolicyReport struct {
	File    string       `json:"file"`
	Policy  string       `json:"policy"` // the policy's file
	Version string       `json:"version"`
	Cases   []PolicyCase `json:"cases"`
	// Untested are the policy's rules that denied in no case.
	Untested []string `json:"untested_rules"`
}

// PolicyCase is what became of one case.
type PolicyCase struct {
	Name     string `json:"name"`
	Line     int    `json:"line"`
	OK       bool   `json:"ok"`
	Expected string `json:"expected,omitempty"` // with Got, what differs
	Got      string `json:"got,omitempty"`
}

func (a *app) policyCommand() *cobra.Command {
	return groupOf(&cobra.Command{
		Use: "policy", Short: "The rules that requests are judged by",
		Long: `A policy is a YAML file: who may call, what a request gets where it says
nothing, what it may ask for at most, and what is refused. up reads the one that
--policy names, and takes over a new version as soon as the file has it.
check and test need no server.`,
		Example: `  tartarus policy check policy.yaml
  tartarus policy test tests.yaml
  tartarus up --policy policy.yaml
  tartarus policy show`,
	}, a.policyShowCommand(), a.policyLsCommand(), a.policyCheckCommand(), a.policyTestCommand())
}

func (a *app) policyShowCommand() *cobra.Command {
	req := &apiv1.GetPolicyRequest{}
	c := &cobra.Command{
		Use: "show", Short: "Print the active policy, or an older version",
		Long: `Prints the policy that the server judges by. A record's verdict names the
version that judged it; --version prints that one. If the policy's file has a
new version that cannot hold, stderr says why.`,
		Example: "  tartarus policy show\n  tartarus policy show --version sha256:1f0a3c",
		Args:    takes(),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			p, err := srv.Operators().GetPolicy(ctx, req)
			if err != nil {
				return err
			}
			if problem := p.GetProblem(); problem != nil {
				fmt.Fprintf(a.io.Err, "tartarus: what the file has now is refused, since %s: %s\n  hint: %s\n",
					day(problem.GetSince()), escape(oneLine(problem.GetMessage())), escape(problem.GetHint()))
			}
			if a.output != "table" {
				return a.show(p, nil)
			}
			_, err = fmt.Fprintf(a.io.Out, "# version %s\n# %s\n%s", escape(p.GetVersion()), escape(heldOf(p)), escapeLines(p.GetText()))
			return err
		}),
	}
	c.Flags().StringVar(&req.Version, "version", "", "a `VERSION`, or its beginning; without, the active one")
	a.outputFlag(c, "table")
	return c
}

// heldOf says from where and when a policy held.
func heldOf(p *apiv1.Policy) string {
	held := fmt.Sprintf("%s, active since %s", originOf(p), day(p.GetActivatedAt()))
	if end := p.GetReplacedAt(); end != nil {
		held = fmt.Sprintf("%s, active from %s to %s", originOf(p), day(p.GetActivatedAt()), day(end))
	}
	return held
}

func originOf(p *apiv1.Policy) string {
	if p.GetOrigin() == "" {
		return "built-in"
	}
	return p.GetOrigin()
}

func (a *app) policyLsCommand() *cobra.Command {
	req := &apiv1.ListPoliciesRequest{}
	c := &cobra.Command{
		Use: "ls", Short: "List the versions that are kept, the active one first",
		Long: `Lists the active version, and older ones for as long as a record names them.
What each activation changed is in the audit: tartarus audit ls -o json`,
		Args: takes(),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			resp, err := srv.Operators().ListPolicies(ctx, req)
			if err != nil {
				return err
			}
			if more := resp.GetNextPageToken(); more != "" && a.output == "table" {
				defer fmt.Fprintf(a.io.Err, "more with --after %s\n", escape(more))
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "VERSION", "ACTIVE SINCE", "UNTIL", "BYTES", "FILE")
				for _, p := range resp.GetPolicies() {
					row(w, p.GetVersion()[:min(19, len(p.GetVersion()))], p.GetActivatedAt().AsTime().Format(time.RFC3339),
						day(p.GetReplacedAt()), fmt.Sprintf("%.0f", p.GetBytes()), originOf(p))
				}
			})
		}),
	}
	c.Flags().StringVar(&req.PageToken, "after", "", "the page `TOKEN` of the page before")
	a.outputFlag(c, "table")
	return c
}

func (a *app) policyCheckCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "check FILE", Short: "Check a policy, without a server",
		Long: `Reads a policy as up would: FILE, or a folder with policy.yaml or one other
*.yaml in it. What is wrong is told with line and column. The exit code is 1 if
something is.`,
		Example: "  tartarus policy check policy.yaml\n  tartarus policy check /etc/tartarus/policy",
		Args:    takes("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.cfg.Inside.CheckPolicy(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output != "table" {
				return a.showValue(s)
			}
			_, err = fmt.Fprintf(a.io.Out, "%s: ok, %s, tenants: %d, rules: %d\n", escape(s.File), escape(s.Version), s.Tenants, s.Rules)
			return err
		},
	}
	a.outputFlag(c, "table")
	return c
}

func (a *app) policyTestCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "test FILE...", Short: "Test a policy with cases, without a server",
		Long: `Judges the requests in each FILE (or in tests.yaml of a folder) as the server
would, and compares with what is expected. The exit code is 1 if a case fails.

  version: 1
  policy: policy.yaml # relative to this file
  cases:
    - name: nobody is root
      tenant: ci
      request: {command: [id], user: root} # as POST /sandbox/run takes it
      expect:
        decision: deny
        reason: no-root # a rule, or a part of the message
    - name: a plain build
      tenant: ci
      request: {command: [make]}
      expect:
        decision: allow
        resolved: {user: sandbox, max_duration: 600s} # as the record shows it`,
		Example: "  tartarus policy test tests.yaml\n  tartarus policy test examples/policies/*",
		Args:    takes("FILE..."),
		RunE:    func(c *cobra.Command, args []string) error { return a.policyTest(c.Context(), args) },
	}
	a.outputFlag(c, "table")
	return c
}

func (a *app) policyTest(ctx context.Context, files []string) error {
	reports := []PolicyReport{}
	cases, failed := 0, 0
	for _, file := range files {
		r, err := a.cfg.Inside.TestPolicy(ctx, file)
		if err != nil {
			return err
		}
		reports = append(reports, r)
		for _, c := range r.Cases {
			cases++
			if !c.OK {
				failed++
			}
		}
		if a.output != "table" {
			continue
		}
		if err := a.printCases(r); err != nil {
			return err
		}
	}
	if a.output != "table" {
		if err := a.showValue(reports); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.io.Err, "%d cases, %d failed\n", cases, failed)
	if failed > 0 {
		return &failure{code: failedCode}
	}
	return nil
}

// printCases prints a line for each case, and tells which rules none tests.
func (a *app) printCases(r PolicyReport) error {
	for _, c := range r.Cases {
		verdict, differs := "ok  ", ""
		if !c.OK {
			verdict, differs = "FAIL", fmt.Sprintf(": expected %s, got %s", c.Expected, c.Got)
		}
		if _, err := fmt.Fprintf(a.io.Out, "%s %s\n", verdict, escape(fmt.Sprintf("%s:%d: %s%s", r.File, c.Line, c.Name, differs))); err != nil {
			return err
		}
	}
	if len(r.Untested) > 0 {
		fmt.Fprintf(a.io.Err, "%s: no case sees these rules deny: %s\n", escape(r.File), escape(strings.Join(r.Untested, ", ")))
	}
	return nil
}

// showValue prints what is no message of the API, as JSON or YAML.
func (a *app) showValue(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.showJSON(b)
}
