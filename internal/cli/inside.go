package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) upCommand() *cobra.Command {
	o := UpOptions{}
	c := &cobra.Command{
		Use:   "up",
		Short: "Run Tartarus as a server on this host",
		Long: `Runs everything in one process: API server, scheduler and node. It listens on a
Unix socket (its own user and root need no token) and on a loopback address
(with a token; the first start writes an admin token to STATE/admin-token).`,
		Example: "  tartarus up &\n  tartarus run -- echo hello\n  curl -H \"Authorization: Bearer $(cat STATE/admin-token)\" http://127.0.0.1:7777/sandbox",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.StateDir, o.Verbose = a.state(), a.verbose
			p := a.progress()
			o.Progress = p.step
			return a.cfg.Inside.Up(c.Context(), o, func(addresses []string) {
				p.end()
				for _, addr := range addresses {
					fmt.Fprintf(a.io.Err, "tartarus: listening on %s\n", addr)
				}
			})
		},
	}
	c.Flags().StringVar(&o.Policy, "policy", "", "policy file (default the built-in policy)")
	c.Flags().StringVar(&o.Listen, "listen", "127.0.0.1:7777", "loopback address; empty: none")
	return c
}

func (a *app) setupCommand() *cobra.Command {
	o := SetupOptions{}
	c := &cobra.Command{
		Use:   "setup",
		Short: "Prepare this host: guest bundle and templates",
		Long: `Makes what runs need: the guest bundle (a kernel out of the distribution's
package, downloaded and not installed, and our init) and the templates. What is
there already is skipped; it may be interrupted and repeated.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.StateDir = a.state()
			p := a.progress()
			o.Progress = p.step
			defer p.end()
			return a.cfg.Inside.Setup(c.Context(), o)
		},
	}
	c.Flags().StringArrayVar(&o.Templates, "template", []string{"base", "debian"}, "template to make (repeatable)")
	c.Flags().StringVar(&o.Kernel, "kernel", "", "an ELF vmlinux of your own instead of the distribution's")
	c.Flags().StringVar(&o.Modules, "modules", "", "with --kernel: the folder of its modules")
	return c
}

func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, what that means, and what mends it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			findings, err := a.cfg.Inside.Doctor(c.Context(), a.state())
			if err != nil {
				return err
			}
			if a.output != "table" {
				b, err := json.Marshal(findings)
				if err != nil {
					return err
				}
				return a.showJSON(b)
			}
			return printFindings(a.io.Out, findings)
		},
	}
	a.outputFlag(c, "table")
	return c
}

func printFindings(out io.Writer, findings []Finding) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		row(w, f.Name, f.Status, f.Message)
		if f.Meaning != "" {
			row(w, "", "", "means: "+f.Meaning)
		}
		if f.Cure != "" {
			row(w, "", "", "cure: "+f.Cure)
		}
	}
	return w.Flush()
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintln(a.io.Out, a.cfg.Version)
			return nil
		},
	}
}
