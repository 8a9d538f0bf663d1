package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// liveStates are the states of what has not ended.
var liveStates = []string{"queued", "assigned", "starting", "running", "stopping"}

// pageSize is how many records a page has at most.
const pageSize = 1000

func (a *app) psCommand() *cobra.Command {
	var all bool
	var limit int32
	req := &apiv1.ListRequest{}
	c := &cobra.Command{
		Use:   "ps",
		Short: "List sandboxes, newest first",
		Long: `Lists sandboxes, newest first: those that are live, or with -a all that the
server still has a record of.`,
		Example: `  tartarus ps
  tartarus ps -a -l team=ci -o json
  tartarus ps --state failed --limit 10`,
		Args: takes(),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			if !all && len(req.State) == 0 {
				req.State = liveStates
			}
			resp, err := list(ctx, srv, req, limit)
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) { sandboxTable(w, resp) })
		}),
	}
	f := c.Flags()
	f.SortFlags = false
	f.BoolVarP(&all, "all", "a", false, "ended ones too")
	f.StringArrayVar(&req.State, "state", nil, "only this `STATE` (repeatable)")
	f.StringArrayVarP(&req.Label, "label", "l", nil, "only with this label: `K=V` (repeatable)")
	f.Int32Var(&limit, "limit", 0, "how many at most, a `NUMBER`; 0: all")
	f.StringVar(&req.Tenant, "tenant", "", "only this `TENANT`'s (admin)")
	a.outputFlag(c, "table")
	return c
}

// list reads pages until there are limit records, or no more; 0 is no limit.
func list(ctx context.Context, srv *client.Client, req *apiv1.ListRequest, limit int32) (*apiv1.ListResponse, error) {
	all := &apiv1.ListResponse{}
	for {
		req.PageSize = pageSize
		if limit > 0 {
			req.PageSize = min(limit-int32(len(all.Sandboxes)), pageSize)
		}
		page, err := srv.List(ctx, req)
		if err != nil {
			return nil, err
		}
		all.Sandboxes = append(all.Sandboxes, page.GetSandboxes()...)
		all.NextPageToken = page.GetNextPageToken()
		req.PageToken = page.GetNextPageToken()
		if req.PageToken == "" || limit > 0 && int32(len(all.Sandboxes)) >= limit {
			return all, nil
		}
	}
}

func sandboxTable(w io.Writer, resp *apiv1.ListResponse) {
	row(w, "ID", "NAME", "TENANT", "STATE", "CAUSE", "AGE", "TEMPLATE", "COMMAND")
	for _, sb := range resp.GetSandboxes() {
		row(w, sb.GetId(), dash(sb.GetName()), sb.GetTenant(), sb.GetState(), dash(sb.GetExit().GetCause()),
			age(sb.GetCreatedAt()), sb.GetRequest().GetTemplate(), shorten(commandOf(sb), 40))
	}
}

func commandOf(sb *apiv1.Sandbox) string { return strings.Join(sb.GetRequest().GetCommand(), " ") }

func (a *app) inspectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:               "inspect ID",
		Short:             "Show everything about a sandbox",
		Long:              "Shows the record of a sandbox: what was asked for, what it became, who judged\nit, what ran it, what confined it, how it ended and what it used.",
		Example:           "  tartarus inspect sb-01kar8...\n  tartarus inspect sb-01kar8... -o table",
		Args:              takes("ID"),
		ValidArgsFunction: a.completeIDs(false),
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
	if e := sb.GetExit(); e != nil {
		exit = e.GetCause()
		if e.Code != nil {
			exit += fmt.Sprintf(" (code %d)", e.GetCode())
		}
		if m := e.GetMessage(); m != "" {
			exit += ": " + m
		}
	}
	res := sb.GetRequest().GetResources()
	for _, r := range [][2]string{
		{"id", sb.GetId()}, {"name", dash(sb.GetName())}, {"tenant", sb.GetTenant()}, {"state", sb.GetState()}, {"exit", exit},
		{"template", sb.GetRequest().GetTemplate()}, {"command", commandOf(sb)},
		{"resources", fmt.Sprintf("%d vCPUs, %d MiB memory, %d MiB disk, %d processes", res.GetVcpus(), res.GetMemoryMib(), res.GetDiskMib(), res.GetProcesses())},
		{"driver", strings.TrimSpace(sb.GetRuntime().GetDriver() + " " + sb.GetRuntime().GetVersion() + " " + sb.GetRuntime().GetAccelerator())},
		{"confinement", strings.Join(sb.GetIsolation().GetConfinement(), ", ")}, {"missing", strings.Join(sb.GetIsolation().GetMissing(), ", ")},
	} {
		row(w, r[0], dash(r[1]))
	}
}

