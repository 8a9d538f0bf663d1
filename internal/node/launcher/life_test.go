package launcher

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// me is the user that VMMs of this process run as.
func me() int {
	if os.Geteuid() == 0 {
		return unprivileged
	}
	return 0
}

// strays are processes that have to do with a folder: stages and VMMs carry
// its name on their command lines.
func strays(t *testing.T, dir string) []string {
	t.Helper()
	procs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if err == nil && bytes.Contains(b, []byte(filepath.Base(dir))) && !bytes.Contains(b, []byte("-test.")) {
			out = append(out, p.Name()+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

func descriptorsOpen(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// held is an agent whose VMM waits.
func held(t *testing.T, lifeline bool, attempts ...string) (*agent, outcome, string) {
	t.Helper()
	dir := folder(t, os.Geteuid())
	j := job{Dir: dir, Program: programs.probe, Attempts: append(attempts, "forever"), UID: me(), Lifeline: lifeline, Hold: true}
	a := startAgent(t, j, os.Geteuid())
	out := a.hear(t)
	if out.Err != "" {
		t.Fatal(out.Err)
	}
	t.Cleanup(func() { // where a test has found that they do not end
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = KillLeftover(ctx, out.Outer), killAndWait(ctx, out.VMM)
	})
	return a, out, dir
}

func TestLifelineEndsTheVMMWithItsAgent(t *testing.T) {
	a, out, dir := held(t, true)
	a.kill(t)
	gone(t, "the outer stage", out.Outer)
	gone(t, "the VMM", out.VMM)
	e, err := ReadExit(dir)
	if err != nil || !e.ByLifeline || e.Signal != int(unix.SIGKILL) || e.Code != -1 {
		t.Errorf("it wrote %+v, %v", e, err)
	}
}

// Without a lifeline the VMM outlives its agent, and a later one ends it.
func TestLeftoverIsFoundAndEnded(t *testing.T) {
	for name, end := range map[string]func(context.Context, outcome, string) error{
		"by handle": func(ctx context.Context, o outcome, _ string) error { return KillLeftover(ctx, o.Outer) },
		"by folder": func(ctx context.Context, _ outcome, dir string) error { return KillLeftoverIn(ctx, dir) },
	} {
		t.Run(name, func(t *testing.T) {
			a, out, dir := held(t, false)
			a.kill(t)
			if !out.Outer.Alive() || !out.VMM.Alive() {
				t.Fatal("they ended with the agent, and have no lifeline")
			}
			wrong := out.Outer
			wrong.StartTime++ // as if the pid were another process's by now
			if err := KillLeftover(t.Context(), wrong); err != nil {
				t.Fatal(err)
			}
			wrong = out.Outer
			wrong.BootID = "another"
			if err := KillLeftover(t.Context(), wrong); err != nil || !out.Outer.Alive() || !out.VMM.Alive() {
				t.Fatalf("a handle of another process ended it: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			for range 2 {
				if err := end(ctx, out, dir); err != nil {
					t.Fatal(err)
				}
				if out.Outer.Alive() || out.VMM.Alive() {
					t.Fatal("it returned and they still run")
				}
			}
			if e, err := ReadExit(dir); err != nil || e.Signal != int(unix.SIGKILL) || e.ByLifeline {
				t.Errorf("it wrote %+v, %v", e, err)
			}
		})
	}
}

// The end of the outer stage ends the VMM, which tries to prevent that.
func TestOuterStageKilled(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			a, out, dir := held(t, false, "survive", "setsid")
			a.kill(t) // it would end the VMM as well
			if err := unix.Kill(out.Outer.Pid, sig); err != nil {
				t.Fatal(err)
			}
			gone(t, "the outer stage", out.Outer)
			gone(t, "the VMM", out.VMM)
			_, err := ReadExit(dir)
			if wrote := err == nil; wrote != (sig == unix.SIGTERM) {
				t.Errorf("exit.json: %v", err)
			}
		})
	}
}

// A launcher whose agent dies before it has the word starts nothing: a later
// agent may have looked for it already.
func TestNoWordNoVMM(t *testing.T) {
	s := Spec{Argv: []string{programs.probe}, Dir: folder(t, os.Geteuid()), UID: me(), GID: me()}
	b, err := fork(&s)
	if err != nil {
		t.Fatal(err)
	}
	_ = b.word.Close()
	told, err := io.ReadAll(b.reports)
	if err != nil || !bytes.Contains(told, []byte(`"Ready":true`)) || bytes.Contains(told, []byte("VMM")) {
		t.Errorf("it told %s, %v", told, err)
	}
	if ws, err := waitChild(b.pid); err != nil || ws.ExitStatus() != 1 {
		t.Errorf("the outer stage ended with %v, %v", ws, err)
	}
	b.closePipes()
}

// An inner stage whose outer one is gone before it could ask to end with it
// executes nothing.
func TestOrphanedInnerStage(t *testing.T) {
	pl, err := planFile(&plan{Argv: []string{programs.probe, "pid"}, Dir: folder(t, os.Geteuid()), UID: me(), GID: me()})
	if err != nil {
		t.Fatal(err)
	}
	reportR, reportW, err := blockingPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reportR.Close()
	gateR, gateW, err := blockingPipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = gateW.Close()
	c := exec.Command(programs.agent)
	c.Args = []string{innerName, "0"}
	planF := os.NewFile(uintptr(pl), "plan")
	c.ExtraFiles = []*os.File{planF, reportW, gateR}
	err = c.Run()
	_, _, _ = planF.Close(), reportW.Close(), gateR.Close()
	told, rerr := io.ReadAll(reportR)
	if err == nil || rerr != nil || !bytes.Contains(told, []byte("outer stage is gone")) {
		t.Errorf("it ended with %v and told %s, %v", err, told, rerr)
	}
}

// The agent tells an end that nobody saw as unknown.
func TestExitUnknown(t *testing.T) {
	v := waiting(t, Spec{})
	if e := v.p.Exit(); !e.Unknown {
		t.Errorf("before its end: %+v", e)
	}
	if err := unix.Kill(v.p.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	done(t, v.p)
	if e := v.p.Exit(); !e.Unknown || e.Code != -1 || e.Signal != int(unix.SIGKILL) {
		t.Errorf("%+v", e)
	}
}

// waiting starts a probe that waits, with what s says beyond the usual.
func waiting(t *testing.T, s Spec, attempts ...string) *vm {
	t.Helper()
	j := job{Dir: folder(t, os.Geteuid()), Program: programs.probe, UID: me(), More: &s}
	v, err := j.start(t.Context(), j.Dir, append(attempts, "forever"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.end)
	for {
		r, err := v.read()
		if err != nil {
			t.Fatalf("the probe ended: %q", v.p.Stderr())
		}
		if r.Error != "" {
			t.Errorf("%s: %s", r.Attempt, r.Error)
		}
		if r.Attempt == "waiting" {
			return v
		}
	}
}

func done(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestKill(t *testing.T) {
	v := waiting(t, Spec{})
	outer, inner := v.p.Identity(), v.p.VMM()
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() { errs <- v.p.Kill(t.Context()) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if outer.Alive() || inner.Alive() {
		t.Error("Kill returned and they still run")
	}
	if e := v.p.Exit(); e.Signal != int(unix.SIGKILL) || e.Unknown {
		t.Errorf("%+v", e)
	}
	if err := v.p.Kill(t.Context()); err != nil {
		t.Errorf("killing again: %v", err)
	}
}

// usualStart is how long a Start takes here.
func usualStart(t *testing.T) time.Duration {
	t.Helper()
	waiting(t, Spec{}).end() // the first reads files
	begin := time.Now()
	v := waiting(t, Spec{})
	took := time.Since(begin)
	v.end()
	return took
}

// Start that is interrupted, whenever, leaves no process, descriptor or mount.
func TestStartInterrupted(t *testing.T) {
	usual := usualStart(t)
	fds, ms := descriptorsOpen(t), mounts(t)
	var stopped int
	for range 40 {
		dir := folder(t, os.Geteuid())
		ctx, cancel := context.WithTimeout(t.Context(), rand.N(usual))
		j := job{Dir: dir, Program: programs.probe, UID: me()}
		v, err := j.start(ctx, dir, []string{"read=" + dir, "forever"})
		cancel()
		if err == nil {
			v.end()
		} else if stopped++; !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if s := strays(t, dir); len(s) != 0 {
			t.Fatalf("left after %v: %v", err, s)
		}
	}
	if stopped == 0 {
		t.Error("no Start was interrupted")
	}
	if have := descriptorsOpen(t); have != fds {
		t.Errorf("%d descriptors are open, %d before", have, fds)
	}
	if mounts(t) != ms {
		t.Error("the mounts have changed")
	}
}

// Killed at any moment of Start, the agent leaves at most what is found by
// the folder.
func TestAgentKilledWhileStarting(t *testing.T) {
	usual := usualStart(t)
	var dirs []string
	for i := range 24 {
		dir := folder(t, os.Geteuid())
		written := watchFor(t, dir, launchFile)
		j := job{Dir: dir, Program: programs.probe, Attempts: []string{"read=" + dir, "forever"}, UID: me(), Hold: true}
		a := startAgent(t, j, os.Geteuid())
		if i%2 == 0 {
			written() // from here on there is something to find
		}
		time.Sleep(rand.N(usual)) // the moment is the point
		a.kill(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := KillLeftoverIn(ctx, dir)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	// A stage that had no word yet ends by itself, in its own time, and may
	// not even be seen yet where it was just being forked.
	for _, dir := range dirs {
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			s := strays(t, dir)
			if len(s) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("left: %v", s)
			}
		}
	}
}

// watchFor returns a function that waits until a file of that name appears.
func watchFor(t *testing.T, dir, name string) func() {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	return func() {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
			if n == 0 || err != nil && !errors.Is(err, unix.EINTR) {
				t.Fatalf("%s does not appear: %v", name, err)
			}
			buf := make([]byte, 4096)
			if n, err := unix.Read(fd, buf); err == nil && bytes.Contains(buf[:n], []byte(name)) {
				return
			}
		}
	}
}

func TestIdentify(t *testing.T) {
	id, err := Identify(os.Getpid())
	if err != nil || !id.Alive() {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err := Identify(1 << 30); !errors.Is(err, ErrGone) {
		t.Errorf("no process: %v", err)
	}
	if err := KillLeftoverIn(t.Context(), t.TempDir()); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	if err := KillLeftover(t.Context(), Identity{}); err != nil {
		t.Errorf("a zero handle: %v", err)
	}
	if _, err := ReadExit(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no exit: %v", err)
	}
}
