package aeacus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/aeacus"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const id = sandbox.ID("sb-01arz3ndektsv4rrffq69g5fav")

var call = aeacus.Call{
	Principal: sandbox.Principal{Tenant: "ci", TokenID: "tok-1", Scopes: []sandbox.Scope{sandbox.ScopeRun}},
	Source:    "192.0.2.1", RequestID: "r1", Time: time.Date(2026, 11, 23, 12, 0, 0, 5, time.FixedZone("x", 3600)),
}

func TestEntries(t *testing.T) {
	reasons := []sandbox.Reason{{Judge: "minos", Rule: "quota.live", Message: "m", Field: "f"}}
	base := sandbox.AuditEntry{
		Time: time.Date(2026, 11, 23, 11, 0, 0, 5, time.UTC), Tenant: "ci", TokenID: "tok-1", Source: "192.0.2.1", RequestID: "r1",
	}
	with := func(change func(*sandbox.AuditEntry)) sandbox.AuditEntry {
		e := base
		change(&e)
		return e
	}
	for name, c := range map[string]struct{ got, want sandbox.AuditEntry }{
		"allowed": {
			aeacus.Judged(call, id, judges.Outcome{Verdict: sandbox.Verdict{Decision: sandbox.Allow, PolicyVersion: "p"}}),
			with(func(e *sandbox.AuditEntry) {
				e.Action, e.Sandbox, e.Decision, e.PolicyVersion = "run", id, sandbox.Allow, "p"
			}),
		},
		"denied": {
			aeacus.Judged(call, id, judges.Outcome{Verdict: sandbox.Verdict{Decision: sandbox.Deny, PolicyVersion: "p", Reasons: reasons}}),
			with(func(e *sandbox.AuditEntry) {
				e.Action, e.Sandbox, e.Decision, e.PolicyVersion, e.Reasons = "run", id, sandbox.Deny, "p", reasons
			}),
		},
		"kill": {
			aeacus.Done(call, aeacus.Kill, id, ""),
			with(func(e *sandbox.AuditEntry) { e.Action, e.Sandbox, e.Decision = "kill", id, sandbox.Allow }),
		},
		"token": {
			aeacus.Done(call, aeacus.TokenRevoke, "", "tok-2"),
			with(func(e *sandbox.AuditEntry) {
				e.Action, e.Decision, e.Reasons = "token.revoke", sandbox.Allow, []sandbox.Reason{{Judge: "aeacus", Message: "tok-2"}}
			}),
		},
		"policy": {
			aeacus.Activated(call.Time, "p2", aeacus.Change{Origin: "/etc/p.yaml", Before: "p1", Difference: "+x\n", Added: 1}),
			sandbox.AuditEntry{
				Time: base.Time, Action: "policy.activate", Decision: sandbox.Allow, PolicyVersion: "p2", Difference: "+x\n",
				Reasons: []sandbox.Reason{{Judge: "aeacus", Message: "file /etc/p.yaml; +1 -0 lines since p1"}},
			},
		},
		"first policy": {
			aeacus.Activated(call.Time, "p1", aeacus.Change{}),
			sandbox.AuditEntry{
				Time: base.Time, Action: "policy.activate", Decision: sandbox.Allow, PolicyVersion: "p1",
				Reasons: []sandbox.Reason{{Judge: "aeacus", Message: "the built-in policy; no policy held before"}},
			},
		},
		"malformed": {
			aeacus.Refused(call, aeacus.Run, "p", fmt.Errorf("x: %w", fault.Invalid("command", "h", "there is no command"))),
			with(func(e *sandbox.AuditEntry) {
				e.Action, e.Decision, e.PolicyVersion = "run", sandbox.Deny, "p"
				e.Reasons = []sandbox.Reason{{Judge: "aeacus", Rule: "invalid_argument", Message: "there is no command", Field: "command"}}
			}),
		},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, c.got, c.want)
		}
	}
}

// What is for our log alone, or far too long, or no text, stays out.
func TestEntriesHoldNoMoreThanTheyShould(t *testing.T) {
	const marker = "MARKER-7f3a"
	long := strings.Repeat("ä", 1000)
	for name, e := range map[string]sandbox.AuditEntry{
		"internal":  aeacus.Refused(call, aeacus.Run, "", errors.New(marker)),
		"classed":   aeacus.Refused(call, aeacus.Run, "", fault.Wrap(fault.Internal, errors.New(marker), "oh %s", marker)),
		"the cause": aeacus.Refused(call, aeacus.Run, "", fault.Wrap(fault.Unavailable, errors.New(marker), "oh")),
		"long":      aeacus.Refused(call, aeacus.Run, "", fault.Invalid(long, "", "%s", long)),
		"no text":   aeacus.Refused(call, aeacus.Run, "", fault.Invalid("a\xff", "", "\xfe")),
		"source":    aeacus.Done(aeacus.Call{Source: long, RequestID: long + "\xff"}, aeacus.Kill, id, long),
		"reasons":   aeacus.Judged(call, id, judges.Outcome{Verdict: sandbox.Verdict{Reasons: []sandbox.Reason{{Message: long, Field: long}}}}),
	} {
		b, err := json.Marshal(e)
		if err != nil || strings.Contains(string(b), marker) || len(b) > 3000 || !utf8.Valid(b) {
			t.Errorf("%s: %s, %v", name, b, err)
		}
		var back sandbox.AuditEntry
		if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%s does not come back from JSON as it was: %+v, %v", name, back, err)
		}
	}
}
