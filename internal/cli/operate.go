package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

func (a *app) templateCommand() *cobra.Command {
	c := &cobra.Command{Use: "template", Short: "Root disks that sandboxes are made from"}
	ls := &cobra.Command{
		Use: "ls", Short: "List templates", Args: cobra.NoArgs,
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			resp, err := srv.Operators().ListTemplates(ctx, &apiv1.ListTemplatesRequest{})
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "NAME", "DIGEST", "MIB", "AGE", "MADE OF")
				for _, t := range resp.GetTemplates() {
					row(w, t.GetName(), t.GetDigest()[:min(19, len(t.GetDigest()))], fmt.Sprintf("%.1f", t.GetBytes()/(1<<20)), age(t.GetCreatedAt()), t.GetPackages())
				}
			})
		}),
	}
	a.outputFlag(ls, "table")
	build := &cobra.Command{
		Use: "build NAME...", Short: "Make templates on this host: base, debian", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p := a.progress()
			defer p.end()
			return a.cfg.Inside.Setup(c.Context(), SetupOptions{StateDir: a.state(), Templates: args, Progress: p.step})
		},
	}
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Take a template's name off this host", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.cfg.Inside.RemoveTemplate(c.Context(), a.state(), args[0])
		},
	}
	c.AddCommand(ls, build, rm)
	return c
}

func (a *app) nodesCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "nodes", Short: "List nodes, with what is in use on them (admin)", Args: cobra.NoArgs,
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			resp, err := srv.Operators().ListNodes(ctx, &apiv1.ListNodesRequest{})
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "ID", "DRIVER", "ACCELERATOR", "VCPUS", "MEMORY MIB", "DISK MIB", "SEEN")
				for _, n := range resp.GetNodes() {
					used, of := n.GetInUse(), n.GetCapacity()
					row(w, n.GetId(), n.GetRuntime().GetDriver()+" "+n.GetRuntime().GetVersion(), n.GetRuntime().GetAccelerator(),
						fmt.Sprintf("%d/%d", used.GetVcpus(), of.GetVcpus()), fmt.Sprintf("%.0f/%.0f", used.GetMemoryMib(), of.GetMemoryMib()),
						fmt.Sprintf("%.0f/%.0f", used.GetDiskMib(), of.GetDiskMib()), age(n.GetSeenAt()))
				}
			})
		}),
	}
	a.outputFlag(c, "table")
	return c
}

func (a *app) auditCommand() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Who asked for what, and what was answered (admin)"}
	req := &apiv1.ListAuditRequest{}
	ls := &cobra.Command{
		Use: "ls", Short: "List audit entries, oldest first", Args: cobra.NoArgs,
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			resp, err := srv.Operators().ListAudit(ctx, req)
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "SEQ", "TIME", "TENANT", "ACTION", "DECISION", "SANDBOX", "REASON")
				for _, e := range resp.GetEntries() {
					reason := ""
					if len(e.GetReasons()) > 0 {
						reason = e.GetReasons()[0].GetMessage()
					}
					row(w, fmt.Sprintf("%.0f", e.GetSeq()), e.GetTime().AsTime().Format(time.RFC3339), e.GetTenant(), e.GetAction(), e.GetDecision(), dash(e.GetSandbox()), shorten(reason, 60))
				}
			})
		}),
	}
	ls.Flags().StringVar(&req.Tenant, "tenant", "", "only this tenant's")
	ls.Flags().StringVar(&req.PageToken, "after", "", "the page token of the page before")
	a.outputFlag(ls, "table")
	c.AddCommand(ls)
	return c
}

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "The rules that requests are judged by (admin)"}
	show := &cobra.Command{
		Use: "show", Short: "Print the active policy", Args: cobra.NoArgs,
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			p, err := srv.Operators().GetPolicy(ctx, &apiv1.GetPolicyRequest{})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.io.Out, "# version %s\n%s", p.GetVersion(), p.GetText())
			return nil
		}),
	}
	c.AddCommand(show)
	return c
}

func (a *app) tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make, list and revoke tokens (admin)"}
	req := &apiv1.CreateTokenRequest{}
	var expires time.Duration
	create := &cobra.Command{
		Use: "create", Short: "Make a token; it is printed once", Args: cobra.NoArgs,
		Example: "  tartarus token create --tenant ci --scope run --scope read --expires 720h",
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			if expires > 0 {
				req.ExpiresAt = timestamppb.New(time.Now().Add(expires))
			}
			resp, err := srv.Operators().CreateToken(ctx, req)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.io.Out, resp.GetToken())
			fmt.Fprintf(a.io.Err, "token %s of tenant %s\n", escape(resp.GetInfo().GetId()), escape(resp.GetInfo().GetTenant()))
			return nil
		}),
	}
	create.Flags().StringVar(&req.Tenant, "tenant", "", "whose it is (default your own)")
	create.Flags().StringArrayVar(&req.Scopes, "scope", []string{"run", "read"}, "run, read or admin (repeatable)")
	create.Flags().DurationVar(&expires, "expires", 0, "how long it is good (default for ever)")
	ls := &cobra.Command{
		Use: "list", Short: "List tokens, without the tokens themselves", Args: cobra.NoArgs,
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			resp, err := srv.Operators().ListTokens(ctx, &apiv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "ID", "TENANT", "SCOPES", "AGE", "REVOKED")
				for _, t := range resp.GetTokens() {
					row(w, t.GetId(), t.GetTenant(), fmt.Sprint(t.GetScopes()), age(t.GetCreatedAt()), age(t.GetRevokedAt()))
				}
			})
		}),
	}
	a.outputFlag(ls, "table")
	revoke := &cobra.Command{
		Use: "revoke ID", Short: "Revoke a token", Args: cobra.ExactArgs(1),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			_, err := srv.Operators().RevokeToken(ctx, &apiv1.RevokeTokenRequest{Id: args[0]})
			return err
		}),
	}
	c.AddCommand(create, ls, revoke)
	return c
}
