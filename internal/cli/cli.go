// Package cli is the command line: what users type, and what they see.
//
// It knows the API and nothing behind it. Commands that need the inside (up,
// run --local, setup, doctor) are handed to it by cmd, as functions. stdout is
// data, stderr is everything else. Text from guests and tenants is escaped,
// but for a command's own output streams on their way to whoever ran it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-vm/tartarus/client"
)

// IO is what a command reads and writes.
type IO struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// Lookup reads the environment.
	Lookup func(string) (string, bool)
	// InTerminal and ErrTerminal say whether a person is there.
	InTerminal, ErrTerminal bool
}

// Inside is what the command line is handed of the inside.
type Inside struct {
	// Local starts everything in this process and returns how to reach it.
	// stop ends it and waits.
	Local func(ctx context.Context, o LocalOptions) (l Local, stop func() error, err error)

	// Up runs everything as a server until ctx ends; ready is called once
	// with the addresses it listens on.
	Up func(ctx context.Context, o UpOptions, ready func(addresses []string)) error

	// Setup prepares the host: guest bundle and templates.
	Setup func(ctx context.Context, o SetupOptions) error

	// RemoveTemplate takes a template's name off the list.
	RemoveTemplate func(ctx context.Context, stateDir, name string) error

	// Doctor says what this host can do.
	Doctor func(ctx context.Context, stateDir string) ([]Finding, error)

	// Sockets are the places where an up of this user, or of root, listens.
	Sockets func(stateDir string) []string
}

// LocalOptions are for Inside.Local.
type LocalOptions struct {
	StateDir string
	Policy   string // file; the built-in one if empty
	Template string // made first if it is one of those that setup makes
	Progress func(Step)
	Verbose  bool
}

// Local is a Tartarus in this process.
type Local struct {
	Dial  func(ctx context.Context) (net.Conn, error)
	Token string
}

// UpOptions are for Inside.Up.
type UpOptions struct {
	StateDir string
	Policy   string
	Listen   string // host:port on loopback
	Verbose  bool
	Progress func(Step)
}

// SetupOptions are for Inside.Setup.
type SetupOptions struct {
	StateDir  string
	Templates []string
	Kernel    string // an ELF vmlinux instead of Debian's
	Modules   string // the folder of its modules
	Progress  func(Step)
}

// Step is a piece of long work, as it begins, goes on and ends.
type Step struct {
	Name        string
	Done, Total int64 // bytes or pieces; Total 0 if unknown
	Finished    bool
	Skipped     bool // it was there already
}

// Finding is what doctor says of one thing.
type Finding struct {
	Name    string `json:"name"`
	Status  string `json:"status"` // ok, limited or missing
	Message string `json:"message"`
	Meaning string `json:"meaning,omitempty"` // what it means for sandboxes
	Cure    string `json:"cure,omitempty"`    // the command that mends it
}

// Config is what Main is given.
type Config struct {
	Version string
	IO      IO
	Inside  Inside
}

// failure carries an exit code through cobra.
type failure struct {
	code int
	err  error // nil: everything was said already
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// app is one call of the command line.
type app struct {
	cfg Config
	io  IO

	server, token, tokenFile, stateDir, output string
	verbose                                    bool
}

// Main runs one command line, without the program's name, and returns the
// exit code.
func Main(ctx context.Context, cfg Config, args []string) int {
	a := &app{cfg: cfg, io: cfg.IO}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.io.In)
	root.SetOut(a.io.Out)
	root.SetErr(a.io.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{code: 2, err: err} // cobra: the call itself is wrong
		if !errors.Is(err, errUsage) && isRuntime(err) {
			f.code = 1
		}
	}
	if f.err != nil {
		a.complain(f.err)
	}
	return f.code
}

// errUsage marks errors of the call itself.
var errUsage = errors.New("wrong usage")

func isRuntime(err error) bool {
	var e *client.Error
	return errors.As(err, &e)
}

