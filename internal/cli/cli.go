// Package cli is the command line: what users type, and what they see.
//
// It knows the API and nothing behind it. Commands that need the inside (up,
// run --local, setup, doctor, bench) are handed to it by cmd, as functions. stdout is
// data, stderr is everything else. Text from guests and tenants is escaped,
// but for a command's own output streams on their way to whoever ran it.
package cli

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// IO is what a command reads and writes.
type IO struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// Lookup reads the environment.
	Lookup func(string) (string, bool)
	// OutTerminal and ErrTerminal say whether a person is there.
	OutTerminal, ErrTerminal bool
	// ErrWidth is how many columns Err's terminal has; 0: not known.
	ErrWidth int
	// NoInput says that In must not be read: it is a terminal that another job
	// has, and reading from it would stop this process.
	NoInput bool
}

// Inside is what the command line is handed of the inside. An error of its
// functions that has a method Hint() string is shown with that hint.
type Inside struct {
	// Local starts everything in this process and returns how to reach it.
	// stop ends it and waits.
	Local func(ctx context.Context, o LocalOptions) (l Local, stop func() error, err error)

	// Up runs everything as a server until ctx ends; ready is called once
	// with the addresses it listens on.
	Up func(ctx context.Context, o UpOptions, ready func(addresses []string)) error

	// Setup prepares the host: guest bundle and templates.
	Setup func(ctx context.Context, o SetupOptions) error

	// SetupFirecracker installs Firecracker and its jailer, and tells where.
	SetupFirecracker func(ctx context.Context, o SetupFirecrackerOptions) (dir string, err error)

	// Templates lists the templates of this host.
	Templates func(ctx context.Context, stateDir string) ([]*apiv1.Template, error)

	// RemoveTemplate takes a template's name off the list.
	RemoveTemplate func(ctx context.Context, stateDir, name string) error

	// Doctor says what this host can do.
	Doctor func(ctx context.Context, o DoctorOptions) ([]Finding, error)

	// VerifyAudit says what became of an audit log.
	VerifyAudit func(ctx context.Context, o VerifyAuditOptions) (AuditReport, error)

	// CheckPolicy reads a policy: a file, or a folder with one.
	CheckPolicy func(ctx context.Context, path string) (PolicySummary, error)

	// TestPolicy tries the cases of a test file, or of a folder with one.
	TestPolicy func(ctx context.Context, path string) (PolicyReport, error)

	// Bench measures this program on this host. With an error there is no
	// report.
	Bench func(ctx context.Context, o BenchOptions) (BenchReport, error)

	// Sockets are the places where an up of this user, or of root, listens.
	Sockets func(stateDir string) []string
}

// LocalOptions are for Inside.Local.
type LocalOptions struct {
	StateDir string
	Policy   string // file; the built-in one if empty
	VMM      VMMOptions
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
	AllowTCG bool   // VMs without KVM may run for callers beyond loopback
	Listen   string // host:port; beyond loopback with TLS alone
	TLSCert  string // file; with TLSKey
	TLSKey   string
	Hosts    []string // further names of the server
	VMM      VMMOptions
	Standby  uint // VMs of a shape that wait for its runs, at most
	Verbose  bool
	Progress func(Step)

	LogFormat string // LogText or LogJSON

	AuditSinks []string // where checkpoints of the audit log are kept: file:/path, syslog:
}

// VerifyAuditOptions are for Inside.VerifyAudit.
type VerifyAuditOptions struct {
	StateDir    string
	Checkpoints string   // file; none if empty
	Keys        []string // public keys that checkpoints are signed with, or files of them; this host's own if none

	// Rows returns the entries that follow after, some at a time; nil: the log
	// in the state folder.
	Rows func(ctx context.Context, after int64) ([]AuditRow, error)
}

// AuditRow is an audit entry as it is stored.
type AuditRow struct {
	Seq    int64
	Tenant string
	Text   []byte
}

// AuditReport is what became of an audit log.
type AuditReport struct {
	Entries     int64          `json:"entries"`
	Head        string         `json:"head"`        // digest of the last entry
	Checkpoints int            `json:"checkpoints"` // that hold, of this log
	Others      int            `json:"others"`      // that hold, of other logs
	Foreign     int            `json:"foreign"`     // lines without a checkpoint
	Covered     int64          `json:"covered"`     // entries that a checkpoint vouches for
	CoveredAt   time.Time      `json:"covered_at,omitzero"`
	Findings    []AuditFinding `json:"findings"`
	More        int            `json:"more"`    // findings beyond those told
	Unknown     string         `json:"unknown"` // what cannot be told
}

// AuditFinding is something that is not as it was written.
type AuditFinding struct {
	Place string `json:"place"`
	What  string `json:"what"`
}

// The values of UpOptions.LogFormat.
const (
	LogText = "text"
	LogJSON = "json"
)

// DoctorOptions are for Inside.Doctor.
type DoctorOptions struct {
	StateDir   string
	Production bool // what the code of strangers needs is missing, not limited
	VMM        VMMOptions
}

