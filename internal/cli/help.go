package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

const usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if .Groups}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if (and (eq .GroupID $group.ID) (or .IsAvailableCommand (eq .Name "help")))}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}

Other:{{range $cmds}}{{if (and (eq .GroupID "") (or .IsAvailableCommand (eq .Name "help")))}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{else}}

Commands:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

More: {{.Root.Name}} help{{if .HasParent}} {{.Name}}{{end}} COMMAND{{if .HasHelpSubCommands}}, and on the topics{{range .Commands}}{{if .IsAdditionalHelpTopicCommand}} {{.Name}}{{end}}{{end}}{{end}}.{{end}}
`

// dressHelp gives root and what is below it our form of help.
func (a *app) dressHelp(root *cobra.Command) {
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(badFlag)
	root.SetHelpCommand(&cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Explain a command or a topic",
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || c.HasSubCommands() && len(rest) > 0 {
				return unknown(c, rest[0])
			}
			c.InitDefaultHelpFlag()
			c.InitDefaultVersionFlag()
			return c.Help()
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			c, _, err := root.Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, sub := range c.Commands() {
				names = append(names, fmt.Sprintf("%s\t%s", sub.Name(), sub.Short))
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	})
}

// topics are the pages of help that belong to no command.
func topics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "exit-codes", Short: "What exit codes mean", Long: `Exit codes of run and wait:
  the command's own, if it exited by itself
  128+n  the command died of signal n
  124    it ran for --timeout (max_duration), as timeout(1) says it
  125    Tartarus refused, failed or lost it, or the call was wrong
  137    it was killed, or used more memory than it has
  141    nobody read the output any more, so it was killed

Exit codes of the other commands:
  0      done
  1      it failed; doctor: something that runs need is missing; bench: a start
         failed
  2      the call was wrong: unknown command, flag or argument

128+n stands for a command that signal n interrupted before there was a sandbox.`},
		{Use: "config", Short: "Which settings there are, and where to say them", Long: settingsHelp()},
		{Use: "environment", Short: "Which variables and files matter", Long: `Variables:
  TARTARUS_URL     server to talk to; --server comes first
  TARTARUS_TOKEN   token for it; --token-file comes first
  TARTARUS_STATE   state folder; --state comes first
  XDG_STATE_HOME   state is in its folder tartarus, if nothing above says where
  XDG_CONFIG_HOME  where this user's file of settings is; ` + "`tartarus help config`" + `
                   has those, and a variable for each setting

Files:
  /var/lib/tartarus               state of root
  ~/.local/state/tartarus         state of other users
  STATE/admin-token               token that the first ` + "`tartarus up`" + ` made
  STATE/up/run/api.sock           socket of a running ` + "`tartarus up`" + `

Which server: --server, then TARTARUS_URL, then the socket of a running up of
this user, then that of root. Without any, run does everything in its own
process, and the other commands say that there is no server.`},
	}
}