func (a *app) logsCommand() *cobra.Command {
	req := &apiv1.LogsRequest{}
	var tail int32
	var raw bool
	c := &cobra.Command{
		Use:   "logs ID",
		Short: "Print a sandbox's output",
		Long: `Prints what a sandbox wrote: its standard output on standard output, its
standard error on standard error. On a terminal, what would act on it (control
characters, colours) is shown escaped, because anybody may have run it; --raw
passes it on as it is.`,
		Example:           "  tartarus logs -f sb-01kar8...\n  tartarus logs --stream stderr --tail 20 sb-01kar8...",
		Args:              takes("ID"),
		ValidArgsFunction: a.completeIDs(false),
	}
	f := c.Flags()
	f.SortFlags = false
	f.BoolVarP(&req.Follow, "follow", "f", false, "go on until it has ended")
	f.Int32Var(&tail, "tail", 0, "only the last lines, a `NUMBER` of them")
	f.StringVar(&req.Stream, "stream", "", "only one `STREAM`: stdout or stderr")
	f.Float64Var(&req.Offset, "offset", 0, "first byte wanted, a `NUMBER` that counts over both streams")
	f.BoolVar(&raw, "raw", false, "do not escape anything")
	c.RunE = a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
		req.Id = args[0]
		if f.Changed("tail") {
			req.Tail = &tail
		}
		to := a.shown()
		if raw {
			to = a.raw()
		}
		cut, err := copyLogs(ctx, srv, req, to)
		if cut {
			fmt.Fprintf(a.io.Err, "tartarus: %s: the output was cut here\n", escape(req.GetId()))
		}
		return err
	})
	return c
}

func (a *app) eventsCommand() *cobra.Command {
	req := &apiv1.EventsRequest{}
	c := &cobra.Command{
		Use:               "events ID",
		Short:             "Print a sandbox's changes of state",
		Long:              "Prints every change of a sandbox's state, with its cause. With -o json each is a\nline, with -o yaml a document.",
		Example:           "  tartarus events -f sb-01kar8...",
		Args:              takes("ID"),
		ValidArgsFunction: a.completeIDs(false),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			req.Id = args[0]
			for e, err := range srv.Events(ctx, req) {
				if err == nil {
					err = a.showEvent(e)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}),
	}
	c.Flags().BoolVarP(&req.Follow, "follow", "f", false, "go on until it has ended")
	a.outputFlag(c, "table")
	return c
}

// eventTime has a fixed width.
const eventTime = "2006-01-02T15:04:05.000Z07:00"

func (a *app) showEvent(e *apiv1.Event) error {
	if a.output != "table" {
		return a.showItem(e)
	}
	line := fmt.Sprintf("%s %-9s %s %s", e.GetTime().AsTime().Format(eventTime), escape(e.GetState()), escape(dash(e.GetCause())), escape(e.GetMessage()))
	_, err := fmt.Fprintln(a.io.Out, strings.TrimRight(line, " "))
	return err
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "wait ID",
		Short:             "Wait until a sandbox has ended; exits as run would",
		Long:              "Waits until a sandbox has ended. The exit code is what run's would have been.",
		Example:           "  tartarus wait sb-01kar8... && echo it succeeded",
		Args:              takes("ID"),
		Annotations:       map[string]string{likeRun: "yes"},
		ValidArgsFunction: a.completeIDs(false),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			sb, err := srv.Wait(ctx, args[0])
			if err != nil {
				return err
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
		Use:   "kill ID...",
		Short: "End sandboxes",
		Long: `Orders the end of sandboxes and prints the ID of each: the command is asked to
end, and after the grace its VM is cut off. One that has ended already is no
error. What it costs to wait for the end is wait's.`,
		Example:           "  tartarus kill sb-01kar8...\n  tartarus kill --grace 0s sb-01kar8... sb-01kar9...",
		Args:              takes("ID..."),
		ValidArgsFunction: a.completeIDs(true),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			failed := false
			for _, id := range args {
				sb, err := srv.Kill(ctx, id, max(grace, 0))
				if err == nil {
					_, err = fmt.Fprintln(a.io.Out, sb.GetId())
				}
				if err != nil && (len(args) == 1 || ctx.Err() != nil || client.CodeOf(err) == client.Internal) {
					return err
				}
				if err != nil { // the others are still to be ended
					failed = true
					a.complain(fmt.Errorf("%s: %w", id, err))
				}
			}
			if failed {
				return &failure{code: failedCode, err: errors.New("not every sandbox was told to end")}
			}
			return nil
		}),
	}
	c.Flags().DurationVar(&grace, "grace", killGrace, "how long the command may take to end by itself, a `DURATION`")
	return c
}
