package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

func (a *app) auditCommand() *cobra.Command {
	return groupOf(&cobra.Command{
		Use: "audit", Short: "Who asked for what, and what was answered",
		Example: "  tartarus audit ls --since 1h --decision deny\n  tartarus audit verify --checkpoints /mnt/audit/checkpoints.jsonl",
	}, a.auditListCommand(), a.auditVerifyCommand())
}

func (a *app) auditListCommand() *cobra.Command {
	req := &apiv1.ListAuditRequest{}
	var since, until string
	var limit int
	c := &cobra.Command{
		Use: "ls", Short: "List audit entries, oldest first", Args: takes(),
		Example: "  tartarus audit ls --tenant ci --since 24h\n  tartarus audit ls --action run --decision deny --limit 0 -o json",
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			resp, err := auditEntries(ctx, srv, req, limit)
			if err != nil {
				return err
			}
			if more := resp.GetNextPageToken(); more != "" && a.output == "table" {
				defer fmt.Fprintf(a.io.Err, "more with --after %s\n", escape(more))
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "SEQ", "TIME", "TENANT", "ACTION", "DECISION", "SANDBOX", "REASON")
				for _, e := range resp.GetEntries() {
					reason := ""
					if len(e.GetReasons()) > 0 {
						reason = e.GetReasons()[0].GetMessage()
					}
					row(w, fmt.Sprintf("%.0f", e.GetSeq()), e.GetTime().AsTime().Format(time.RFC3339), dash(e.GetTenant()), e.GetAction(), e.GetDecision(), dash(e.GetSandbox()), shorten(reason, 60))
				}
			})
		}),
	}
	c.PreRunE = func(c *cobra.Command, _ []string) (err error) {
		if limit < 0 {
			return misuse(c, errors.New("--limit: it is below zero"))
		}
		now := time.Now()
		if req.Since, err = instant(since, now); err != nil {
			return misuse(c, fmt.Errorf("--since: %w", err))
		}
		if req.Until, err = instant(until, now); err != nil {
			return misuse(c, fmt.Errorf("--until: %w", err))
		}
		return nil
	}
	f := c.Flags()
	f.StringVar(&req.Tenant, "tenant", "", "only this `TENANT`'s")
	f.StringVar(&req.Action, "action", "", "only this `ACTION`: run, kill, token.create, token.revoke, policy.activate, authenticate")
	f.StringVar(&req.Decision, "decision", "", "only this `DECISION`: allow or deny")
	f.StringVar(&req.Sandbox, "sandbox", "", "only about the sandbox with this `ID`")
	f.StringVar(&since, "since", "", "only from this `TIME` on: 2026-01-02T15:04:05Z, or so long ago: 90m")
	f.StringVar(&until, "until", "", "only before this `TIME`, given as for --since")
	f.IntVar(&limit, "limit", 100, "at most so `MANY` entries; 0: all")
	f.StringVar(&req.PageToken, "after", "", "only after the entry of this `SEQ`")
	a.outputFlag(c, "table")
	return c
}

// auditEntries reads pages until there are limit entries, or no more.
func auditEntries(ctx context.Context, srv *client.Client, req *apiv1.ListAuditRequest, limit int) (*apiv1.ListAuditResponse, error) {
	const page = 1000
	out := &apiv1.ListAuditResponse{}
	for {
		req.PageSize = page
		if limit > 0 {
			req.PageSize = int32(min(limit-len(out.GetEntries()), page))
		}
		resp, err := srv.Operators().ListAudit(ctx, req)
		if err != nil {
			return nil, err
		}
		out.Entries = append(out.Entries, resp.GetEntries()...)
		out.NextPageToken = resp.GetNextPageToken()
		if out.NextPageToken == "" || len(out.GetEntries()) == limit {
			return out, nil
		}
		req.PageToken = out.GetNextPageToken()
	}
}

