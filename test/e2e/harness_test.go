// Package e2e holds the tests of the whole road, on real VMs: command line,
// server and node, each in a process of its own that can be killed.
package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

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

// vmm is what VMs run in.
func vmm() cli.VMMOptions {
	if path := os.Getenv(firecrackerVar); path != "" {
		return cli.VMMOptions{Driver: "firecracker", Firecracker: path, InsecureTestVMM: true}
	}
	return cli.VMMOptions{}
}

func TestMain(m *testing.M) {
	launcher.Main()
	switch os.Getenv(roleVar) {
	case "cli":
		os.Exit(cli.Main(context.Background(), cli.Config{
			Version: "test",
			IO:      cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv},
			Inside:  assembly.Inside(),
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
		Listen: "127.0.0.1:0", Policy: os.Getenv(policyVar), VMM: vmm(),
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

// prepared is a state folder with everything made for one template, kept in
// the user's cache because the kernel is a download.
func prepared(template string) (string, error) {
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

var preparedBase = sync.OnceValues(func() (string, error) { return prepared("base") })

// newState is a state folder of the test's own, prepared. Its path is short
// and open to the user it is for.
func newState(t *testing.T) string {
	t.Helper()
	from, err := preparedBase()
	if err != nil {
		t.Fatalf("preparing: %v (is everything installed? scripts/deps.sh run test)", err)
	}
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
	if err := os.CopyFS(state, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(state, private); err != nil {
		t.Fatal(err)
	}
	return state
}

// private gives folders and files the modes that CopyFS did not keep.
func private(path string, d os.DirEntry, err error) error {
	switch {
	case err != nil:
		return err
	case d.IsDir():
		return os.Chmod(path, 0o700)
	case strings.Contains(path, "/blobs/blobs/"):
		return os.Chmod(path, 0o444)
	}
	return os.Chmod(path, 0o600)
}

// result is how a command line ended.
type result struct {
	stdout, stderr string
	code           int
}

// tartarusCmd is this binary as the command line.
func tartarusCmd(ctx context.Context, state string, args ...string) *exec.Cmd {
	if o := vmm(); o.Driver != "" && (args[0] == "run" || args[0] == "up") {
		args = append([]string{args[0], "--driver", o.Driver, "--firecracker", o.Firecracker, "--insecure-test-vmm"}, args[1:]...)
	}
	c := exec.CommandContext(ctx, "/proc/self/exe", args...)
	c.Env = append(os.Environ(), roleVar+"=cli", "TARTARUS_STATE="+state)
	return c
}

// finish runs c and returns what it said.
func finish(t *testing.T, c *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", c.Args, err)
	}
	return result{stdout.String(), stderr.String(), c.ProcessState.ExitCode()}
}

// patience bounds each command: VMs boot in seconds, several at once on a busy
// machine in many.
func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// server is an up in a process of its own.
type server struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	token  string
	life   io.Closer // its standard input
	stderr *bytes.Buffer
}

// startServer starts an up on state and waits until it answers.
func startServer(t *testing.T, state, orders, policy string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command("/proc/self/exe"), stderr: &bytes.Buffer{}}
	s.cmd.Env = append(os.Environ(), roleVar+"=server", "TARTARUS_STATE="+state, ordersVar+"="+orders, policyVar+"="+policy)
	s.cmd.Stderr = s.stderr
	life, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.life = life
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var line bytes.Buffer
	for b := make([]byte, 1); ; {
		if _, err := out.Read(b); err != nil {
			_ = s.cmd.Wait()
			t.Fatalf("the server ended: %s", s.stderr)
		}
		if b[0] == '\n' {
			break
		}
		line.WriteByte(b[0])
	}
	s.url = line.String()
	token, err := os.ReadFile(filepath.Join(state, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	s.token = strings.TrimSpace(string(token))
	t.Cleanup(s.kill) // does nothing after stop
	return s
}

// kill ends the server as kill -9 does.
func (s *server) kill() {
	if s.cmd.ProcessState != nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGKILL)
	_ = s.cmd.Wait()
}

// stop ends the server in order.
func (s *server) stop() {
	s.t.Helper()
	s.life.Close()
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the server ended with %v: %s", err, s.stderr)
	}
}

// call is one request, whole.
func (s *server) call(method, path, body string) (int, []byte) {
	s.t.Helper()
	resp := s.open(patience(s.t), method, path, body)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, b
}

func (s *server) open(ctx context.Context, method, path, body string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	resp, err := quick.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// quick keeps no connections, so that none outlives its test.
var quick = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// record is what the tests read of a record.
type record struct {
	ID         string    `json:"id"`
	State      string    `json:"state"`
	AssignedAt time.Time `json:"assigned_at"`
	StartedAt  time.Time `json:"started_at"`
	EndedAt    time.Time `json:"ended_at"`
	Exit       struct {
		Cause  string `json:"cause"`
		Source string `json:"source"`
		Code   *int   `json:"code"`
	} `json:"exit"`
	Isolation struct {
		Accelerator string   `json:"accelerator"`
		Confinement []string `json:"confinement"`
		Missing     []string `json:"missing"`
	} `json:"isolation"`
	Runtime struct {
		Driver  string `json:"driver"`
		Version string `json:"version"`
		Attempt int    `json:"attempt"`
	} `json:"runtime"`
	Usage struct {
		LogBytes     float64 `json:"log_bytes"`
		LogTruncated bool    `json:"log_truncated"`
	} `json:"usage"`
}

func (s *server) run(body string) record {
	s.t.Helper()
	code, b := s.call("POST", "/sandbox/run", body)
	if code != http.StatusAccepted {
		s.t.Fatalf("POST /sandbox/run: %d %s", code, b)
	}
	return decode[record](s.t, b)
}

func (s *server) get(id string) record {
	s.t.Helper()
	code, b := s.call("GET", "/sandbox/"+id, "")
	if code != http.StatusOK {
		s.t.Fatalf("GET /sandbox/%s: %d %s", id, code, b)
	}
	return decode[record](s.t, b)
}

func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

// ended waits for the end of a sandbox, by its events.
func (s *server) ended(id string) record {
	s.t.Helper()
	s.follow(id, func(state string) bool { return false })
	return s.get(id)
}

// follow reads a sandbox's states until it has ended or enough says so.
func (s *server) follow(id string, enough func(state string) bool) {
	s.t.Helper()
	resp := s.open(patience(s.t), "GET", "/sandbox/"+id+"/events?follow=true", "")
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var e struct {
			State string          `json:"state"`
			Error json.RawMessage `json:"error"`
		}
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil || e.Error != nil {
			s.t.Fatalf("events of %s: %v %s", id, err, e.Error)
		}
		if enough(e.State) {
			return
		}
	}
}

// nothingLeft fails when a process of the state's VMs, a mount below it, or a
// sandbox's folder is left.
func nothingLeft(t *testing.T, state string) {
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
