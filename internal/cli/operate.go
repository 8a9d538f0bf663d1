package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// groupOf is a command that only holds others.
func groupOf(c *cobra.Command, of ...*cobra.Command) *cobra.Command {
	c.Args, c.RunE = cobra.ArbitraryArgs, group
	c.AddCommand(of...)
	return c
}

func (a *app) templateCommand() *cobra.Command {
	ls := &cobra.Command{
		Use: "ls", Short: "List templates: the server's, or without one this host's", Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			resp, err := a.templates(c.Context())
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "NAME", "DIGEST", "MIB", "AGE", "MADE OF")
				for _, t := range resp.GetTemplates() {
					row(w, t.GetName(), t.GetDigest()[:min(19, len(t.GetDigest()))], fmt.Sprintf("%.1f", t.GetBytes()/(1<<20)), age(t.GetCreatedAt()), dash(t.GetPackages()))
				}
			})
		},
	}
	a.outputFlag(ls, "table")
	build := &cobra.Command{
		Use: "build NAME...", Short: "Make templates on this host: base, debian", Args: takes("NAME..."),
		Example: "  tartarus template build debian",
		RunE: func(c *cobra.Command, args []string) error {
			return a.setup(c.Context(), SetupOptions{Templates: args})
		},
	}
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Take a template's name off this host", Args: takes("NAME"), ValidArgsFunction: a.completeTemplates,
		RunE: func(c *cobra.Command, args []string) error {
			return a.cfg.Inside.RemoveTemplate(c.Context(), a.stateDir, args[0])
		},
	}
	return groupOf(&cobra.Command{
		Use: "template", Short: "Root disks that sandboxes are made from",
		Long: `A template is a read-only root disk with a name. base (busybox) is made in
seconds by the first run; debian (python3) is a download of some minutes.`,
		Example: "  tartarus template ls\n  tartarus template build debian",
	}, ls, build, rm)
}

// templates are the server's, or without one this host's.
func (a *app) templates(ctx context.Context) (*apiv1.ListTemplatesResponse, error) {
	srv, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	if srv != nil {
		defer srv.Close()
		return srv.Operators().ListTemplates(ctx, &apiv1.ListTemplatesRequest{})
	}
	list, err := a.cfg.Inside.Templates(ctx, a.stateDir)
	return &apiv1.ListTemplatesResponse{Templates: list}, err
}

func (a *app) nodesCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "nodes", Short: "List nodes, with what is in use on them", Args: takes(),
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

func (a *app) tokenCommand() *cobra.Command {
	req := &apiv1.CreateTokenRequest{}
	var expires time.Duration
	create := &cobra.Command{
		Use: "create", Short: "Make a token; it is printed once", Args: takes(),
		Example: "  tartarus token create --tenant ci --scope run --scope read --expires 720h",
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			if expires != 0 {
				req.ExpiresAt = timestamppb.New(time.Now().Add(expires))
			}
			resp, err := srv.Operators().CreateToken(ctx, req)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(a.io.Out, resp.GetToken()); err != nil {
				return err
			}
			fmt.Fprintf(a.io.Err, "token %s of tenant %s\n", escape(resp.GetInfo().GetId()), escape(resp.GetInfo().GetTenant()))
			return nil
		}),
	}
	create.PreRunE = func(c *cobra.Command, _ []string) error {
		if c.Flags().Changed("expires") && expires <= 0 {
			return misuse(c, fmt.Errorf("--expires: %v is over already", expires))
		}
		return nil
	}
	create.Flags().StringVar(&req.Tenant, "tenant", "", "whose it is: a `TENANT`; without, your own")
	create.Flags().StringArrayVar(&req.Scopes, "scope", []string{"run", "read"}, "what it may: a `SCOPE`, one of run, read, admin (repeatable)")
	create.Flags().DurationVar(&expires, "expires", 0, "how long it is good, a `DURATION`; without, for ever")
	ls := &cobra.Command{
		Use: "list", Short: "List tokens, without the tokens themselves", Args: takes(),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, _ []string) error {
			resp, err := srv.Operators().ListTokens(ctx, &apiv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			return a.show(resp, func(w io.Writer) {
				row(w, "ID", "TENANT", "SCOPES", "AGE", "LAST USED", "EXPIRES", "REVOKED")
				for _, t := range resp.GetTokens() {
					row(w, t.GetId(), t.GetTenant(), strings.Join(t.GetScopes(), ","), age(t.GetCreatedAt()), day(t.GetLastUsedAt()), day(t.GetExpiresAt()), day(t.GetRevokedAt()))
				}
			})
		}),
	}
	a.outputFlag(ls, "table")
	revoke := &cobra.Command{
		Use: "revoke ID", Short: "Revoke a token", Args: takes("ID"),
		RunE: a.withServer(func(ctx context.Context, srv *client.Client, args []string) error {
			_, err := srv.Operators().RevokeToken(ctx, &apiv1.RevokeTokenRequest{Id: args[0]})
			return err
		}),
	}
	return groupOf(&cobra.Command{Use: "token", Short: "Make, list and revoke tokens"}, create, ls, revoke)
}
