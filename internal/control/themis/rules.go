package themis

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/ext"
	"github.com/goccy/go-yaml/ast"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// ruleCostLimit bounds the work of one evaluation, in CEL's units: enough to
// look at every byte of the largest request a few times.
const ruleCostLimit = 500_000

// Rule is one reason to refuse.
type Rule struct {
	Name   string
	Reason string // for the caller
	Deny   string // the expression
	prog   cel.Program
}

// RuleRequest is what a rule sees of a request: no secret's value.
type RuleRequest struct {
	Template     string            `cel:"template"`
	Command      []string          `cel:"command"`
	Name         string            `cel:"name"`
	Env          []string          `cel:"env"` // names
	WorkingDir   string            `cel:"working_dir"`
	User         string            `cel:"user"`
	StdinBytes   int               `cel:"stdin_bytes"`
	StdinOpen    bool              `cel:"stdin_open"`
	Files        []RuleFile        `cel:"files"`
	Resources    RuleResources     `cel:"resources"`
	MaxDuration  time.Duration     `cel:"max_duration"`
	Network      RuleNetwork       `cel:"network"`
	Labels       map[string]string `cel:"labels"`
	NodeSelector map[string]string `cel:"node_selector"`
}

// RuleFile is what a rule sees of a file.
type RuleFile struct {
	Path  string `cel:"path"`
	Mode  int    `cel:"mode"`
	Bytes int    `cel:"bytes"`
}

// RuleResources is what a rule sees of resources.
type RuleResources struct {
	VCPUs     int   `cel:"vcpus"`
	MemoryMiB int64 `cel:"memory_mib"`
	DiskMiB   int64 `cel:"disk_mib"`
	Processes int   `cel:"processes"`
}

// RuleNetwork is what a rule sees of the network contract.
type RuleNetwork struct {
	Allow []RuleGrant `cel:"allow"`
}

// RuleGrant is what a rule sees of a grant.
type RuleGrant struct {
	Domain   string `cel:"domain"`
	CIDR     string `cel:"cidr"`
	Protocol string `cel:"protocol"`
	Ports    []int  `cel:"ports"`
}

// Denies evaluates the rule. An error means that it could not be evaluated,
// which denies as well.
func (r Rule) Denies(tenant string, req sandbox.Resolved) (bool, error) {
	out, _, err := r.prog.Eval(map[string]any{
		"tenant": tenant, "labels": plainMap(req.Labels), "request": ruleRequest(req),
	})
	if err != nil {
		return true, fmt.Errorf("evaluating rule %q: %w", r.Name, err)
	}
	denied, ok := out.Value().(bool)
	if !ok {
		return true, fmt.Errorf("evaluating rule %q: %w", r.Name, errors.New("it is neither true nor false"))
	}
	return denied, nil
}

func plainMap(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func ruleRequest(req sandbox.Resolved) *RuleRequest {
	out := &RuleRequest{
		Template: req.Template, Command: req.Command, Name: req.Name, WorkingDir: req.WorkingDir, User: req.User,
		StdinBytes: req.StdinBytes, StdinOpen: req.StdinOpen, Resources: RuleResources(req.Resources),
		MaxDuration: req.MaxDuration, Labels: plainMap(req.Labels), NodeSelector: plainMap(req.NodeSelector),
	}
	for _, e := range req.Env {
		out.Env = append(out.Env, e.Name)
	}
	for _, f := range req.Files {
		out.Files = append(out.Files, RuleFile{Path: f.Path, Mode: int(f.Mode), Bytes: f.Bytes})
	}
	for _, g := range req.Network.Allow {
		out.Network.Allow = append(out.Network.Allow, RuleGrant(g))
	}
	return out
}

// ruleEnv is what rules may speak of. A wrong name in a rule is found when
// the policy is read, not when a request comes.
func ruleEnv() (*cel.Env, error) {
	request := reflect.TypeFor[RuleRequest]()
	return cel.NewEnv(
		ext.NativeTypes(request, ext.ParseStructTags(true)),
		cel.Variable("request", cel.ObjectType(request.String())),
		cel.Variable("tenant", cel.StringType),
		cel.Variable("labels", cel.MapType(cel.StringType, cel.StringType)),
		cel.ParserExpressionSizeLimit(maxRuleBytes),
		cel.ParserRecursionLimit(64),
	)
}

func (r *reader) rules(n ast.Node) []Rule {
	var out []Rule
	env, err := ruleEnv()
	if err != nil {
		r.Fail(n, "the rules cannot be read here: %v", err)
		return nil
	}
	seen := map[string]bool{}
	r.List(n, maxRules, func(n ast.Node) {
		rule := r.rule(n, env)
		if r.OK() && seen[rule.Name] {
			r.Fail(n, "two rules of one name")
		}
		seen[rule.Name] = true
		out = append(out, rule)
	})
	return out
}

func (r *reader) rule(n ast.Node, env *cel.Env) Rule {
	var rule Rule
	deny := n
	r.Fields(n, map[string]func(ast.Node){
		"name":   func(n ast.Node) { rule.Name = r.checked(n, checkTemplate) },
		"reason": func(n ast.Node) { rule.Reason = r.Str(n) },
		"deny":   func(n ast.Node) { deny, rule.Deny = n, r.Str(n) },
	})
	if !r.OK() {
		return rule
	}
	if rule.Name == "" || rule.Deny == "" || strings.TrimSpace(rule.Reason) == "" {
		r.Fail(n, "a rule has name, deny and reason")
		return rule
	}
	if len(rule.Deny) > maxRuleBytes || len(rule.Reason) > maxReasonBytes {
		r.Fail(n, "deny has more than %d bytes, or reason more than %d", maxRuleBytes, maxReasonBytes)
		return rule
	}
	r.compile(&rule, deny, env)
	return rule
}

func (r *reader) compile(rule *Rule, n ast.Node, env *cel.Env) {
	compiled, issues := env.Compile(rule.Deny)
	if issues.Err() != nil {
		at := issues.Errors()[0]
		r.Fail(n, "the expression does not hold at its line %d, column %d: %s", at.Location.Line(), at.Location.Column()+1, issueKind(at.Message))
		return
	}
	if !compiled.OutputType().IsExactType(cel.BoolType) {
		r.Fail(n, "the expression must be true or false")
		return
	}
	prog, err := env.Program(compiled, cel.CostLimit(ruleCostLimit))
	if err != nil {
		r.Fail(n, "the expression cannot be prepared")
		return
	}
	rule.prog = prog
}

// issueKind says what kind of mistake the compiler found, without its text,
// which quotes the expression.
func issueKind(message string) string {
	for _, k := range []struct{ begins, kind string }{
		{"undeclared reference", "a name that rules do not know"},
		{"undefined field", "a field that the request does not have"},
		{"found no matching overload", "an operator or function on the wrong types"},
		{"Syntax error", "a mistake of syntax"},
	} {
		if strings.HasPrefix(message, k.begins) {
			return k.kind
		}
	}
	return "a mistake"
}
