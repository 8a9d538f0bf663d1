// Package scripts holds the command line's manual by example: scripts that are
// run as they stand, with real VMs.
//
// Beside what testscript knows (exec, stdin, stdout, cmp, …) a script may say
//
//	exits CODE PROGRAM [ARG…]  run it; fail unless it exits with CODE
//	up [FLAG…]                 start `tartarus up`; $URL and $TOKEN_FILE are its
//	down                       end it, as at the end of the script, and fail if it fails
//	trim FILE VARIABLE         put a file's text into a variable
//	empty DIR                  fail if something is in the folder
//	until TEXT PROGRAM [ARG…]  run it again and again, until it prints TEXT
//	gobuild PACKAGE FILE       build a program of this repository, whose folder is $REPO
//	certificate NAME…          make cert.pem and key.pem for 127.0.0.1 and the names
//
// Each script has a state folder of its own, $TARTARUS_STATE, with template
// base made. After it nothing of its VMs may be left.
package scripts_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/testkit"
	"github.com/tartarus-vm/tartarus/test/realvm"
)

func TestMain(m *testing.M) {
	launcher.Main()
	testscript.Main(leakless{m}, map[string]func(){
		"tartarus": func() {
			os.Exit(cli.Main(context.Background(), cli.Config{
				Version: "1.2.3",
				IO:      cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv},
				Inside:  assembly.Inside(),
			}, os.Args[1:]))
		},
	})
}

// leakless fails when the tests leave a goroutine behind.
type leakless struct{ m *testing.M }

func (l leakless) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// TestScripts runs each script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 ".",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		WorkdirRoot:         t.TempDir(), // else a run of some scripts leaves a folder behind
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "up": up, "down": down, "trim": trim, "empty": empty, "until": until,
			"gobuild": gobuild, "certificate": certificate,
		},
	})
}

// prepared is a state folder with everything made, kept in the user's cache
// because the kernel is a download.
var prepared = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "tartarus", "e2e-base")
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	return dir, assembly.Inside().Setup(context.Background(), cli.SetupOptions{StateDir: dir, Templates: []string{"base"}})
})

func setup(env *testscript.Env) error {
	from, err := prepared()
	if err != nil {
		return fmt.Errorf("preparing: %w (is everything installed? scripts/deps.sh run test)", err)
	}
	// Not below the script's own folder: the path of a socket is bounded.
	top, err := os.MkdirTemp("", "tartarus-script-")
	if err != nil {
		return err
	}
	state := filepath.Join(top, "state")
	env.Defer(func() {
		left := leftovers(state)
		if err := os.RemoveAll(top); err != nil {
			left = append(left, err.Error())
		}
		if len(left) > 0 {
			env.T().Fatal("left behind: " + strings.Join(left, "; "))
		}
	})
	env.Setenv("TARTARUS_STATE", state)
	repo, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	env.Setenv("REPO", repo)
	return realvm.CopyState(from, state)
}

// leftovers are processes, mounts and folders of VMs on the state.
func leftovers(state string) []string {
	inv, err := testkit.TakeInventory(testkit.Scope{Mark: state, Dirs: []string{state}})
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for _, line := range inv {
		if strings.HasPrefix(line, "process ") || strings.HasPrefix(line, "mount ") || strings.Contains(line, "/sandboxes/") || strings.Contains(line, "/local/") {
			left = append(left, line)
		}
	}
	return left
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	got := 0
	if exit != nil {
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// server is the up of a script.
type server struct {
	cmd  *exec.Cmd
	said chan struct{} // closed when its stderr has ended
}

// servers are the ups that run, by their state folder.
var servers sync.Map

// startPatience bounds the start of an up on a busy machine.
const startPatience = time.Minute

func up(ts *testscript.TestScript, _ bool, args []string) {
	c := exec.Command("tartarus", append([]string{"up", "--listen", "127.0.0.1:0"}, args...)...)
	state := ts.Getenv("TARTARUS_STATE")
	c.Env = append(os.Environ(), "TARTARUS_STATE="+state, "XDG_CONFIG_HOME=")
	c.Dir = ts.MkAbs(".")
	stderr, err := c.StderrPipe()
	ts.Check(err)
	ts.Check(c.Start())
	s := &server{cmd: c, said: make(chan struct{})}
	servers.Store(state, s)
	ts.Defer(func() { down(ts, false, nil) })
	url := make(chan string, 1)
	go func() {
		defer close(s.said)
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			if addr, ok := strings.CutPrefix(sc.Text(), "tartarus: listening on http"); ok {
				url <- "http" + addr
			}
		}
	}()
	timeout := time.NewTimer(startPatience)
	defer timeout.Stop()
	select {
	case u := <-url:
		ts.Setenv("URL", u)
	case <-s.said:
		ts.Fatalf("the server ended before it was up")
	case <-timeout.C:
		ts.Fatalf("the server is not up after %v", startPatience)
	}
	ts.Setenv("TOKEN_FILE", filepath.Join(state, "admin-token"))
}

func down(ts *testscript.TestScript, _ bool, _ []string) {
	v, running := servers.LoadAndDelete(ts.Getenv("TARTARUS_STATE"))
	if !running {
		return
	}
	s := v.(*server)
	ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
	<-s.said
	ts.Check(s.cmd.Wait())
}

func trim(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: trim FILE VARIABLE")
	}
	ts.Setenv(args[1], strings.TrimSpace(ts.ReadFile(args[0])))
}

// until is for what another process does in its own time.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until TEXT PROGRAM [ARG…]")
	}
	for end := time.Now().Add(startPatience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), args[0]) {
			ts.Check(err)
			return
		}
	}
	ts.Fatalf("%v did not print %q within %v", args[1:], args[0], startPatience)
}

func empty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: empty DIR")
	}
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(entries) > 0 {
		ts.Fatalf("%s is not empty: %v", args[0], entries)
	}
}
