package cli

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// config writes a file of settings and returns its name.
func config(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tartarus", "config.yaml")
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// The flag holds, then the variable, then this user's file, then the system's,
// then the default, each for itself.
func TestWhichSettingHolds(t *testing.T) {
	system := config(t, "listen: 127.0.0.1:1\npolicy: system\nstate: /system\ndriver: qemu\nverbose: true\n")
	user := config(t, "# mine\nlisten: 127.0.0.1:2\npolicy: user\nstate: /user\nhost: [a.example, b.example]\n")
	var got UpOptions
	c := call{
		system: system,
		env: map[string]string{
			"XDG_CONFIG_HOME": filepath.Dir(filepath.Dir(user)), "TARTARUS_LISTEN": "127.0.0.1:3", "TARTARUS_POLICY": "variable", "TARTARUS_TLS_KEY": "",
		},
		inside: Inside{Up: func(_ context.Context, o UpOptions, _ func([]string)) error { got = o; return nil }},
	}
	if r := c.main(t, "up", "--listen", "127.0.0.1:4"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if got.Listen != "127.0.0.1:4" || got.Policy != "variable" || got.StateDir != "/user" || got.VMM.Driver != "qemu" || !got.Verbose ||
		!slices.Equal(got.Hosts, []string{"a.example", "b.example"}) || got.TLSKey != "" {
		t.Errorf("%+v", got)
	}
	c.env["TARTARUS_HOST"] = "c.example,d.example"
	if r := c.main(t, "up", "--verbose=false", "--listen", ""); r.code != 0 || got.Listen != "" || got.Verbose || !slices.Equal(got.Hosts, []string{"c.example", "d.example"}) {
		t.Errorf("%+v, %+v", r, got)
	}
	c.system, c.env = "", map[string]string{"HOME": "/nowhere"}
	if r := c.main(t, "up"); r.code != 0 || got.Listen != "127.0.0.1:7777" || got.StateDir != "" || got.Hosts != nil {
		t.Errorf("%+v, %+v", r, got)
	}
	// The states that ps asks for are no setting; the folder still is.
	var dir string
	c = call{env: map[string]string{"TARTARUS_STATE": "/state"}, inside: Inside{Sockets: func(state string) []string { dir = state; return nil }}}
	if r := c.main(t, "ps", "--state", "queued"); r.code != 1 || !strings.Contains(r.errout, "no server is running") || dir != "/state" {
		t.Errorf("%+v, looked in %q", r, dir)
	}
	fake := newFake()
	ps := with(fake.listen(t))
	ps.env["TARTARUS_STATE"] = "/state"
	if r := ps.main(t, "ps", "-a"); r.code != 0 || len(fake.states) > 0 {
		t.Errorf("%+v, asked for %v", r, fake.states)
	}
	// A policy that is a setting is up's, and no hindrance to call a server.
	s := with(newFake().listen(t))
	s.env["TARTARUS_POLICY"] = "p.yaml"
	if r := s.main(t, "run", "--detach", "--", "true"); r.code != 0 {
		t.Errorf("%+v", r)
	}
}

// A file with a mistake is one clear error with its place, but where no
// setting matters.
func TestMistakesInSettings(t *testing.T) {
	for text, says := range map[string]string{
		"listen: 127.0.0.1:1\nlisten: 127.0.0.1:2\n": "line 2, column 1: ",
		"policy: p\nlissen: x\n":                     `line 2, column 1: there is no setting "lissen"`,
		"  token: x\n":                               `line 1, column 3: there is no setting "token"`,
		"policy:\n  file: x\n":                       "policy takes a plain value",
		"policy:\n":                                  "policy takes a plain value",
		"policy: &a x\nstate: *a\n":                  "policy takes a plain value",
		"host: [{a: b}]\n":                           "line 1, column 7: host takes a plain value",
		"- policy\n":                                 "line 1, column 1: settings are wanted here",
		"policy: p\n---\nstate: s\n":                 "settings are wanted here",
		"policy: 'x\n":                               "no valid YAML",
		"verbose: perhaps\n":                         `line 1, column 10: "perhaps" is no yes or no`,
		"#" + strings.Repeat(" ", maxConfig):         "more than",
	} {
		name := config(t, text)
		r := call{system: name}.main(t, "up")
		if r.code != 1 || r.out != "" || !strings.Contains(r.errout, "tartarus: "+name+": ") || !strings.Contains(r.errout, says) {
			t.Errorf("%q: %+v", text, r)
		}
		if r := (call{system: name}).main(t, "run", "--", "true"); r.code != 125 {
			t.Errorf("%q: run exits with %d", text, r.code)
		}
		for _, args := range []string{"help config", "version", "up --help", "completion bash"} {
			if r := (call{system: name}).main(t, strings.Fields(args)...); r.code != 0 {
				t.Errorf("%.50q: %s: %+v", text, args, r)
			}
		}
	}
	r := call{env: map[string]string{"TARTARUS_VERBOSE": "perhaps"}}.main(t, "up")
	if r.code != 1 || !strings.Contains(r.errout, `TARTARUS_VERBOSE: "perhaps" is no yes or no`) || !strings.Contains(r.errout, "help config") {
		t.Errorf("%+v", r)
	}
	if r := (call{system: config(t, "# nothing\n"), inside: Inside{Up: func(context.Context, UpOptions, func([]string)) error { return nil }}}).main(t, "up"); r.code != 0 {
		t.Errorf("a file of comments: %+v", r)
	}
	if r := (call{system: t.TempDir()}).main(t, "up"); r.code != 1 {
		t.Errorf("a folder in its place: %+v", r)
	}
}

// A token comes from the flag, the variable, and then from files that settings
// name.
func TestWhichTokenIsSent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("tart_file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		env  map[string]string
		want string
	}{
		{"--token-file " + file, map[string]string{"TARTARUS_TOKEN": "tart_env"}, "tart_file"},
		{"", map[string]string{"TARTARUS_TOKEN": "tart_env", "TARTARUS_TOKEN_FILE": file}, "tart_env"},
		{"", map[string]string{"TARTARUS_TOKEN_FILE": file}, "tart_file"},
		{"", map[string]string{}, ""},
	} {
		a := &app{io: IO{Lookup: func(k string) (string, bool) { v, ok := c.env[k]; return v, ok }}, said: map[string]string{}}
		root := a.root()
		cmd, rest, err := root.Find(append(strings.Fields(c.args), "ps"))
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Fatal(err)
		}
		if err := a.settle(cmd); err != nil {
			t.Fatal(err)
		}
		if got, err := a.readToken(); err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// The table has the flags that it speaks of, each once, and help shows them.
func TestTheTableOfSettings(t *testing.T) {
	flags := map[string]*pflag.Flag{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = f })
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
	help := call{}.main(t, "help", "config").out
	keys := map[string]bool{}
	for _, s := range settings() {
		if flags[s.flag] == nil || keys[s.key()] || keys[s.variable()] {
			t.Errorf("%+v: no flag, or twice", s)
		}
		keys[s.key()], keys[s.variable()] = true, true
		for _, want := range []string{"--" + s.flag, s.variable(), s.key()} {
			if !strings.Contains(help, want) {
				t.Errorf("help lacks %s", want)
			}
		}
	}
	for line := range strings.Lines(help) {
		if len(line) > 81 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("listen: 127.0.0.1:1\nhost: [a, b]\n"))
	f.Add([]byte("a: &b\n- *b\n<<: {}\n"))
	f.Add([]byte("? [x]\n: |\n y\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseConfig("/f", text)
		if err != nil && !strings.HasPrefix(err.Error(), "/f: ") {
			t.Errorf("%q: %v", text, err)
		}
		for key, v := range c {
			if !strings.HasPrefix(v.place, "/f: line ") {
				t.Errorf("%q: %s at %q", text, key, v.place)
			}
		}
	})
}
