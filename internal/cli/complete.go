package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// Completions are asked for by a shell, which waits: what takes longer is
// left out.
const completePatience = time.Second

// completeIDs offers the sandboxes of the server; live ones alone if that is
// what the command is for.
func (a *app) completeIDs(live bool) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		none := cobra.ShellCompDirectiveNoFileComp
		if len(args) > 0 && !live { // only those that end sandboxes take several
			return nil, none
		}
		ctx, cancel := context.WithTimeout(c.Context(), completePatience)
		defer cancel()
		_ = a.settle(c) // nobody could be told
		srv, err := a.connect(ctx)
		if err != nil || srv == nil {
			return nil, none
		}
		defer srv.Close()
		req := &apiv1.ListRequest{}
		if live {
			req.State = liveStates
		}
		resp, err := srv.List(ctx, req)
		if err != nil {
			return nil, none
		}
		var out []string
		for _, sb := range resp.GetSandboxes() {
			out = append(out, escape(sb.GetId())+"\t"+escape(sb.GetState()+" "+shorten(commandOf(sb), 40)))
		}
		return out, none
	}
}

// completeTemplates offers the names of templates.
func (a *app) completeTemplates(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completePatience)
	defer cancel()
	_ = a.settle(c) // nobody could be told
	resp, err := a.templates(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, t := range resp.GetTemplates() {
		out = append(out, escape(t.GetName()))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
