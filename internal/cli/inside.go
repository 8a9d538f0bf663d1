package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func (a *app) upCommand() *cobra.Command {
	o, logs := UpOptions{}, logFormat(LogText)
	c := &cobra.Command{
		Use:   "up",
		Short: "Run Tartarus as a server on this host",
		Long: `Runs everything in one process: API server, scheduler and node. It listens on a
Unix socket (its own user and root need no token) and on an address (with a
token; the first start writes an admin token to STATE/admin-token). Plain HTTP
is for loopback alone; with --tls-cert and --tls-key it speaks HTTPS on any
address, under the names that the certificate is for.`,
		Example: `  tartarus up
  tartarus up --policy policy.yaml --listen 127.0.0.1:8000
  tartarus up --listen :443 --tls-cert chain.pem --tls-key key.pem
  curl -H "Authorization: Bearer $(cat ~/.local/state/tartarus/admin-token)" http://127.0.0.1:7777/sandbox`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			o.StateDir, o.Verbose, o.LogFormat = a.stateDir, a.verbose, string(logs)
			p := a.progress()
			o.Progress = p.step
			defer p.end()
			return a.cfg.Inside.Up(c.Context(), o, func(addresses []string) {
				p.end()
				for _, addr := range addresses {
					fmt.Fprintf(a.io.Err, "tartarus: listening on %s\n", addr)
				}
			})
		},
	}
	f := c.Flags()
	f.SortFlags = false
	settingFlag(f, &o.Listen, "listen", "")
	settingFlag(f, &o.TLSCert, "tls-cert", "")
	settingFlag(f, &o.TLSKey, "tls-key", "")
	settingFlag(f, &o.AllowTCG, "allow-tcg", "")
	settingFlag(f, &o.Hosts, "host", "")
	settingFlag(f, &o.Policy, "policy", "")
	o.VMM.flags(c)
	settingFlag(f, &o.Standby, "standby", "")
	settingFlag(f, &o.AuditSinks, "audit-sink", "")
	settingFlag(f, &logs, "log-format", "")
	_ = c.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions(logFormats, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return c
}

func (a *app) setupCommand() *cobra.Command {
	o := SetupOptions{}
	c := &cobra.Command{
		Use:   "setup",
		Short: "Prepare this host: guest bundle and templates",
		Long: `Makes what runs need: the guest bundle (a kernel out of the distribution's
package, downloaded and not installed, and our init) and the templates. What is
there already is skipped; it may be interrupted and repeated. A run does the
same for what it needs, so this is for hosts that shall be ready before.`,
		Example: `  tartarus setup
  tartarus setup --template base
  tartarus setup --kernel ./vmlinux --modules ./lib/modules/6.12.1`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.setup(c.Context(), o)
		},
	}
	c.Flags().StringArrayVar(&o.Templates, "template", []string{"base", "debian"}, "template `NAME` to make (repeatable)")
	c.Flags().StringVar(&o.Kernel, "kernel", "", "an ELF vmlinux `FILE` of your own instead of the distribution's")
	c.Flags().StringVar(&o.Modules, "modules", "", "with --kernel: the `FOLDER` of its modules")
	c.AddCommand(a.setupFirecrackerCommand())
	return c
}

func (a *app) setupFirecrackerCommand() *cobra.Command {
	o := SetupFirecrackerOptions{}
	c := &cobra.Command{
		Use:   "firecracker",
		Short: "Install Firecracker and its jailer",
		Long: `Downloads the official release of Firecracker that this version of Tartarus
runs, verifies its checksum and installs it beside the state. It may be
interrupted and repeated: the download goes on where it stopped.`,
		Example: `  tartarus setup firecracker
  tartarus setup firecracker --from ./firecracker-v1.17.0-x86_64.tgz`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			p := a.progress()
			o.StateDir, o.Progress = a.stateDir, p.step
			dir, err := a.cfg.Inside.SetupFirecracker(c.Context(), o)
			p.end()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.io.Out, dir)
			return err
		},
	}
	c.Flags().StringVar(&o.From, "from", "", "the release's archive as a `FILE`, for a host without internet")
	return c
}

// setup prepares the host, showing each step.
func (a *app) setup(ctx context.Context, o SetupOptions) error {
	p := a.progress()
	defer p.end()
	o.StateDir, o.Progress = a.stateDir, p.step
	return a.cfg.Inside.Setup(ctx, o)
}

// flags adds those that say what VMs run in.
func (o *VMMOptions) flags(c *cobra.Command) {
	f := c.Flags()
	settingFlag(f, &o.Driver, "driver", "")
	settingFlag(f, &o.Firecracker, "firecracker", "")
	settingFlag(f, &o.InsecureTestVMM, "insecure-test-vmm", "")
	settingFlag(f, &o.UIDs, "vmm-uids", "")
	_ = c.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions([]string{"firecracker", "qemu"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

func (a *app) doctorCommand() *cobra.Command {
	o := DoctorOptions{}
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, what that means, and what mends it",
		Long: `Tries what runs need on this host and says what it found, what that means for
sandboxes, and the command that mends it. KVM is judged by booting a guest on
it. The exit code is 1 if something is missing without which no run works.`,
		Example: "  tartarus doctor\n  tartarus doctor -o json\n  tartarus doctor --production    # before strangers' code runs on it",
		Args:    takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			o.StateDir = a.stateDir
			findings, err := a.cfg.Inside.Doctor(c.Context(), o)
			if err != nil {
				return err
			}
			if err := a.showFindings(findings); err != nil {
				return err
			}
			if slices.ContainsFunc(findings, func(f Finding) bool { return f.Status == "missing" }) {
				return &failure{code: failedCode}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&o.Production, "production", false, "fail, too, for what a host for the code of strangers lacks")
	o.VMM.flags(c)
	a.outputFlag(c, "table")
	return c
}

func (a *app) showFindings(findings []Finding) error {
	if a.output == "table" {
		return printFindings(a.io.Out, findings)
	}
	return a.showValue(findings)
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
		Use: "version", Short: "Print the version", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.io.Out, a.cfg.Version)
			return err
		},
	}
}
