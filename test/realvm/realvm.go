// Package realvm is the harness of tests that go the whole road on real VMs:
// command line, server and node, each in a process of its own that can be
// killed.
package realvm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/term"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// roleVar makes this binary play another part: the command line, or a server
// whose orders to execute are written to ordersVar's file.
const (
	roleVar   = "TARTARUS_E2E_ROLE"
	ordersVar = "TARTARUS_E2E_ORDERS"
	policyVar = "TARTARUS_E2E_POLICY"
)

// In the lab, where KVM works, these tests run on Firecracker.
const (
	labVar         = "TARTARUS_LAB"             // says that this is the lab; the tests TestLab… are for there
	firecrackerVar = "TARTARUS_E2E_FIRECRACKER" // its path; without, the driver is what fits this machine
	stateVar       = "TARTARUS_E2E_STATE"       // a state folder in which everything is made
)

// VMM is what VMs run in.
func VMM() cli.VMMOptions {
	if path := os.Getenv(firecrackerVar); path != "" {
		return cli.VMMOptions{Driver: "firecracker", Firecracker: path, InsecureTestVMM: true}
	}
	return cli.VMMOptions{}
}

// Main runs the tests, or plays the part that the environment names.
func Main(m *testing.M) {
	launcher.Main()
	switch os.Getenv(roleVar) {
	case "cli":
		os.Exit(cli.Main(context.Background(), cli.Config{
			Version: "test",
			IO: cli.IO{
				In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv,
				OutTerminal: term.IsTerminal(int(os.Stdout.Fd())), ErrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
			},
			Inside: assembly.Inside(),
		}, os.Args[1:]))
	case "server":
		os.Exit(serve())
	}
	flag.Parse()
	if os.Getenv(labVar) == "" {
		if err := flag.Set("test.skip", "^TestLab"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// serve is an up whose driver is watched.
func serve() int {
	orders, err := os.OpenFile(os.Getenv(ordersVar), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { // the test's end of standard input is the server's life
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	err = assembly.Run(ctx, assembly.Config{
		Listen: "127.0.0.1:0", Policy: os.Getenv(policyVar), VMM: VMM(),
		Driver: func(d tartarus.Driver) tartarus.Driver {
			return testkit.WatchOrders(d, func(id sandbox.ID) { fmt.Fprintln(orders, id) })
		},
	}, func(r assembly.Running) { fmt.Println(r.Addresses[1]) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Prepared is a state folder with everything made for one template, kept in
// the user's cache because the kernel is a download.
func Prepared(template string) (string, error) {
	if dir := os.Getenv(stateVar); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "tartarus", "e2e-"+template)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	return dir, assembly.Inside().Setup(context.Background(), cli.SetupOptions{StateDir: dir, Templates: []string{template}})
}

var preparedBase = sync.OnceValues(func() (string, error) { return Prepared("base") })

// NewState is a state folder of the test's own, prepared. Its path is short
// and open to the user it is for.
func NewState(t *testing.T) string {
	t.Helper()
	from, err := preparedBase()
	if err != nil {
		t.Fatalf("preparing: %v (is everything installed? scripts/deps.sh run test)", err)
	}
	return OwnState(t, from)
}

// OwnState is a copy of a prepared state folder for the test alone.
func OwnState(t *testing.T, from string) string {
	t.Helper()
	top, err := os.MkdirTemp("", "tartarus-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(top); err != nil {
			t.Errorf("the state folder is not empty: %v", err)
		}
	})
	state := filepath.Join(top, "state")
	if err := CopyState(from, state); err != nil {
		t.Fatal(err)
	}
	return state
}

// CopyState copies a state folder that nobody uses.
func CopyState(from, to string) error {
	return filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		dest := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.MkdirAll(dest, 0o700)
		}
		if err := testkit.CopyFile(path, dest); err != nil || !strings.Contains(dest, "/blobs/blobs/") {
			return err
		}
		return os.Chmod(dest, 0o444)
	})
}

// Result is how a command line ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Command is this binary as the command line.
func Command(ctx context.Context, state string, args ...string) *exec.Cmd {
	if o := VMM(); o.Driver != "" && (args[0] == "run" || args[0] == "up") {
		args = append([]string{args[0], "--driver", o.Driver, "--firecracker", o.Firecracker, "--insecure-test-vmm"}, args[1:]...)
	}
	c := exec.CommandContext(ctx, "/proc/self/exe", args...)
	c.Env = append(os.Environ(), roleVar+"=cli", "TARTARUS_STATE="+state)
	return c
}

// Finish runs c and returns what it said.
func Finish(t *testing.T, c *exec.Cmd) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", c.Args, err)
	}
	return Result{stdout.String(), stderr.String(), c.ProcessState.ExitCode()}
}

// Patience bounds each command: VMs boot in seconds, several at once on a busy
// machine in many.
func Patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// NothingLeft fails when a process of the state's VMs, a mount below it, or a
// sandbox's folder is left.
func NothingLeft(t *testing.T, state string) {
	t.Helper()
	inv, err := testkit.TakeInventory(testkit.Scope{Mark: state, Dirs: []string{state}})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range inv {
		if strings.HasPrefix(line, "process ") || strings.HasPrefix(line, "mount ") ||
			strings.Contains(line, "/sandboxes/") || strings.Contains(line, "/local/") {
			t.Errorf("left: %s", line)
		}
	}
}
