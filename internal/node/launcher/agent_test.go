package launcher

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// job is what an agent is to do: start the probe with attempts.
type job struct {
	Dir      string
	Program  string
	Attempts []string // AGENT and SIBLING stand for pids
	Require  []string
	UID      int
	Lifeline bool
	Deny     uint64 // clone flags that this host refuses
	More     *Spec  `json:"-"` // what the probe gets beyond the usual; in this process only
	Hold     bool   // tell of the VMM once it waits, and wait for stdin's end
}

// outcome is what an agent tells.
type outcome struct {
	Err       string
	Agent     int // its pid
	Outer     Identity
	VMM       Identity
	ABI       int
	Isolation sandbox.Isolation
	Results   map[string]result
	Exit      Exit
	Stderr    string
}

type result struct{ Attempt, Error, Text string }

const unprivileged = 65534

// agentMain is the agent's part, in a process of its own.
func agentMain() {
	var j job
	if err := json.Unmarshal([]byte(os.Getenv("LAUNCHER_TEST_AGENT")), &j); err != nil {
		panic(err)
	}
	enc := json.NewEncoder(os.Stdout)
	if err := deny(j.Deny); err != nil {
		_ = enc.Encode(outcome{Err: err.Error()})
		return
	}
	out, err := j.do(context.Background(), func(o outcome) { _ = enc.Encode(o) })
	if err != nil {
		out.Err = err.Error()
	}
	_ = enc.Encode(out)
}

// deny makes this host refuse namespaces, as some do.
func deny(flags uint64) error {
	if flags == 0 {
		return nil
	}
	runtime.LockOSThread() // all threads get the filter, but no_new_privs is this one's
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{{Action: seccomp.ActionErrno, NamesWithCondtions: []seccomp.NameWithConditions{
			{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: flags}}},
		}}},
	}})
}

// do starts the probe, and a sibling of it where an attempt needs one.
func (j job) do(ctx context.Context, tell func(outcome)) (outcome, error) {
	out := outcome{Agent: os.Getpid(), Results: map[string]result{}}
	sibling := 0
	if strings.Contains(strings.Join(j.Attempts, " "), "SIBLING") {
		dir := filepath.Join(j.Dir, "sibling")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return out, err
		}
		v, err := j.start(ctx, dir, []string{"forever"})
		if err != nil {
			return out, fmt.Errorf("the sibling: %w", err)
		}
		defer v.end()
		if _, err := v.read(); err != nil {
			return out, err
		}
		sibling = v.p.VMM().Pid
	}
	var attempts []string
	for _, a := range j.Attempts {
		a = strings.ReplaceAll(a, "AGENT", strconv.Itoa(os.Getpid()))
		attempts = append(attempts, strings.ReplaceAll(a, "SIBLING", strconv.Itoa(sibling)))
	}
	v, err := j.start(ctx, j.Dir, attempts)
	if err != nil {
		return out, err
	}
	defer v.end()
	out.Outer, out.VMM, out.ABI, out.Isolation = v.p.Identity(), v.p.VMM(), v.p.LandlockABI(), v.p.Isolation()
	for {
		r, err := v.read()
		if err != nil {
			break
		}
		out.Results[r.Attempt] = r
		if j.Hold && r.Attempt == "waiting" {
			tell(out)
			_, _ = io.Copy(io.Discard, os.Stdin)
			return out, nil
		}
	}
	select {
	case <-v.p.Done():
	case <-time.After(10 * time.Second):
		return out, fmt.Errorf("the probe did not end")
	}
	out.Exit, out.Stderr = v.p.Exit(), v.p.Stderr()
	return out, nil
}

// vm is a probe that was started.
type vm struct {
	p       *Process
	answers *bufio.Scanner
	answerR *os.File
	hold    *os.File // its end ends a probe that waits
	life    *os.File // the other end of its lifeline
}

func (v *vm) read() (result, error) {
	var r result
	if !v.answers.Scan() {
		return r, io.EOF
	}
	return r, json.Unmarshal(v.answers.Bytes(), &r)
}

func (v *vm) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if v.p != nil {
		_ = v.p.Kill(ctx)
	}
	for _, f := range []*os.File{v.answerR, v.hold, v.life} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// blockingPipe is for the probe, which waits by reading: os.Pipe's do not
// block, and Start leaves the mode alone.
func blockingPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w"), nil
}

func (j job) start(ctx context.Context, dir string, attempts []string) (*vm, error) {
	answerR, answerW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer answerW.Close()
	holdR, holdW, err := blockingPipe()
	if err != nil {
		return nil, err
	}
	defer holdR.Close()
	var fds [1]*os.File
	v := &vm{answers: bufio.NewScanner(answerR), answerR: answerR, hold: holdW}
	s := Spec{
		Argv: append([]string{j.Program}, attempts...), Env: []string{"GOMAXPROCS=1"}, Dir: dir, Files: []*os.File{answerW, holdR},
		UID: j.UID, GID: j.UID, Require: j.Require, ReadOnly: []string{filepath.Dir(j.Program)},
	}
	if j.Lifeline {
		if fds[0], v.life, err = os.Pipe(); err != nil {
			return nil, err
		}
		defer fds[0].Close()
		s.Lifeline = fds[0]
	}
	// So that a filter is not what stops what other layers are to stop.
	s.Syscalls = []string{"kill", "mkdir", "mkdirat", "unlinkat", "sendto"}
	if m := j.More; m != nil {
		s.ReadOnly, s.Devices, s.Cgroup, s.Network, s.Files = append(s.ReadOnly, m.ReadOnly...), m.Devices, m.Cgroup, m.Network, append(s.Files, m.Files...)
		if m.Lifeline != nil {
			s.Lifeline = m.Lifeline
		}
	}
	if v.p, err = Start(ctx, s); err != nil {
		v.end()
		return nil, err
	}
	return v, nil
}

// here does a job in this process.
func here(t *testing.T, j job) outcome {
	t.Helper()
	out, err := j.do(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// agent is an agent in a process of its own, which may be killed.
type agent struct {
	cmd *exec.Cmd
	out *bufio.Reader
	in  io.Closer
}

func startAgent(t *testing.T, j job, uid int) *agent {
	t.Helper()
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(programs.agent)
	c.Env = []string{"LAUNCHER_TEST_AGENT=" + string(b)}
	c.Stderr = os.Stderr
	c.Dir = "/"
	if uid != os.Getuid() {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	a := &agent{cmd: c, out: bufio.NewReader(stdout), in: in}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return a
}

// hear is the next thing that the agent tells.
func (a *agent) hear(t *testing.T) outcome {
	t.Helper()
	line, err := a.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the agent said %q: %v", line, err)
	}
	var o outcome
	if err := json.Unmarshal(line, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// kill is SIGKILL to the agent alone.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = a.cmd.Wait()
}

// folder is a private folder of a user's.
func folder(t *testing.T, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	return dir
}

// gone fails unless a process ends within a moment. It wakes by the process's
// own end; what is only seen from afar has no other event.
func gone(t *testing.T, what string, id Identity) {
	t.Helper()
	fd, err := id.open()
	if err != nil {
		return // ErrGone
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := waitPidfd(ctx, fd); err != nil {
		t.Errorf("%s (process %d) still runs: %v", what, id.Pid, err)
	}
}
