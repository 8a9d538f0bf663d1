package hecatoncheir

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestALifeFromEndToEnd(t *testing.T) {
	w := newWorld(t, options{})
	as := w.assign(job{command: []string{"exit", "3"}})
	got := w.c.awaitEnd(t, as)
	e := got.end.Exit
	if e.Cause != sandbox.Exited || e.Code == nil || *e.Code != 3 || e.Source != sandbox.FromGuest {
		t.Errorf("exit %+v", e)
	}
	p := got.facts
	if p.Runtime.Driver != fakevm.Name || p.Runtime.Start != "cold" || p.Runtime.Attempt != 1 || p.Isolation.Accelerator != "none" || p.VMReady.IsZero() {
		t.Errorf("facts %+v", p)
	}
	if !slices.Contains(got.states, sandbox.Running) || slices.Contains(got.states, sandbox.Stopping) {
		t.Errorf("states %v, want running and no stopping", got.states)
	}
	if got.started.IsZero() || got.end.At.Before(got.started) {
		t.Errorf("started %v, ended %v", got.started, got.end.At)
	}
	w.nothingLeft()
	if n := w.executed.count(as.Sandbox); n != 1 {
		t.Errorf("executed %d times", n)
	}
}

func TestOutputInputAndFiles(t *testing.T) {
	w := newWorld(t, options{})
	for _, c := range []struct {
		name string
		job  job
		log  string
	}{
		{"stdout", job{command: []string{"echo", "out"}}, "stdout:out\n"},
		{"stderr", job{command: []string{"warn", "err"}}, "stderr:err\n"},
		{"stdin", job{command: []string{"cat"}, secrets: sandbox.Secrets{Stdin: []byte("hi")}}, "stdout:hi"},
		{"empty stdin", job{command: []string{"cat"}}, ""},
		{"file", job{
			command: []string{"cat", "/work/a"},
			secrets: sandbox.Secrets{Files: []sandbox.File{{Path: "/work/a", Mode: 0o644, Data: []byte("content")}}},
		}, "stdout:content"},
		{"env", job{command: []string{"env", "NAME"}, secrets: sandbox.Secrets{Env: map[string]string{"NAME": "value"}}}, "stdout:value\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.c.awaitEnd(t, w.assign(c.job))
			if e := got.end.Exit; e.Cause != sandbox.Exited || *e.Code != 0 {
				t.Errorf("exit %+v", e)
			}
			if log := w.log(got.end); log != c.log {
				t.Errorf("log %q, want %q", log, c.log)
			}
			if (got.facts.FirstOutput.IsZero()) != (c.log == "") {
				t.Errorf("first output at %v", got.facts.FirstOutput)
			}
		})
	}
	w.nothingLeft()
}

func TestAFloodIsCapped(t *testing.T) {
	w := newWorld(t, options{})
	got := w.c.awaitEnd(t, w.assign(job{
		command: []string{"flood", "4194304"},
		change:  func(r *sandbox.Resolved) { r.LogBytes = 100000 },
	}))
	u := got.end.Exit.Usage
	if u.LogBytes != 100000 || !u.LogTruncated || got.end.Exit.Cause != sandbox.Exited {
		t.Errorf("%+v", got.end.Exit)
	}
	if log := w.log(got.end); !strings.HasSuffix(log, "truncated:") {
		t.Error("the log has no mark")
	}
	w.nothingLeft()
}

// TestEachStepFails fails each step in turn, before and after acceptance.
func TestEachStepFails(t *testing.T) {
	steps := []string{"execute"}
	for _, s := range preparation {
		steps = append(steps, s.name)
	}
	for _, name := range steps {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{fail: func(step string) error {
				if step == name {
					return fault.New(fault.Unavailable, "%s is broken", name)
				}
				return nil
			}})
			as := w.assign(job{command: []string{"true"}, change: withGrants})
			got := w.c.awaitEnd(t, as)
			e := got.end.Exit
			if e.Cause != sandbox.StartFailed || e.Source != sandbox.FromHost || !strings.Contains(e.Message, name+" is broken") {
				t.Errorf("exit %+v", e)
			}
			if slices.Contains(got.states, sandbox.Running) || got.end.LogDigest != "" {
				t.Errorf("it seems to have run: %+v", got)
			}
			w.nothingLeft()
			if n := w.executed.count(as.Sandbox); n != 0 {
				t.Errorf("executed %d times", n)
			}
		})
	}
}

