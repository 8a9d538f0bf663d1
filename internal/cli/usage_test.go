package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// Bad input is one clear error: what, where, and what to do.
func TestWrongCalls(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(empty, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]struct {
		code int
		says []string
	}{
		"bogus":                           {2, []string{`no command "bogus"`, "hint: did you mean `tartarus logs`"}},
		"zzzzzzzz":                        {2, []string{`no command "zzzzzzzz"`, "hint: `tartarus --help`"}},
		"template lss":                    {2, []string{`no command "template lss"`, "did you mean `tartarus template ls`"}},
		"completion bash x":               {2, []string{`"x"`}},
		"help pss":                        {2, []string{`no command "pss"`, "`tartarus ps`"}},
		"help template x":                 {2, []string{`no command "template x"`}},
		"ps x":                            {2, []string{`ps: unexpected argument "x"`, "hint: tartarus ps"}},
		"ps -o xml":                       {2, []string{`"xml"`, "json, yaml, table"}},
		"ps --limit x":                    {2, []string{`--limit: "x" is no whole number`}},
		"inspect":                         {2, []string{"inspect: ID is missing", "hint: tartarus inspect ID"}},
		"kill --grace 5 x":                {2, []string{`--grace: "5" is no duration`, "90s"}},
		"token create --expires -1h":      {2, []string{"--expires: -1h0m0s is over"}},
		"--bogus":                         {2, []string{"unknown flag: --bogus", "tartarus --help"}},
		"ps":                              {1, []string{"no server is running", "hint: start one with `tartarus up`"}},
		"--server 127.0.0.1:7777 ps":      {1, []string{"--server: invalid_argument", "http://127.0.0.1:7777"}},
		"--server unix:///nowhere ps":     {1, []string{"unavailable", "hint: Is it running"}},
		"--token-file /nowhere/t ps":      {1, []string{"--token-file: open /nowhere/t"}},
		"--token-file " + empty + " ps":   {1, []string{"is empty", "token create"}},
		"wait sb-x":                       {125, []string{"no server is running"}},
		"bench":                           {2, []string{"bench: FIGURE is missing", "hint: tartarus bench FIGURE..."}},
		"bench start speed":               {2, []string{`no figure "speed"; there are start, throughput, density, admit, place`}},
		"bench start -n x":                {2, []string{`--count: "x" is no whole number`}},
		"bench start -c 1,x":              {2, []string{`--concurrency: "1,x" is no list of whole numbers; write it as 1,2,4`}},
		"bench start --memory lots":       {2, []string{`--memory: "lots" is not a size`}},
		"bench density --memory-limit 0":  {2, []string{`--memory-limit: "0" is not a size`}},
		"bench density --idle 5":          {2, []string{`--idle: "5" is no duration`}},
		"wait":                            {125, []string{"ID is missing"}},
		"run":                             {125, []string{"run: COMMAND is missing", "hint: tartarus run [flags] -- COMMAND [ARG...]"}},
		"run --bogus -- x":                {125, []string{"run: unknown flag: --bogus"}},
		"run --cpus x -- x":               {125, []string{`--cpus: "x" is no whole number`}},
		"run --timeout 60 -- x":           {125, []string{`--timeout: "60" is no duration; write it as 90s`}},
		"run --timeout 0s -- x":           {125, []string{"--timeout: 0s"}},
		"run --memory lots -- x":          {125, []string{`--memory: "lots" is not a size`, "256MiB"}},
		"run --disk -1 -- x":              {125, []string{`--disk: "-1" is not a size`}},
		"run --env =x -- x":               {125, []string{"--env"}},
		"run --label x -- x":              {125, []string{`--label "x": write it as key=value`}},
		"run --file x -- x":               {125, []string{`--file "x": write it as LOCAL:/PATH`}},
		"run --allow x -- x":              {125, []string{`--allow "x": it has no port`, "api.example.com:443"}},
		"run --local -d -- x":             {125, []string{"--local and --detach"}},
		"run --local --server http:x x":   {125, []string{"--local and --server"}},
		"run -d -- x":                     {125, []string{"--detach needs a server", "tartarus up"}},
		"run --policy p --server unix:/x": {125, []string{"COMMAND is missing"}},
	} {
		r := call{}.main(t, strings.Fields(args)...)
		if r.code != want.code || r.out != "" || strings.Count(r.errout, "tartarus: ") != 1 {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", args, r.code, r.out, r.errout)
		}
		for _, says := range want.says {
			if !strings.Contains(r.errout, says) {
				t.Errorf("%s: %q is missing in %q", args, says, r.errout)
			}
		}
	}
	s := newFake()
	r := with(s.listen(t)).main(t, "run", "--policy", "p.yaml", "--", "true")
	if r.code != 125 || !strings.Contains(r.errout, "hint: add --local") || s.ran != nil {
		t.Errorf("a policy for a server: %+v", r)
	}
}