// BenchOptions are for Inside.Bench.
type BenchOptions struct {
	StateDir string
	Figures  []string // start, throughput, density, admit, place

	Count          int   // starts at each concurrency, at least
	Concurrency    []int // of start
	Burst          int   // starts at one instant, after throughput; 0: none
	VMs            int   // idle ones that density wants
	MemoryLimitMiB int64 // that they may have of their own; half of what is free if 0
	Idle           time.Duration
	Compare        bool // with other sandboxes that are installed
	Standby        uint // VMs that wait for a sandbox, at most
	Template       string
	MemoryMiB      int64 // of each VM

	VMM      VMMOptions
	Verbose  bool
	Progress func(Step)

	Version, Command string // for the report
}

// BenchReport is what was measured; as JSON it is its own value.
type BenchReport interface {
	// Table writes it for people.
	Table(w io.Writer) error
	// Failed is an error that tells of starts that failed, nil if none did.
	Failed() error
}

// VMMOptions say what VMs run in. The zero value leaves the choice.
type VMMOptions struct {
	Driver          string // firecracker or qemu
	Firecracker     string // its path; what setup installed, or what is on PATH, if empty
	InsecureTestVMM bool   // a version of it may run that is for tests alone
	UIDs            string // FIRST-LAST: user IDs for VMMs, where root runs them
}

// SetupOptions are for Inside.Setup.
type SetupOptions struct {
	StateDir  string
	Templates []string
	Kernel    string // an ELF vmlinux instead of Debian's
	Modules   string // the folder of its modules
	Progress  func(Step)
}

// SetupFirecrackerOptions are for Inside.SetupFirecracker.
type SetupFirecrackerOptions struct {
	StateDir string
	From     string // the release's archive, for a host without internet
	Progress func(Step)
}

// Step is a piece of long work, as it begins and goes on. It ends with the
// next one's beginning.
type Step struct {
	Name        string
	Done, Total int64 // bytes or pieces; Total 0 if unknown
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
	// SystemConfig is the settings' file of the whole host; empty: none.
	SystemConfig string
}

// app is one call of the command line.
type app struct {
	cfg     Config
	io      IO
	signals *signals
	began   bool              // a command was found, with flags and arguments in order
	said    map[string]string // where settings that no flag said came from, by flag

	server, tokenFile, stateDir string
	output                      format
	verbose                     bool
}

// Main runs one command line, without the program's name, and returns the
// exit code. Interrupts are its own while it runs.
func Main(ctx context.Context, cfg Config, args []string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &app{cfg: cfg, io: cfg.IO, signals: catchSignals(), said: map[string]string{}}
	defer a.signals.release()
	a.signals.on(func(s interrupted) {
		cancel(s)
		a.signals.restore() // the second one ends the process
	})
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.io.In)
	root.SetOut(a.io.Out)
	root.SetErr(a.io.Err)
	c, err := root.ExecuteContextC(ctx)
	return a.exitCode(ctx, c, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tartarus",
		Short: "Run code nobody trusts, each run in a microVM of its own",
		Long: `Tartarus runs code nobody trusts. Each run gets a microVM of its own: judged
before it starts, watched while it lives, gone without a trace when it ends.`,
		Example: `  tartarus run -- echo hello       # the first run prepares what is missing
  tartarus run --template debian -- python3 -c 'print(40+2)'
  echo 'print(1)' | tartarus run --template debian --timeout 10s -- python3 -
  tartarus up                      # a server, on a Unix socket and 127.0.0.1:7777
  tartarus ps                      # what it runs
  tartarus doctor                  # what this host can do`,
		SilenceUsage:       true,
		SilenceErrors:      true,
		DisableSuggestions: true, // unknown makes them
		Version:            a.cfg.Version,
		Args:               cobra.ArbitraryArgs,
		RunE:               group,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			a.began = true
			if withoutSettings(c) {
				return nil
			}
			return a.settle(c)
		},
	}
	root.SetVersionTemplate("tartarus {{.Version}}\n")
	f := root.PersistentFlags()
	f.SortFlags = false
	settingFlag(f, &a.server, "server", "")
	settingFlag(f, &a.tokenFile, "token-file", "")
	settingFlag(f, &a.stateDir, "state", "")
	settingFlag(f, &a.verbose, "verbose", "v")
	a.addCommands(root)
	return root
}

func (a *app) addCommands(root *cobra.Command) {
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"run", "Run and watch:", []*cobra.Command{
			a.runCommand(), a.psCommand(), a.inspectCommand(), a.logsCommand(), a.eventsCommand(), a.waitCommand(), a.killCommand(),
		}},
		{"host", "This host:", []*cobra.Command{a.upCommand(), a.setupCommand(), a.templateCommand(), a.doctorCommand(), a.benchCommand()}},
		{"operate", "Operate a server (admin):", []*cobra.Command{a.nodesCommand(), a.auditCommand(), a.policyCommand(), a.tokenCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.id
		}
		root.AddCommand(g.commands...)
	}
	root.AddCommand(a.versionCommand())
	root.AddCommand(topics()...)
	a.dressHelp(root)
}

// env is the value of an environment variable; "" if it is not set.
func (a *app) env(name string) string {
	v, _ := a.io.Lookup(name)
	return v
}

// withoutSettings reports whether no setting matters to c: a file that is
// malformed must not keep people from reading what would be right.
func withoutSettings(c *cobra.Command) bool {
	switch c.Name() {
	case "help", "version", "completion":
		return true
	}
	return c.HasParent() && c.Parent().Name() == "completion"
}
