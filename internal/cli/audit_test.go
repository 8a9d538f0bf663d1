package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// ListAudit has a log of 2500 entries.
func (s *fakeServer) ListAudit(_ context.Context, req *apiv1.ListAuditRequest) (*apiv1.ListAuditResponse, error) {
	s.mu.Lock()
	s.audits = append(s.audits, req)
	s.mu.Unlock()
	after, _ := strconv.Atoi(req.GetPageToken())
	resp := &apiv1.ListAuditResponse{}
	for seq := after + 1; seq <= min(after+int(req.GetPageSize()), 2500); seq++ {
		resp.Entries = append(resp.Entries, &apiv1.AuditEntry{Seq: float64(seq), Tenant: "acme\x1b[2J", Action: "run", Text: []byte("text")})
		resp.NextPageToken = strconv.Itoa(seq)
	}
	if after+int(req.GetPageSize()) > 2500 {
		resp.NextPageToken = ""
	}
	return resp, nil
}

func TestAuditList(t *testing.T) {
	s := newFake()
	socket := s.listen(t)
	for args, want := range map[string]struct {
		lines, pages int
		more         string
	}{
		"": {100, 1, "more with --after 100\n"}, "--limit 0": {2500, 3, ""}, "--limit 1001": {1001, 2, "more with --after 1001\n"},
		"--limit 3 --after 2499": {1, 1, ""}, "--limit 2500": {2500, 3, "more with --after 2500\n"},
	} {
		s.audits = nil
		r := with(socket).main(t, append([]string{"audit", "ls"}, strings.Fields(args)...)...)
		if lines := strings.Count(r.out, "\n") - 1; r.code != 0 || lines != want.lines || len(s.audits) != want.pages || r.errout != want.more {
			t.Errorf("%s: code %d, %d entries in %d pages, %q; want %+v", args, r.code, lines, len(s.audits), r.errout, want)
		}
		if strings.Contains(r.out, "\x1b") {
			t.Errorf("%s: a tenant's name reaches the terminal as it is", args)
		}
	}
	s.audits = nil
	r := with(socket).main(t, "audit", "ls", "--since", "90m", "--until", "2026-01-02T15:04:05Z", "--decision", "deny", "--action", "kill", "--sandbox", testID, "--tenant", "a")
	if r.code != 0 || len(s.audits) != 1 {
		t.Fatalf("%+v", r)
	}
	q := s.audits[0]
	if ago := time.Since(q.GetSince().AsTime()); ago < 90*time.Minute || ago > 91*time.Minute ||
		q.GetUntil().AsTime().Format(time.RFC3339) != "2026-01-02T15:04:05Z" ||
		q.GetDecision() != "deny" || q.GetAction() != "kill" || q.GetSandbox() != testID || q.GetTenant() != "a" {
		t.Errorf("asked for %v", q)
	}
	for _, args := range []string{"--since yesterday", "--until -5m", "--limit -1", "--since 2026-01-02"} {
		if r := with(socket).main(t, append([]string{"audit", "ls"}, strings.Fields(args)...)...); r.code != usageCode || !strings.Contains(r.errout, strings.Fields(args)[0]) {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

func TestAuditVerify(t *testing.T) {
	s := newFake()
	socket := s.listen(t)
	var asked VerifyAuditOptions
	report := AuditReport{Entries: 2500, Head: "sha256:ab", Findings: []AuditFinding{}, Unknown: "It cannot be known."}
	c := with(socket)
	c.inside.VerifyAudit = func(ctx context.Context, o VerifyAuditOptions) (AuditReport, error) {
		asked = o
		var seqs []int64
		for after := int64(-7); o.Rows != nil; {
			rows, err := o.Rows(ctx, after)
			if err != nil || len(rows) == 0 {
				if len(seqs) != 2500 || !slices.IsSorted(seqs) || err != nil {
					return AuditReport{}, fmt.Errorf("%d rows, %w", len(seqs), err)
				}
				break
			}
			for _, r := range rows {
				seqs, after = append(seqs, r.Seq), r.Seq
				if string(r.Text) != "text" {
					return AuditReport{}, fmt.Errorf("row %+v", r)
				}
			}
		}
		return report, nil
	}
	r := c.main(t, "audit", "verify")
	if want := "entries      2500  sha256:ab\ncheckpoints  0     -\nfindings     0     \nIt cannot be known.\n"; r.code != 0 || r.out != want {
		t.Errorf("%+v, want\n%s", r, want)
	}
	if q := s.audits[0]; !q.GetStored() || q.GetPageToken() != "" {
		t.Errorf("asked for %v", q)
	}

	report.Checkpoints, report.Covered, report.CoveredAt, report.Others, report.Foreign, report.More = 3, 7, time.Unix(0, 0), 1, 2, 30
	report.Findings = []AuditFinding{{"entry 8", "it was\x1b[2J edited"}}
	c.env = nil // and so no server
	r = c.main(t, "--state", "/s", "audit", "verify", "--checkpoints", "f", "--key", "k1", "--key", "k2")
	want := "entries      2500  sha256:ab\ncheckpoints  3     the last that fits vouches for entries 1 to 7, at 1970-01-01T00:00:00Z\n" +
		"passed over  3     1 checkpoints of other logs, 2 lines without one\nfindings     31    \nentry 8: it was\\x1b[2J edited\nand 30 more\nIt cannot be known.\n"
	if r.code != failedCode || r.out != want || r.errout != "" {
		t.Errorf("%+v, want\n%s", r, want)
	}
	if asked.Rows != nil || asked.StateDir != "/s" || asked.Checkpoints != "f" || !slices.Equal(asked.Keys, []string{"k1", "k2"}) {
		t.Errorf("asked for %+v", asked)
	}
	if r = c.main(t, "audit", "verify", "-o", "json"); r.code != failedCode || !strings.Contains(r.out, `"place": "entry 8"`) || !strings.Contains(r.out, `"more": 30`) {
		t.Errorf("%+v", r)
	}
}
