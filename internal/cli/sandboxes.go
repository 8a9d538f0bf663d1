package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

func (a *app) psCommand() *cobra.Command {
	var all bool
	req := &apiv1.ListRequest{}
	c := &cobra.Command{
		Use:   "ps",
		Short: "List sandboxes, newest first",
		Example: `  tartarus ps            # those that are live
  tartarus ps -a -l team=ci -o json`,
		Args: cobra.NoArgs,
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			if !all && len(req.State) == 0 {
				req.State = []string{"queued", "assigned", "starting", "running", "stopping"}
			}
			resp, err := srv.List(ctx, req)
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "ID", "NAME", "TENANT", "STATE", "CAUSE", "AGE", "TEMPLATE", "COMMAND")
				for _, sb := range resp.GetSandboxes() {
					row(w, sb.GetId(), dash(sb.GetName()), sb.GetTenant(), sb.GetState(), dash(sb.GetExit().GetCause()),
						age(sb.GetCreatedAt()), sb.GetRequest().GetTemplate(), shorten(strings.Join(sb.GetRequest().GetCommand(), " "), 40))
				}
			})
		}),
	}
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "ended ones too")
	f.StringArrayVar(&req.State, "state", nil, "only this state (repeatable)")
	f.StringArrayVarP(&req.Label, "label", "l", nil, "only with this label: key=value (repeatable)")
	f.Int32Var(&req.PageSize, "limit", 0, "how many at most (default 100)")
	f.StringVar(&req.Tenant, "tenant", "", "only this tenant's (admin)")
	a.outputFlag(c, "table")
	return c
}

func (a *app) inspectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "inspect ID",
		Short:   "Show everything about a sandbox",
		Example: "  tartarus inspect sb-01kar8... -o yaml",
		Args:    cobra.ExactArgs(1),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			sb, err := srv.Get(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(sb, func(w io.Writer) { describe(w, sb) })
		}),
	}
	a.outputFlag(c, "json")
	return c
}

func describe(w io.Writer, sb *apiv1.Sandbox) {
	exit := "-"
	if sb.GetExit() != nil {
		exit = sb.GetExit().GetCause()
		if sb.GetExit().Code != nil {
			exit += fmt.Sprintf(" (code %d)", sb.GetExit().GetCode())
		}
		if m := sb.GetExit().GetMessage(); m != "" {
			exit += ": " + m
		}
	}
	for _, r := range [][2]string{
		{"id", sb.GetId()}, {"name", dash(sb.GetName())}, {"tenant", sb.GetTenant()}, {"state", sb.GetState()}, {"exit", exit},
		{"template", sb.GetRequest().GetTemplate()}, {"command", strings.Join(sb.GetRequest().GetCommand(), " ")},
		{"driver", strings.TrimSpace(sb.GetRuntime().GetDriver() + " " + sb.GetRuntime().GetVersion() + " " + sb.GetRuntime().GetAccelerator())},
		{"confinement", strings.Join(sb.GetIsolation().GetConfinement(), ", ")}, {"missing", strings.Join(sb.GetIsolation().GetMissing(), ", ")},
	} {
		row(w, r[0], r[1])
	}
}

func (a *app) logsCommand() *cobra.Command {
	req := &apiv1.LogsRequest{}
	var tail int32
	c := &cobra.Command{
		Use:     "logs ID",
		Short:   "Print a sandbox's output",
		Example: "  tartarus logs -f sb-01kar8...\n  tartarus logs --stream stderr --tail 20 sb-01kar8...",
		Args:    cobra.ExactArgs(1),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			req.Id = args[0]
			if tail > 0 {
				req.Tail = &tail
			}
			return a.copyLogs(ctx, srv, req)
		}),
	}
	f := c.Flags()
	f.BoolVarP(&req.Follow, "follow", "f", false, "go on until it has ended")
	f.StringVar(&req.Stream, "stream", "", "stdout or stderr; both if empty")
	f.Float64Var(&req.Offset, "offset", 0, "first byte wanted, over both streams")
	f.Int32Var(&tail, "tail", 0, "only so many lines at the end")
	return c
}

func (a *app) eventsCommand() *cobra.Command {
	req := &apiv1.EventsRequest{}
	c := &cobra.Command{
		Use:   "events ID",
		Short: "Print a sandbox's changes of state",
		Args:  cobra.ExactArgs(1),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			req.Id = args[0]
			for e, err := range srv.Events(ctx, req) {
				if err != nil {
					return err
				}
				fmt.Fprintf(a.io.Out, "%s %-9s %s %s\n", e.GetTime().AsTime().Format(time.RFC3339Nano), e.GetState(), escape(dash(e.GetCause())), escape(e.GetMessage()))
			}
			return nil
		}),
	}
	c.Flags().BoolVarP(&req.Follow, "follow", "f", false, "go on until it has ended")
	return c
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait ID",
		Short: "Wait until a sandbox has ended; exits as `run` would",
		Args:  cobra.ExactArgs(1),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			sb, err := srv.Wait(ctx, args[0])
			if err != nil {
				return &failure{code: refusedCode, err: err}
			}
			if code := a.verdict(sb); code != 0 {
				return &failure{code: code}
			}
			return nil
		}),
	}
}

func (a *app) killCommand() *cobra.Command {
	var grace time.Duration
	c := &cobra.Command{
		Use:     "kill ID...",
		Short:   "End sandboxes",
		Example: "  tartarus kill --grace 0s sb-01kar8...",
		Args:    cobra.MinimumNArgs(1),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			for _, id := range args {
				sb, err := srv.Kill(ctx, id, max(grace, 0))
				if err != nil {
					return err
				}
				fmt.Fprintln(a.io.Out, sb.GetId())
			}
			return nil
		}),
	}
	c.Flags().DurationVar(&grace, "grace", killGrace, "how long the command may take to end by itself")
	return c
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// shorten cuts s to n runes.
func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
