package olympus

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// ListAudit reads the audit chain. A page token is the last entry's seq.
func (x *operators) ListAudit(ctx context.Context, req *apiv1.ListAuditRequest) (*apiv1.ListAuditResponse, error) {
	q, err := auditQuery(req)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListAuditResponse{}
	book := x.s.cfg.Operator.Audit
	if req.GetStored() {
		if q != (ledger.AuditQuery{After: q.After, Limit: q.Limit}) {
			return nil, fault.Invalid("stored", "Leave the other choices away: a chain is checked whole.", "stored selects all entries")
		}
		rows, err := book.AuditRows(ctx, q.After, q.Limit)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			out.Entries = append(out.Entries, &apiv1.AuditEntry{Seq: float64(r.Seq), Tenant: clean(r.Tenant), Text: r.Text})
		}
		if n := len(rows); n == ledger.PageSize(q.Limit) {
			out.NextPageToken = strconv.FormatInt(rows[n-1].Seq, 10)
		}
		return out, nil
	}
	entries, err := book.AuditEntries(ctx, q)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		out.Entries = append(out.Entries, auditOf(e))
	}
	if n := len(entries); n == ledger.PageSize(q.Limit) {
		out.NextPageToken = strconv.FormatInt(entries[n-1].Seq, 10)
	}
	return out, nil
}

func auditQuery(req *apiv1.ListAuditRequest) (q ledger.AuditQuery, err error) {
	q = ledger.AuditQuery{
		Tenant: req.GetTenant(), Action: req.GetAction(), Decision: sandbox.Decision(req.GetDecision()), Sandbox: sandbox.ID(req.GetSandbox()),
	}
	if t := req.GetPageToken(); t != "" {
		if q.After, err = strconv.ParseInt(t, 10, 64); err != nil || q.After < 0 {
			return q, fault.Invalid("page_token", "Send next_page_token of the page before.", "that is no page token")
		}
	}
	switch q.Decision {
	case "", sandbox.Allow, sandbox.Deny:
	default:
		return q, fault.Invalid("decision", "Send allow or deny.", "there is no decision %q", shorten(req.GetDecision()))
	}
	if q.Sandbox != "" && !q.Sandbox.Valid() {
		return q, fault.Invalid("sandbox", `It is "sb-" and 26 lower-case letters and digits.`, "%q is not the ID of a sandbox", shorten(req.GetSandbox()))
	}
	if q.Since, err = instant("since", req.GetSince()); err != nil {
		return q, err
	}
	if q.Until, err = instant("until", req.GetUntil()); err != nil {
		return q, err
	}
	q.Limit, err = pageSize(req.GetPageSize())
	return q, err
}

// instant is a request's time; zero if it has none.
func instant(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if t.CheckValid() != nil {
		return time.Time{}, fault.Invalid(field, `Send RFC 3339, as in "2026-01-02T15:04:05Z".`, "%s is not a time", field)
	}
	return t.AsTime(), nil
}
