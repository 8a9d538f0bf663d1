// Package aeacus is the audit judge: it makes the audit entry of every
// request and its verdict, refusals too, and of what else is done in
// somebody's name.
//
// Entries are only made here; they are written in the same step as what they
// tell. They hold no secret: names, reasons and fields, never values.
package aeacus

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Action is what was done or asked for.
type Action string

// The actions.
const (
	Run         Action = "run"
	Kill        Action = "kill"
	TokenCreate Action = "token.create"
	TokenRevoke Action = "token.revoke"

	PolicyActivate Action = "policy.activate"
)

// maxText bounds each text of an entry that a caller may have made longer.
const maxText = 512

// Call is who did it, from where and when.
type Call struct {
	Principal sandbox.Principal
	Source    string // remote address or "unix"
	RequestID string
	Time      time.Time
}

// Judged is the entry of a run that the bench decided on, allowed or not.
func Judged(call Call, id sandbox.ID, o judges.Outcome) sandbox.AuditEntry {
	e := entry(call, Run, o.Verdict.Decision)
	e.Sandbox = id
	e.PolicyVersion = o.Verdict.PolicyVersion
	for _, r := range o.Verdict.Reasons {
		e.Reasons = append(e.Reasons, sandbox.Reason{Judge: r.Judge, Rule: r.Rule, Message: clip(r.Message), Field: clip(r.Field)})
	}
	return e
}

// Done is the entry of an action that is carried out: a kill of a sandbox, or
// something about a token, whose ID is then in what.
func Done(call Call, action Action, id sandbox.ID, what string) sandbox.AuditEntry {
	e := entry(call, action, sandbox.Allow)
	e.Sandbox = id
	if what != "" {
		e.Reasons = []sandbox.Reason{{Judge: "aeacus", Message: clip(what)}}
	}
	return e
}

// Refused is the entry of an action that an error refused before it came to a
// verdict: malformed, unknown tenant, quota, missing scope. policyVersion may
// be empty.
func Refused(call Call, action Action, policyVersion string, err error) sandbox.AuditEntry {
	e := entry(call, action, sandbox.Deny)
	e.PolicyVersion = policyVersion
	reason := sandbox.Reason{Judge: "aeacus", Rule: fault.KindOf(err).String()}
	var f *fault.Error
	if errors.As(err, &f) && f.Kind != fault.Internal {
		reason.Message, reason.Field = clip(f.Message), clip(f.Field)
	} else {
		reason.Message = "an internal error" // its text is for our log
	}
	e.Reasons = []sandbox.Reason{reason}
	return e
}

// Change is what an activation changes.
type Change struct {
	Origin         string // the file; "" for the built-in policy
	Before         string // the version that held; "" for none
	Difference     string // from its text, bounded
	Added, Removed int    // lines
}

// Activated is the entry of a policy that holds from now on. Nobody called:
// whoever can write the file did it.
func Activated(now time.Time, version string, c Change) sandbox.AuditEntry {
	e := entry(Call{Time: now}, PolicyActivate, sandbox.Allow)
	from := "the built-in policy"
	if c.Origin != "" {
		from = "file " + c.Origin
	}
	what := fmt.Sprintf("%s; no policy held before", from)
	if c.Before != "" {
		what = fmt.Sprintf("%s; +%d -%d lines since %s", from, c.Added, c.Removed, c.Before)
	}
	e.PolicyVersion, e.Difference = version, c.Difference
	e.Reasons = []sandbox.Reason{{Judge: "aeacus", Message: clip(what)}}
	return e
}

func entry(call Call, action Action, d sandbox.Decision) sandbox.AuditEntry {
	return sandbox.AuditEntry{
		Time: call.Time.UTC().Round(0), Tenant: call.Principal.Tenant, TokenID: call.Principal.TokenID,
		Source: clip(call.Source), RequestID: clip(call.RequestID), Action: string(action), Decision: d,
	}
}

// clip bounds a text and keeps it UTF-8, so that the chain's JSON gives it
// back as it was.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