// complain says what happened and what to do about it.
func (a *app) complain(err error) {
	var e *client.Error
	if !errors.As(err, &e) {
		fmt.Fprintf(a.io.Err, "tartarus: %s\n", escape(err.Error()))
		var h interface{ Hint() string }
		if errors.As(err, &h) && h.Hint() != "" {
			fmt.Fprintf(a.io.Err, "  hint: %s\n", escape(h.Hint()))
		}
		return
	}
	fmt.Fprintf(a.io.Err, "tartarus: %s: %s\n", e.Code, escape(e.Message))
	for _, l := range []struct{ name, text string }{{"field", e.Field}, {"hint", e.Hint}, {"request", e.RequestID}} {
		if l.text != "" {
			fmt.Fprintf(a.io.Err, "  %s: %s\n", l.name, escape(l.text))
		}
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tartarus",
		Short: "Run code nobody trusts, each run in a microVM of its own",
		Long: `Tartarus runs code nobody trusts. Each run gets a microVM of its own: judged
before it starts, watched while it lives, gone without a trace when it ends.`,
		Example: `  tartarus run -- echo hello
  tartarus run --template debian -- python3 -c 'print(40+2)'
  echo 'print(1)' | tartarus run --template debian --timeout 10s -- python3 -
  tartarus up                      # a server, on a Unix socket and 127.0.0.1:7777
  tartarus ps                      # what it runs
  tartarus doctor                  # what this host can do`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       a.cfg.Version,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.server, "server", "", "server to talk to: http://HOST:PORT or unix:///PATH (default $TARTARUS_URL, then a running up)")
	f.StringVar(&a.tokenFile, "token-file", "", "file with the token (default $TARTARUS_TOKEN)")
	f.StringVar(&a.stateDir, "state", "", "state folder (default $TARTARUS_STATE, then /var/lib/tartarus or $XDG_STATE_HOME/tartarus)")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "log to stderr")
	root.AddCommand(
		a.runCommand(), a.psCommand(), a.inspectCommand(), a.logsCommand(), a.eventsCommand(), a.waitCommand(), a.killCommand(),
		a.templateCommand(), a.nodesCommand(), a.auditCommand(), a.policyCommand(), a.tokenCommand(),
		a.upCommand(), a.setupCommand(), a.doctorCommand(), a.versionCommand())
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &failure{code: 2, err: fmt.Errorf("%w; see: %s --help", err, c.CommandPath())}
	})
	return root
}

func (a *app) env(name string) string {
	v, _ := a.io.Lookup(name)
	return v
}

// connect finds the server: the flag, the environment, then the socket of a
// running up. nil without an error: there is none.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	target := a.server
	if target == "" {
		target = a.env("TARTARUS_URL")
	}
	token, err := a.readToken()
	if err != nil {
		return nil, err
	}
	if target != "" {
		return client.Dial(target, token)
	}
	for _, s := range a.cfg.Inside.Sockets(a.state()) {
		if alive(ctx, s) {
			return client.Dial("unix://"+s, token)
		}
	}
	return nil, nil
}

func (a *app) readToken() (string, error) {
	if a.tokenFile == "" {
		return a.env("TARTARUS_TOKEN"), nil
	}
	b, err := os.ReadFile(a.tokenFile)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return string(trimSpace(b)), nil
}

func (a *app) state() string {
	if a.stateDir != "" {
		return a.stateDir
	}
	return a.env("TARTARUS_STATE")
}

// need is connect for commands that cannot do without a server.
func (a *app) need(ctx context.Context) (*client.Client, error) {
	c, err := a.connect(ctx)
	if err == nil && c == nil {
		err = &failure{code: 125, err: errors.New("no server: start one with `tartarus up`, or name one with --server or TARTARUS_URL")}
	}
	return c, err
}

// withServer is the body of a command that needs a server.
func (a *app) withServer(do func(ctx context.Context, srv *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		srv, err := a.need(c.Context())
		if err != nil {
			return err
		}
		defer srv.Close()
		return do(c.Context(), srv, args)
	}
}

func alive(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