// hint is how the inside hands its hints over.
type hint struct{ error }

func (hint) Hint() string { return "free the \x1bport" }

func TestInsideErrorsAreSaidWithTheirHint(t *testing.T) {
	inside := Inside{Up: func(context.Context, UpOptions, func([]string)) error {
		return errors.Join(fmt.Errorf("starting: %w", hint{errors.New("it is taken")}), errors.New("and more"))
	}}
	r := call{inside: inside}.main(t, "up")
	if r.code != 1 || r.errout != "tartarus: starting: it is taken; and more\n  hint: free the \\x1bport\n" {
		t.Errorf("%+v", r)
	}
}

func TestUp(t *testing.T) {
	var got UpOptions
	inside := Inside{Up: func(_ context.Context, o UpOptions, ready func([]string)) error {
		got = o
		o.Progress(Step{Name: "template base: storing"})
		ready([]string{"unix:///s", "http://127.0.0.1:1"})
		return nil
	}}
	r := call{inside: inside, env: map[string]string{"TARTARUS_STATE": "/state"}}.main(t, "up", "--listen", "127.0.0.1:1", "--policy", "p")
	if r.code != 0 || r.errout != "template base: storing\ntartarus: listening on unix:///s\ntartarus: listening on http://127.0.0.1:1\n" {
		t.Errorf("%+v", r)
	}
	if got.StateDir != "/state" || got.Listen != "127.0.0.1:1" || got.Policy != "p" || got.Verbose || got.LogFormat != LogText {
		t.Errorf("%+v", got)
	}
}

func TestLogFormat(t *testing.T) {
	var got UpOptions
	inside := Inside{Up: func(_ context.Context, o UpOptions, _ func([]string)) error { got = o; return nil }}
	if r := (call{inside: inside}).main(t, "up", "--log-format", "json"); r.code != 0 || got.LogFormat != LogJSON {
		t.Errorf("%+v, %+v", r, got)
	}
	r := call{inside: inside}.main(t, "up", "--log-format", "xml")
	if r.code == 0 || !strings.Contains(r.errout, "text, json") {
		t.Errorf("%+v", r)
	}
}

func TestSetup(t *testing.T) {
	var got []SetupOptions
	inside := Inside{Setup: func(_ context.Context, o SetupOptions) error { got = append(got, o); return nil }}
	for _, args := range []string{"setup", "setup --template base --kernel k --modules m", "template build x y"} {
		if r := (call{inside: inside}).main(t, append(strings.Fields(args), "--state", "/s")...); r.code != 0 {
			t.Errorf("%s: %+v", args, r)
		}
	}
	for i, want := range []string{"{/s [base debian]  ", "{/s [base] k m", "{/s [x y]  "} {
		if s := fmt.Sprintf("%v", got[i]); !strings.HasPrefix(s, want) {
			t.Errorf("%s, want %s", s, want)
		}
	}
}

func TestSetupFirecracker(t *testing.T) {
	var got SetupFirecrackerOptions
	inside := Inside{SetupFirecracker: func(_ context.Context, o SetupFirecrackerOptions) (string, error) {
		got = o
		return "/s/firecracker/1", nil
	}}
	r := (call{inside: inside}).main(t, "setup", "firecracker", "--from", "f.tgz", "--state", "/s")
	if r.code != 0 || r.out != "/s/firecracker/1\n" || got.From != "f.tgz" || got.StateDir != "/s" {
		t.Errorf("%+v, %+v", r, got)
	}
	inside.SetupFirecracker = func(context.Context, SetupFirecrackerOptions) (string, error) { return "", errors.New("no room") }
	if r := (call{inside: inside}).main(t, "setup", "firecracker"); r.code != 1 || r.out != "" || !strings.Contains(r.errout, "no room") {
		t.Errorf("%+v", r)
	}
}

