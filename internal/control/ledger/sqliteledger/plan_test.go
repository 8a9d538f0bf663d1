package sqliteledger

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
)

// TestNoStepReadsWholeTables has SQLite tell how it would run what every step
// is made of: by an index, never by reading a table through. What is read
// through is small by its nature: the waiting tenants of one claim, the nodes,
// the queue (for metrics), the tenants with live records, the policies that are
// kept.
func TestNoStepReadsWholeTables(t *testing.T) {
	c, err := open(Config{Path: filepath.Join(t.TempDir(), "ledger.db")}, migrations)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}()
	for name, sql := range map[string]string{
		"entry": sqlEntry, "exists": sqlExists, "count of a state": sqlCountState, "update record": sqlUpdateRecord, "update live": sqlUpdateLive,
		"delete live": sqlDeleteLive, "delete sealed": sqlDeleteSealed, "sealed": sqlSealed, "events": sqlEvents,
		"live count": sqlLiveCount, "usage": sqlUsage,
		"live tenants": sqlLiveTenants, "due": sqlDue, "next": sqlNext, "next early": sqlNextEarly, "overdue": sqlNextOverdue, "serve": sqlServe,
		"key": sqlKey, "node": sqlNode, "audit tail": sqlAuditTail, "audit": sqlAudit, "audit of tenant": sqlAuditOfTenant, "audit rows": sqlAuditRows,
		"token": sqlTokenByHash, "token clash": sqlTokenClash, "delete keys": sqlDeleteKeys,
		"too old": sqlTooOld, "delete record": sqlDeleteRecord, "delete events": sqlDeleteEvents,
		"policy": sqlPolicy, "replace policy": sqlReplacePolicy, "prune policies": sqlPrunePolicies,
		"list by tenant and state": listSQL(ledger.Query{Tenant: "a"}, "queued"),
		"list by state":            listSQL(ledger.Query{Before: "x"}, "queued"),
		"list by node and state":   listSQL(ledger.Query{Node: "n"}, "queued"),
	} {
		for _, step := range plan(t, c, sql) {
			scan := strings.HasPrefix(step, "SCAN ")
			for _, small := range []string{"SCAN tenant_use", "SCAN w USING INDEX tenant_waits", "SCAN totals", "SCAN f", "SCAN json_each", "SCAN q VIRTUAL", "SCAN l VIRTUAL", "SCAN CONSTANT ROW", "SCAN policies"} {
				scan = scan && step != small && !strings.HasPrefix(step, small+" ")
			}
			if scan && name != "audit tail" || strings.Contains(step, "AUTOMATIC") {
				t.Errorf("%s: %s", name, step)
			}
		}
	}
	// Those that go along an index in order, and stop.
	for name, sql := range map[string]string{"due": sqlDue, "active policy": sqlActivePolicy, "policies": sqlPolicies, "audit tail": sqlAuditTail, "too many": sqlTooMany, "list": listSQL(ledger.Query{}, "")} {
		for _, step := range plan(t, c, sql) {
			if strings.Contains(step, "TEMP B-TREE") {
				t.Errorf("%s: %s", name, step)
			}
		}
	}
}

func plan(t *testing.T, c *conn, sql string) (steps []string) {
	t.Helper()
	s, _, err := c.db.Prepare("EXPLAIN QUERY PLAN " + sql)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for s.Step() {
		steps = append(steps, s.ColumnText(3))
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if len(steps) == 0 && s.ColumnCount() != 4 {
		t.Fatal("no plan")
	}
	t.Logf("%s\n\t%s", strings.TrimSpace(sql), strings.Join(steps, "\n\t"))
	return steps
}