// instant reads a time, or how long before now it is; nil for none.
func instant(text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return timestamppb.New(now.Add(-d)), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, fmt.Errorf("%q is neither a time, as in 2026-01-02T15:04:05Z, nor a duration, as in 90m", text)
	}
	return timestamppb.New(t), nil
}

func (a *app) auditVerifyCommand() *cobra.Command {
	o := VerifyAuditOptions{}
	c := &cobra.Command{
		Use: "verify", Short: "Check that the audit log is what was written", Args: takes(),
		Long: `Reads the whole audit log, from the server or without one from this host's
state folder, and computes its chain anew. That shows entries that were edited,
removed or put in another order. Whether the log was rewritten from some entry
on, cut off at its end or replaced by an older copy only checkpoints show, which
up keeps with --audit-sink. The exit code is 1 if something was found.`,
		Example: `  tartarus audit verify
  tartarus audit verify --checkpoints /mnt/audit/checkpoints.jsonl --key signing.pub
  journalctl -o cat -t tartarus-audit > kept && tartarus audit verify --checkpoints kept`,
		RunE: func(c *cobra.Command, _ []string) error {
			srv, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			if srv != nil {
				defer srv.Close()
				o.Rows = func(ctx context.Context, after int64) ([]AuditRow, error) { return storedAudit(ctx, srv, after) }
			}
			o.StateDir = a.stateDir
			report, err := a.cfg.Inside.VerifyAudit(c.Context(), o)
			if err != nil {
				return err
			}
			if err := a.showReport(report); err != nil {
				return err
			}
			if len(report.Findings) > 0 {
				return &failure{code: failedCode}
			}
			return nil
		},
	}
	c.Flags().StringVar(&o.Checkpoints, "checkpoints", "", "`FILE` of the checkpoints that --audit-sink of up had kept")
	c.Flags().StringArrayVar(&o.Keys, "key", nil, "public `KEY` of the log's writer, or the file of it; without, that in the state folder (repeatable)")
	a.outputFlag(c, "table")
	return c
}

// storedAudit reads a page of the log as it is stored.
func storedAudit(ctx context.Context, srv *client.Client, after int64) ([]AuditRow, error) {
	req := &apiv1.ListAuditRequest{Stored: true, PageSize: 200} // any entry is some kB at most
	if after > 0 {
		req.PageToken = strconv.FormatInt(after, 10)
	}
	resp, err := srv.Operators().ListAudit(ctx, req)
	if err != nil {
		return nil, err
	}
	var out []AuditRow
	for _, e := range resp.GetEntries() {
		out = append(out, AuditRow{Seq: int64(e.GetSeq()), Tenant: e.GetTenant(), Text: e.GetText()})
	}
	return out, nil
}

func (a *app) showReport(r AuditReport) error {
	if a.output != "table" {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return a.showJSON(b)
	}
	w := tabwriter.NewWriter(a.io.Out, 0, 0, 2, ' ', 0)
	row(w, "entries", fmt.Sprint(r.Entries), dash(r.Head))
	vouched := "-"
	if !r.CoveredAt.IsZero() {
		vouched = fmt.Sprintf("the last that fits vouches for entries 1 to %d, at %s", r.Covered, r.CoveredAt.UTC().Format(time.RFC3339))
	}
	row(w, "checkpoints", fmt.Sprint(r.Checkpoints), vouched)
	if r.Others+r.Foreign > 0 {
		row(w, "passed over", fmt.Sprint(r.Others+r.Foreign), fmt.Sprintf("%d checkpoints of other logs, %d lines without one", r.Others, r.Foreign))
	}
	row(w, "findings", fmt.Sprint(len(r.Findings)+r.More), "")
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range r.Findings {
		fmt.Fprintf(a.io.Out, "%s: %s\n", escape(f.Place), escape(f.What))
	}
	if r.More > 0 {
		fmt.Fprintf(a.io.Out, "and %d more\n", r.More)
	}
	_, err := fmt.Fprintln(a.io.Out, escape(r.Unknown))
	return err
}
