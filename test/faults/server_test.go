package faults_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/hecatoncheir"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// firecrackerVar is the path of a Firecracker for the sampled cells on real
// VMs; without, they run on what fits this machine.
const firecrackerVar = "TARTARUS_FAULTS_FIRECRACKER"

// standbys is how many VMs of a shape wait at most.
const standbys = 2

// plan is what a server does. Its files are outside of the state.
type plan struct {
	State  string
	Policy string
	Orders string // the orders to execute, one line each
	Passed string // the named steps that were passed, one line each
	Real   bool   // VMs of the driver that fits the host; else fakes
	Refuse bool   // its node refuses the third assignment, as one without room
	UIDs   string // of VMMs
	Blow   blow
}

// blow is what befalls a server at a named step. The zero value is none.
type blow struct {
	Step  string
	Done  bool          // after the step, else before
	Nth   int           // at which passing
	Errno syscall.Errno // what the step fails with; 0: the process dies, as of kill -9
}

// serve is an up under a plan.
func serve(text string) int {
	p := plan{}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	w := &watch{plan: p}
	var err error
	for _, f := range []struct {
		to   **os.File
		name string
	}{{&w.orders, p.Orders}, {&w.passed, p.Passed}} {
		if *f.to, err = os.OpenFile(f.name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { // the end of standard input is the order to stop
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	cfg := assembly.Config{
		StateDir: p.State, Policy: p.Policy, Listen: "127.0.0.1:0", Standby: standbys, VMM: cli.VMMOptions{UIDs: p.UIDs, Driver: "qemu"},
		Driver: w.driver, Ledger: func(l ledger.Ledger) ledger.Ledger { return brittle{l, w} },
		Passing: func(s hecatoncheir.Passing) error { return w.pass(s.Step, s.Of, s.Done) },
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if p.Real { // whose helpers are known by the sandbox that they name
		cfg.Standby = 0
	}
	if path := os.Getenv(firecrackerVar); path != "" && p.Real {
		cfg.VMM.Driver, cfg.VMM.Firecracker, cfg.VMM.InsecureTestVMM = "firecracker", path, true
	}
	if err := assembly.Run(ctx, cfg, func(r assembly.Running) { fmt.Println(r.Addresses[1]) }); err != nil {
		fmt.Fprintln(os.Stderr, "up:", err)
		return 1
	}
	return 0
}

// watch notes what is passed, and deals the blow.
type watch struct {
	plan           plan
	orders, passed *os.File

	mu      sync.Mutex
	passing int // of the blow's step, on the blow's side
	assigns int
}

func (w *watch) driver(chosen tartarus.Driver) tartarus.Driver {
	if !w.plan.Real {
		chosen = fakevm.New(fakevm.Config{Snapshots: true})
	}
	return testkit.WatchOrders(chosen, func(id sandbox.ID) { fmt.Fprintln(w.orders, id) })
}

// pass is called before and after each named step.
func (w *watch) pass(step string, of sandbox.ID, done bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	line := passing{Step: step, Of: string(of), Done: done}
	b := w.plan.Blow
	if step == b.Step && done == b.Done {
		w.passing++
		line.Struck = w.passing == b.Nth
	}
	text, err := json.Marshal(line)
	if err == nil {
		_, err = w.passed.Write(append(text, '\n'))
	}
	if err != nil {
		panic(err)
	}
	if !line.Struck {
		return w.refuse(step, done)
	}
	if b.Errno == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nobody goes on until that has come
	}
	err = &os.PathError{Op: "write", Path: "what the blow fell on", Err: b.Errno}
	if strings.HasPrefix(step, "ledger ") || step == "accept" || step == "join" || step == "report end" {
		return fault.Wrap(fault.Unavailable, err, "%s failed", step) // as who carries it out would say
	}
	return err
}

// refuse lets the node have no room for its third assignment.
func (w *watch) refuse(step string, done bool) error {
	if step != "journal assign" || done || !w.plan.Refuse {
		return nil
	}
	if w.assigns++; w.assigns == 3 {
		return fault.New(fault.QuotaExceeded, "the node has no room, says the test")
	}
	return nil
}

// passing is a line of Passed.
type passing struct {
	Step   string
	Of     string `json:",omitempty"`
	Done   bool   `json:",omitempty"`
	Struck bool   `json:",omitempty"` // here the blow fell
}

// server is a process that serves.
type server struct {
	cmd        *exec.Cmd
	url, token string
	life       io.Closer     // its standard input
	gone       chan struct{} // closed when it has ended
	err        error         // how, after gone
	log        *tail
}

// start starts a server; an error says that it ended before it answered, and
// the server is one that is gone.
func start(p plan) (*server, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	s := &server{cmd: exec.Command("/proc/self/exe"), gone: make(chan struct{}), log: &tail{}}
	s.cmd.Env = append(os.Environ(), roleVar+"="+string(text), "TARTARUS_STATE="+p.State)
	s.cmd.Args = append(s.cmd.Args, p.State) // so that an inventory finds it
	s.cmd.Stderr = s.log
	if s.life, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, rerr := bufio.NewReader(out).ReadString('\n')
	go func() {
		_, _ = io.Copy(io.Discard, out)
		s.err = s.cmd.Wait()
		close(s.gone)
	}()
	if rerr != nil {
		<-s.gone
		return s, fmt.Errorf("the server ended before it answered: %w: %s", s.err, s.log.last())
	}
	s.url = strings.TrimSpace(line)
	token, err := os.ReadFile(filepath.Join(p.State, "admin-token"))
	s.token = strings.TrimSpace(string(token))
	if err != nil {
		s.kill()
	}
	return s, err
}

// kill ends it as kill -9 does.
func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may be gone
	<-s.gone
	_ = s.life.Close()
}

// stop ends it in order.
func (s *server) stop() error {
	_ = s.life.Close() // it may be gone
	<-s.gone
	if s.err != nil {
		return fmt.Errorf("the server ended: %w: %s", s.err, s.log.last())
	}
	return nil
}

func (s *server) isGone() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// died reports whether it is gone by a SIGKILL.
func (s *server) died() bool {
	if !s.isGone() {
		return false
	}
	status, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if *verbose {
		_, _ = os.Stderr.Write(p)
	}
	t.b = append(t.b, p...)
	if n := len(t.b) - tailBytes; n > 0 {
		t.b = append([]byte(nil), t.b[n:]...)
	}
	return len(p), nil
}

// last is the last line.
func (t *tail) last() string {
	lines := strings.Split(strings.TrimSpace(t.text()), "\n")
	return lines[len(lines)-1]
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.Clone(t.b))
}
