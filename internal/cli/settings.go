package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// setting is something that a flag, a variable and the files can say. What
// comes first holds: the flag, the variable, this user's file, the system's,
// the default.
type setting struct {
	flag  string // its key in the files is the same with _ for -
	env   string // TARTARUS_ and the key if empty
	def   string
	usage string // as in pflag: what stands in backquotes is the value's name
}

// settings is the table that flags, variables, files and `help config` come
// from.
func settings() []setting {
	return []setting{
		{flag: "server", env: "TARTARUS_URL", usage: "`URL` of the server: http://HOST:PORT, https://HOST or unix:///PATH"},
		{flag: "token-file", usage: "`FILE` with the token for the server"},
		{flag: "state", usage: "`FOLDER` of the state on this host"},
		{flag: "verbose", usage: "log to stderr what goes on inside"},
		{flag: "policy", usage: "policy `FILE`, or a folder with one, followed as it changes; without, the built-in policy"},
		{flag: "listen", def: "127.0.0.1:7777", usage: "`ADDRESS` to listen on, beyond loopback with TLS alone; empty: none"},
		{flag: "tls-cert", usage: "`FILE` with the certificate, and those that vouch for it, in PEM; read again when it changes"},
		{flag: "tls-key", usage: "`FILE` with the certificate's key, in PEM"},
		{flag: "host", usage: "another `NAME` that requests may call the server by (repeatable)"},
		{flag: "audit-sink", usage: "`WHERE` to keep checkpoints of the audit log, out of this user's reach: file:/path or syslog: (repeatable)"},
		{flag: "log-format", def: "text", usage: "`FORMAT` of the log on stderr: text or json"},
		{flag: "driver", usage: "what VMs run in: the `NAME` firecracker or qemu; without, the best that works here"},
		{flag: "firecracker", usage: "`PATH` of a Firecracker, its jailer beside it, instead of the one that setup installed"},
		{flag: "insecure-test-vmm", usage: "let a version of it run that is for tests alone"},
		{flag: "allow-tcg", usage: "take runs from beyond loopback though VMs run without KVM, which QEMU calls no security boundary"},
		{flag: "standby", def: "0", usage: "`N` VMs of a shape wait for its next runs at most, as many as were asked for in the last minute"},
		{flag: "vmm-uids", usage: "`FIRST-LAST`: user IDs of the host for VMMs, one each, as root; the same for all processes (200000-225999)"},
	}
}

func (s setting) key() string { return strings.ReplaceAll(s.flag, "-", "_") }

func (s setting) variable() string {
	if s.env != "" {
		return s.env
	}
	return "TARTARUS_" + strings.ToUpper(s.key())
}

// settingOf is the row of a flag. One that is not in the table is a mistake of
// this program.
func settingOf(flag string) setting {
	all := settings()
	return all[slices.IndexFunc(all, func(s setting) bool { return s.flag == flag })]
}

// settingMark tells the flags of settings from others of the same name.
const settingMark = "setting"

// settingFlag adds the flag of a setting, whose value goes to p: a *string, a
// *bool, a *[]string or a value of our own that holds its default.
func settingFlag(f *pflag.FlagSet, p any, flag, short string) {
	s := settingOf(flag)
	switch p := p.(type) {
	case *string:
		f.StringVarP(p, flag, short, s.def, s.usage)
	case *bool:
		f.BoolVarP(p, flag, short, false, s.usage)
	case *uint:
		f.UintVarP(p, flag, short, 0, s.usage)
	case *[]string:
		f.StringSliceVarP(p, flag, short, nil, s.usage)
	case pflag.Value:
		f.VarP(p, flag, short, s.usage)
	}
	f.Lookup(flag).Annotations = map[string][]string{settingMark: {s.key()}}
}

// settle gives every setting of c that no flag said the value that a variable
// or a file says. It may be called again.
func (a *app) settle(c *cobra.Command) error {
	files, err := a.readConfig()
	if err != nil {
		return err
	}
	for _, s := range settings() {
		f := settingIn(c, s.flag)
		if f == nil || f.Changed {
			continue
		}
		text, from, said := a.env(s.variable()), s.variable(), true
		if text == "" {
			text, from, said = files.value(s.key())
		}
		if !said {
			continue
		}
		if err := f.Value.Set(text); err != nil {
			return withHint(fmt.Errorf("%s: %q is no %s", from, text, wanted(f)), "`tartarus help config` lists the settings")
		}
		a.said[s.flag] = from
	}
	return nil
}

// settingIn is the flag of a setting that c has; nil for none. A command may
// have another flag of that name (the states of ps), behind which the
// setting's is still there.
func settingIn(c *cobra.Command, name string) *pflag.Flag {
	for _, set := range []*pflag.FlagSet{c.Flags(), c.Root().PersistentFlags()} {
		if f := set.Lookup(name); f != nil && f.Annotations[settingMark] != nil {
			return f
		}
	}
	return nil
}

// source is where the value of a setting came from: --flag, a variable, or a
// place in a file.
func (a *app) source(flag string) string {
	if from := a.said[flag]; from != "" {
		return from
	}
	return "--" + flag
}

// settingsHelp is the table for people.
func settingsHelp() string {
	var b strings.Builder
	b.WriteString(`Settings can be said by a flag, by a variable, or by a file:

  ` + SystemConfig + `
  $XDG_CONFIG_HOME/tartarus/config.yaml (or ~/.config/tartarus/config.yaml)

What comes first holds: the flag, the variable, this user's file, the system's
file, the default. A variable that is empty says nothing. A command takes those
settings that it has a flag for. A file holds one line for each, as in

  server: https://tartarus.example.com
  token_file: /home/me/.tartarus-token

and a key that is not in this table is an error.
`)
	for _, s := range settings() {
		name, usage := pflag.UnquoteUsage(&pflag.Flag{Name: s.flag, Usage: s.usage, Value: textValue{}})
		if !strings.Contains(s.usage, "`") {
			name = ""
		}
		fmt.Fprintf(&b, "\n  %-24s %-28s %s\n", strings.TrimSpace("--"+s.flag+" "+name), s.variable(), s.key())
		if s.def != "" {
			usage += " (default " + s.def + ")"
		}
		for _, line := range wrap(usage, 74) {
			fmt.Fprintf(&b, "      %s\n", line)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// textValue is a value for pflag to ask the type of.
type textValue struct{ pflag.Value }

// Type is what pflag calls a text.
func (textValue) Type() string { return "string" }

// wrap breaks text into lines of at most width bytes, at spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return append(lines, line)
}