// TestStartsThatFailByThemselves has what a driver, a guest or a store may
// refuse.
func TestStartsThatFailByThemselves(t *testing.T) {
	for _, c := range []struct {
		name    string
		script  fakevm.Script
		config  func(*Config)
		command string
		files   bool
		message string
	}{
		{name: "driver", script: fakevm.Script{StartErr: fault.New(fault.Unavailable, "no such VMM")}, message: "no such VMM"},
		{name: "driver without a kind", script: fakevm.Script{StartErr: errors.New("/var/lib/secret path")}, message: "the VM could not be started"},
		{name: "full disk", script: fakevm.Script{StartErr: &os.PathError{Op: "write", Path: "/var/lib/x", Err: syscall.ENOSPC}}, message: "the host's disk is full"},
		{name: "setup", script: fakevm.Script{SetupErr: "no disk"}, message: "the VM could not be started"},
		{name: "file", script: fakevm.Script{PutFileErr: "no room"}, files: true, message: "the VM could not be started"},
		{name: "command", command: "no-such-command", message: "the command could not be started"},
		{name: "never boots", script: fakevm.Script{NeverBoots: true}, message: "did not come up",
			config: func(c *Config) { c.Boot = tartarus.BootPolicy{Attempts: 2, Timeout: 30 * time.Millisecond} }},
		{name: "template", config: func(c *Config) { c.Images = images{missing: true} }, message: "there is no such template"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, options{config: c.config, script: func(int, tartarus.Spec) fakevm.Script { return c.script }})
			j := job{command: []string{"true"}}
			if c.command != "" {
				j.command = []string{c.command}
			}
			if c.files {
				j.secrets.Files = []sandbox.File{{Path: "/a", Data: []byte("x")}}
			}
			got := w.c.awaitEnd(t, w.assign(j))
			e := got.end.Exit
			if e.Cause != sandbox.StartFailed || !strings.Contains(e.Message, c.message) || strings.Contains(e.Message, "/var/lib") {
				t.Errorf("exit %+v", e)
			}
			if slices.Contains(got.states, sandbox.Running) {
				t.Error("told as running")
			}
			w.nothingLeft()
		})
	}
}

func TestABootThatHangsIsTriedAgain(t *testing.T) {
	w := newWorld(t, options{
		script: func(n int, _ tartarus.Spec) fakevm.Script { return fakevm.Script{NeverBoots: n == 1} },
		config: func(c *Config) { c.Boot = tartarus.BootPolicy{Timeout: 100 * time.Millisecond} },
	})
	as := w.assign(job{command: []string{"true"}})
	if got := w.c.awaitEnd(t, as); got.end.Exit.State() != sandbox.Succeeded {
		t.Errorf("exit %+v", got.end.Exit)
	}
	w.nothingLeft()
	if n := w.executed.count(as.Sandbox); n != 1 || w.driver.Started() != 2 {
		t.Errorf("executed %d times in %d VMs", n, w.driver.Started())
	}
}

