package ledger_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// TestAuditTextStaysAsItIs holds the text of an entry fast: digests of old
// entries depend on it.
func TestAuditTextStaysAsItIs(t *testing.T) {
	e := sandbox.AuditEntry{
		Seq: 7, Time: time.Date(2026, 11, 23, 14, 0, 0, 5, time.FixedZone("", 7200)), Tenant: "a", TokenID: "t", Source: "unix", RequestID: "r",
		Action: "run", Sandbox: "sb-x", Decision: sandbox.Deny, PolicyVersion: "v",
		Reasons: []sandbox.Reason{{Judge: "policy", Rule: "no", Message: "<no>", Field: "env"}}, PrevDigest: "sha256:00",
	}
	const want = `{"seq":7,"time":"2026-11-23T12:00:00.000000005Z","tenant":"a","token_id":"t","source":"unix","request_id":"r",` +
		`"action":"run","sandbox":"sb-x","decision":"deny","policy_version":"v",` +
		`"reasons":[{"judge":"policy","rule":"no","message":"\u003cno\u003e","field":"env"}],"prev_digest":"sha256:00"}`
	got, err := ledger.AuditText(e)
	if err != nil || string(got) != want {
		t.Errorf("the text is\n%s, %v, want\n%s", got, err, want)
	}
	const bare = `{"seq":0,"time":"0001-01-01T00:00:00Z","tenant":"","action":"","decision":"","prev_digest":""}`
	if got, err = ledger.AuditText(sandbox.AuditEntry{}); err != nil || string(got) != bare {
		t.Errorf("the text of nothing is\n%s, %v, want\n%s", got, err, bare)
	}
}

// FuzzAuditText parses the text of entries and writes it again: the chain
// stands on that being the same, whatever a caller put into an entry.
func FuzzAuditText(f *testing.F) {
	f.Add("tenant", "reason", int64(1), int64(1e18))
	f.Add("\xff\x00<&>\u2028", "\xed\xa0\x80", int64(-1), int64(-1e9))
	f.Fuzz(func(t *testing.T, a, b string, seq, nanos int64) {
		e := sandbox.AuditEntry{
			Seq: seq, Time: time.Unix(0, nanos), Tenant: a, TokenID: b, Source: a, RequestID: b, Action: a, Sandbox: sandbox.ID(b),
			Decision: sandbox.Decision(a), PolicyVersion: b, Reasons: []sandbox.Reason{{Judge: a, Rule: b, Message: a, Field: b}},
			PrevDigest: sandbox.Digest(a),
		}
		first, err := ledger.AuditText(e)
		if err != nil {
			t.Fatal(err)
		}
		var parsed sandbox.AuditEntry
		if err := json.Unmarshal(first, &parsed); err != nil {
			t.Fatal(err)
		}
		second, err := ledger.AuditText(parsed)
		if err != nil || !bytes.Equal(first, second) {
			t.Errorf("the text changes, %v:\n%s\n%s", err, first, second)
		}
	})
}