func TestDoctor(t *testing.T) {
	findings := []Finding{{Name: "kvm", Status: "limited", Message: "no", Meaning: "slower", Cure: "buy"}}
	inside := Inside{Doctor: func(context.Context, DoctorOptions) ([]Finding, error) { return findings, nil }}
	if r := (call{inside: inside}).main(t, "doctor"); r.code != 0 || r.out != "kvm  limited  no\n              means: slower\n              cure: buy\n" {
		t.Errorf("%+v", r)
	}
	findings = append(findings, Finding{Name: "programs", Status: "missing", Message: "none"})
	r := call{inside: inside}.main(t, "doctor", "-o", "yaml")
	if r.code != 1 || r.errout != "" || !strings.HasSuffix(r.out, "- name: programs\n  status: missing\n  message: none\n") {
		t.Errorf("%+v", r)
	}
}

func TestTemplatesAreTheServersOrThisHosts(t *testing.T) {
	inside := Inside{Templates: func(_ context.Context, dir string) ([]*apiv1.Template, error) {
		return []*apiv1.Template{{Name: "of-this-host in " + dir}}, nil
	}}
	if r := (call{inside: inside}).main(t, "template", "ls", "--state", "/s"); !strings.Contains(r.out, "of-this-host in /s") {
		t.Errorf("%+v", r)
	}
	c := with(newFake().listen(t))
	c.inside = inside
	if r := c.main(t, "template", "ls"); !strings.Contains(r.out, "of-the-server") {
		t.Errorf("%+v", r)
	}
}

// Every command explains itself, with an example where it is not obvious, in
// lines that fit.
func TestHelp(t *testing.T) {
	root := (&app{}).root()
	root.InitDefaultCompletionCmd()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		path := strings.Fields(c.CommandPath())[1:]
		asked, flagged := call{}.main(t, append([]string{"help"}, path...)...), call{}.main(t, append(path, "--help")...)
		if asked.code != 0 || asked.errout != "" || asked.out != flagged.out || !strings.Contains(asked.out, "Usage:") {
			t.Errorf("help %v: %+v, with --help %q", path, asked, flagged.out)
		}
		if c.GroupID != "" && !c.HasSubCommands() && c.Example == "" && !slices.Contains([]string{"nodes"}, c.Name()) {
			t.Errorf("%v has no example", path)
		}
		for l := range strings.Lines(c.Long) {
			if len(l) > 81 {
				t.Errorf("help %v: a line of %d columns: %s", path, len(l), l)
			}
		}
		for _, sub := range c.Commands() {
			if sub.Name() != "completion" && !sub.IsAdditionalHelpTopicCommand() {
				walk(sub)
			}
		}
	}
	walk(root)
	first := call{}.main(t)
	for _, want := range []string{"tartarus run -- echo hello", "tartarus up", "tartarus doctor", "Run and watch:", "--server URL", "environment", "exit-codes"} {
		if !strings.Contains(first.out, want) {
			t.Errorf("the first screen lacks %q", want)
		}
	}
	for topic, want := range map[string]string{"exit-codes": "124", "environment": "TARTARUS_URL"} {
		if r := (call{}).main(t, "help", topic); r.code != 0 || !strings.Contains(r.out, want) {
			t.Errorf("help %s: %+v", topic, r)
		}
	}
	if r := (call{}).main(t, "--version"); r.out != "tartarus 1.2.3\n" {
		t.Errorf("%+v", r)
	}
	if r := (call{}).main(t, "version"); r.out != "1.2.3\n" {
		t.Errorf("%+v", r)
	}
}

func TestCompletions(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := (call{}).main(t, "completion", shell); r.code != 0 || !strings.Contains(r.out, "tartarus") {
			t.Errorf("%s: %d", shell, r.code)
		}
	}
	s := newFake()
	sb := exited(0)
	sb.Request.Command = []string{evil}
	s.list = []*apiv1.Sandbox{sb}
	c := with(s.listen(t))
	for args, want := range map[string]string{
		"logs \x00":            testID + "\tsucceeded " + evilShown,
		"kill " + testID + " ": testID,
		"run --template \x00":  "of-the-server",
		"ps -o \x00":           "yaml",
		"help \x00":            "inspect\tShow everything about a sandbox",
	} {
		words := strings.Fields(strings.ReplaceAll(args, "\x00", ""))
		r := c.main(t, append(append([]string{"__complete"}, words...), "")...)
		if r.code != 0 || !strings.Contains(r.out, want+"\n") && !strings.Contains(r.out, want+"\t") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if r := (call{}).main(t, "__complete", "logs", ""); !strings.HasPrefix(r.out, ":4") {
		t.Errorf("without a server: %+v", r)
	}
}