// TestKillsDuringEachStep kills while a step is being done.
func TestKillsDuringEachStep(t *testing.T) {
	steps := []string{"execute"}
	for _, s := range preparation {
		steps = append(steps, s.name)
	}
	for _, name := range steps {
		t.Run(name, func(t *testing.T) {
			reached, goOn := make(chan struct{}), make(chan struct{})
			w := newWorld(t, options{fail: func(step string) error {
				if step == name {
					close(reached)
					<-goOn
				}
				return nil
			}})
			req, as := w.request(job{command: []string{"sleep", "forever"}, change: withGrants})
			if _, err := w.a.Assign(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			<-reached
			if err := w.kill(req, as, time.Minute); err != nil {
				t.Fatal(err)
			}
			close(goOn)
			got := w.c.awaitEnd(t, as)
			if got.end.Exit.Cause != sandbox.Killed {
				t.Errorf("exit %+v", got.end.Exit)
			}
			w.nothingLeft()
			if n := w.executed.count(as.Sandbox); n != 0 {
				t.Errorf("executed %d times after its kill", n)
			}
		})
	}
}

func TestKillingARunningOne(t *testing.T) {
	for _, c := range []struct {
		name    string
		command []string
		grace   time.Duration
		atLeast time.Duration
	}{
		{"that obeys", []string{"sleep", "forever"}, time.Minute, 0},
		{"without grace", []string{"stubborn"}, 0, 0},
		{"that is stubborn", []string{"stubborn"}, 200 * time.Millisecond, 200 * time.Millisecond},
		{"that is mute", []string{"mute"}, 100 * time.Millisecond, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, options{config: func(c *Config) { c.Death.Tell = 300 * time.Millisecond }})
			req, as := w.request(job{command: c.command})
			if _, err := w.a.Assign(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			w.c.awaitState(t, as, sandbox.Running)
			if c.atLeast > 0 {
				w.awaitOutput(as.Sandbox) // until then it obeys
			}
			begin := time.Now()
			for range 2 { // twice is no error
				if err := w.kill(req, as, c.grace); err != nil {
					t.Fatal(err)
				}
			}
			w.c.awaitState(t, as, sandbox.Stopping)
			got := w.c.awaitEnd(t, as)
			if e := got.end.Exit; e.Cause != sandbox.Killed || e.Source != sandbox.FromHost || e.Code != nil {
				t.Errorf("exit %+v", e)
			}
			if took := time.Since(begin); took < c.atLeast || took > c.atLeast+5*time.Second {
				t.Errorf("it took %v", took)
			}
			if got.end.LogDigest == "" {
				t.Error("its log is not kept")
			}
			w.nothingLeft()
			if err := w.kill(req, as, 0); err != nil {
				t.Errorf("killing an ended one: %v", err)
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	w := newWorld(t, options{})
	got := w.c.awaitEnd(t, w.assign(job{
		command: []string{"sleep", "forever"},
		change:  func(r *sandbox.Resolved) { r.MaxDuration = 150 * time.Millisecond },
	}))
	if e := got.end.Exit; e.Cause != sandbox.MaxDuration || e.Source != sandbox.FromHost {
		t.Errorf("max_duration: %+v", e)
	}
	if ran := got.end.At.Sub(got.started); ran < 150*time.Millisecond || ran > 5*time.Second {
		t.Errorf("it ran for %v", ran)
	}
	w.nothingLeft()
}

func TestStartTimeout(t *testing.T) {
	w := newWorld(t, options{script: func(int, tartarus.Spec) fakevm.Script { return fakevm.Script{BootDelay: time.Hour} }})
	as := w.assign(job{
		command: []string{"true"},
		change:  func(r *sandbox.Resolved) { r.StartTimeout = 100 * time.Millisecond },
	})
	got := w.c.awaitEnd(t, as)
	if e := got.end.Exit; e.Cause != sandbox.StartTimeout || !strings.Contains(e.Message, "100ms") {
		t.Errorf("exit %+v", e)
	}
	w.nothingLeft()
	if n := w.executed.count(as.Sandbox); n != 0 {
		t.Errorf("executed %d times", n)
	}
}

func TestStartTimeoutWhileTheControlPlaneIsSilent(t *testing.T) {
	hold := make(chan struct{})
	w := newWorld(t, options{})
	w.c.onAccept = func(sandbox.Assignment) error { <-hold; return fault.New(fault.Unavailable, "not now") }
	as := w.assign(job{command: []string{"true"}, change: func(r *sandbox.Resolved) { r.StartTimeout = 100 * time.Millisecond }})
	time.AfterFunc(300*time.Millisecond, func() { close(hold) })
	if got := w.c.awaitEnd(t, as); got.end.Exit.Cause != sandbox.StartTimeout {
		t.Errorf("exit %+v", got.end.Exit)
	}
	w.nothingLeft()
}

// vanishing has commands that leave no last word: vanish takes its VM with it,
// quiet waits for its VM's end.
var vanishing = fakevm.Script{Commands: map[string]fakevm.Command{
	"vanish": func(ctx context.Context, p *fakevm.Proc) int {
		p.Mute()
		go p.VM().Crash() // it waits for this command
		<-ctx.Done()
		return 0
	},
	"quiet": func(ctx context.Context, p *fakevm.Proc) int {
		select {
		case <-time.After(100 * time.Millisecond): // the guest has said that it started
		case <-ctx.Done():
		}
		p.Mute()
		<-ctx.Done()
		return 0
	},
}}

// TestGuestsThatGo has guests and VMs that end, lie or fall silent.
func TestGuestsThatGo(t *testing.T) {
	for _, c := range []struct {
		name    string
		command []string
		script  fakevm.Script
		cause   sandbox.Cause
	}{
		{"VMM crashes", []string{"vanish"}, vanishing, sandbox.GuestLost},
		{"VMM crashes later", []string{"quiet"}, fakevm.Script{Commands: vanishing.Commands, EndAfter: 300 * time.Millisecond}, sandbox.GuestLost},
		{"host kills for memory", []string{"quiet"}, fakevm.Script{
			Commands: vanishing.Commands, EndAfter: 300 * time.Millisecond, End: tartarus.Exit{Code: -1, Signal: 9, OOMKill: true},
		}, sandbox.Memory},
		{"VMM takes too much", []string{"sleep", "forever"}, fakevm.Script{
			Sample: func(age time.Duration) tartarus.Sample {
				s := tartarus.Sample{MemoryBytes: 1 << 20, CPUSeconds: 1.5, MemoryPeakBytes: 3 << 20}
				if age > 200*time.Millisecond {
					s.MemoryBytes = 1 << 40
				}
				return s
			},
		}, sandbox.Memory},
		{"out of memory inside", []string{"oom"}, fakevm.Script{}, sandbox.Signaled},
		{"lies: garbage", []string{"lie", "garbage"}, fakevm.Script{}, sandbox.GuestLost},
		{"lies: offset", []string{"lie", "offset"}, fakevm.Script{}, sandbox.GuestLost},
		{"lies: credit", []string{"lie", "credit"}, fakevm.Script{}, sandbox.GuestLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, options{script: func(int, tartarus.Spec) fakevm.Script { return c.script }})
			as := w.assign(job{command: c.command})
			got := w.c.awaitEnd(t, as)
			e := got.end.Exit
			if e.Cause != c.cause || e.Source != c.cause.Source() || e.Message == "" {
				t.Errorf("exit %+v", e)
			}
			if lied := strings.HasPrefix(c.name, "lies: "); lied != strings.Contains(e.Message, "broke the protocol") {
				t.Errorf("the message is %q", e.Message)
			}
			if c.name == "out of memory inside" && (len(e.LimitsHit) != 1 || e.LimitsHit[0].Limit != "memory") {
				t.Errorf("limits hit %+v", e.LimitsHit)
			}
			if c.name == "VMM takes too much" && (e.Usage.CPUSeconds != 1.5 || e.Usage.MemoryPeakBytes != 3<<20) {
				t.Errorf("usage %+v", e.Usage)
			}
			w.nothingLeft()
		})
	}
}

func TestWithoutLeaveNothingExecutes(t *testing.T) {
	w := newWorld(t, options{})
	w.c.onAccept = func(sandbox.Assignment) error { return fault.New(fault.Conflict, "overtaken") }
	as := w.assign(job{command: []string{"true"}})
	l, err := w.a.get(as.Sandbox)
	if err == nil {
		<-l.over
	}
	w.nothingLeft()
	w.c.mu.Lock()
	ends := w.c.of(as).ends
	w.c.mu.Unlock()
	if n := w.executed.count(as.Sandbox); n != 0 || ends != 0 {
		t.Errorf("executed %d times, %d ends told", n, ends)
	}
	// A later attempt may be the one.
	w.c.onAccept = nil
	if got := w.c.awaitEnd(t, w.assign(job{id: as.Sandbox, attempt: 2, command: []string{"true"}})); got.end.Exit.State() != sandbox.Succeeded {
		t.Errorf("attempt 2: %+v", got.end.Exit)
	}
}

// TestLeaveIsWaitedFor: whatever the VM is ready for, the order waits.
func TestLeaveIsWaitedFor(t *testing.T) {
	ask, answer := make(chan struct{}), make(chan error)
	w := newWorld(t, options{})
	w.c.onAccept = func(sandbox.Assignment) error { ask <- struct{}{}; return <-answer }
	as := w.assign(job{command: []string{"true"}})
	<-ask
	deadline := time.Now().Add(patient)
	for w.driver.Live() == 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	answer <- fault.New(fault.Unavailable, "the answer was lost")
	<-ask // it asks again
	if n := w.executed.count(as.Sandbox); n != 0 || w.driver.Live() != 1 {
		t.Errorf("executed %d times before there was leave, with %d VMs", n, w.driver.Live())
	}
	answer <- nil
	w.c.awaitEnd(t, as)
	if n := w.executed.count(as.Sandbox); n != 1 {
		t.Errorf("executed %d times", n)
	}
	w.nothingLeft()
}

func TestEndsAreToldUntilTheyAreHeard(t *testing.T) {
	w := newWorld(t, options{lease: time.Hour})
	var mu sync.Mutex
	fails := 3
	w.c.onReport = func(sandbox.Assignment) error {
		mu.Lock()
		defer mu.Unlock()
		if fails--; fails >= 0 {
			return fault.New(fault.Unavailable, "not now")
		}
		return nil
	}
	got := w.c.awaitEnd(t, w.assign(job{command: []string{"true"}}))
	if !slices.Contains(got.states, sandbox.Running) || got.started.IsZero() {
		t.Errorf("what was not told before is not told with the end: %+v", got)
	}
	w.nothingLeft()
}

func TestAnEndThatNobodyWantsIsDropped(t *testing.T) {
	w := newWorld(t, options{})
	w.c.onReport = func(sandbox.Assignment) error { return fault.New(fault.Conflict, "overtaken") }
	as := w.assign(job{command: []string{"true"}})
	if l, err := w.a.get(as.Sandbox); err == nil {
		<-l.over
	}
	w.nothingLeft()
}

func TestManyAtOnce(t *testing.T) {
	const n = 200
	w := newWorld(t, options{
		config: func(c *Config) { c.Logger = nil },
		script: func(int, tartarus.Spec) fakevm.Script { return vanishing },
	})
	var all []sandbox.Assignment
	commands := [][]string{{"true"}, {"echo", "x"}, {"exit", "7"}, {"flood", "200000"}, {"vanish"}, {"sleep", "0.05"}}
	for i := range n {
		all = append(all, w.assign(job{command: commands[i%len(commands)]}))
	}
	for i, as := range all {
		got := w.c.awaitEnd(t, as)
		want := sandbox.Exited
		if commands[i%len(commands)][0] == "vanish" {
			want = sandbox.GuestLost
		}
		if got.end.Exit.Cause != want || got.ends != 1 {
			t.Errorf("%v: %+v, told %d times", commands[i%len(commands)], got.end.Exit, got.ends)
		}
		if c := w.executed.count(as.Sandbox); c != 1 {
			t.Errorf("executed %d times", c)
		}
	}
	w.nothingLeft()
}

func TestStoppingEndsAll(t *testing.T) {
	w := newWorld(t, options{})
	var all []sandbox.Assignment
	for range 5 {
		all = append(all, w.assign(job{command: []string{"sleep", "forever"}}))
	}
	for _, as := range all {
		w.c.awaitState(t, as, sandbox.Running)
	}
	w.stop()
	for _, as := range all {
		if got := w.c.awaitEnd(t, as); got.end.Exit.Cause != sandbox.NodeLost {
			t.Errorf("exit %+v", got.end.Exit)
		}
	}
	w.nothingLeft()
	req, _ := w.request(job{command: []string{"true"}})
	if _, err := w.a.Assign(context.Background(), req); err == nil {
		t.Error("a stopped agent takes assignments")
	}
}

// TestOutputThatNeverComes has a guest that announces more than it sends.
func TestOutputThatNeverComes(t *testing.T) {
	w := newWorld(t, options{config: func(c *Config) {
		c.Connect = func(ctx context.Context, vm tartarus.VM, _ *slog.Logger) (Guest, error) {
			s, err := guestdial.Open(ctx, guestdial.Config{Dial: vm.Dial, DrainTimeout: 100 * time.Millisecond})
			return session{s}, err
		}
	}})
	got := w.c.awaitEnd(t, w.assign(job{command: []string{"lie", "exit"}}))
	if e := got.end.Exit; e.Cause != sandbox.Exited || !e.Usage.LogTruncated {
		t.Errorf("exit %+v", e)
	}
	if log := w.log(got.end); log != "truncated:" {
		t.Errorf("log %q", log)
	}
	w.nothingLeft()
}
