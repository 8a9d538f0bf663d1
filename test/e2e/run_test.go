package e2e_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// As root and as an ordinary user: streams apart, the command's exit code, and
// nothing left.
func TestRun(t *testing.T) {
	const script = "echo out; echo err >&2; exit 3"
	check := func(t *testing.T, r realvm.Result) {
		t.Helper()
		if r.Stdout != "out\n" || r.Stderr != "err\n" || r.Code != 3 {
			t.Errorf("stdout %q, stderr %q, exit code %d", r.Stdout, r.Stderr, r.Code)
		}
	}
	t.Run("this user", func(t *testing.T) {
		state := realvm.NewState(t)
		check(t, realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "run", "--", "sh", "-c", script)))
		realvm.NothingLeft(t, state)
	})
	t.Run("an ordinary user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			return // the case above was that
		}
		state := realvm.NewState(t)
		c := realvm.AsNobody(t, realvm.Command(realvm.Patience(t), state, "run", "--", "sh", "-c", script), state)
		check(t, realvm.Finish(t, c))
		realvm.NothingLeft(t, state)
	})
}

// The default template for people: Python, out of Debian's own packages.
func TestPythonOnDebian(t *testing.T) {
	state, err := realvm.Prepared("debian")
	if err != nil {
		t.Fatal(err)
	}
	r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "run", "--local", "--template", "debian", "--", "python3", "-c", "print(40+2)"))
	if r.Stdout != "42\n" || r.Code != 0 {
		t.Errorf("stdout %q, stderr %q, exit code %d", r.Stdout, r.Stderr, r.Code)
	}
	realvm.NothingLeft(t, state)
}

func TestStdinIsPassedOn(t *testing.T) {
	c := realvm.Command(realvm.Patience(t), realvm.NewState(t), "run", "--", "cat")
	c.Stdin = strings.NewReader("hi\n")
	if r := realvm.Finish(t, c); r.Stdout != "hi\n" || r.Code != 0 {
		t.Errorf("stdout %q, stderr %q, exit code %d", r.Stdout, r.Stderr, r.Code)
	}
}

func TestEnvAndFilesReachTheCommand(t *testing.T) {
	state := realvm.NewState(t)
	file := filepath.Join(filepath.Dir(state), "job.sh")
	if err := os.WriteFile(file, []byte("echo $GREETING from $(pwd) by $(id -un)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "run", "--env", "GREETING=hello", "--file", file+":/work/job.sh", "--", "sh", "job.sh"))
	if r.Stdout != "hello from /work by sandbox\n" || r.Code != 0 {
		t.Errorf("stdout %q, stderr %q, exit code %d", r.Stdout, r.Stderr, r.Code)
	}
}

func TestCommandThatIsNotThere(t *testing.T) {
	r := realvm.Finish(t, realvm.Command(realvm.Patience(t), realvm.NewState(t), "run", "--", "no-such-command"))
	if r.Code != 125 || !strings.Contains(r.Stderr, "start_failed") || !strings.Contains(r.Stderr, "no-such-command") {
		t.Errorf("stderr %q, exit code %d", r.Stderr, r.Code)
	}
}

// Each run in one process has a folder, a lock and user IDs of its own.
func TestTenRunsAtOnce(t *testing.T) {
	state := realvm.NewState(t)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "run", "--local", "--", "echo", fmt.Sprint(i)))
			if r.Stdout != fmt.Sprintln(i) || r.Code != 0 {
				t.Errorf("run %d: stdout %q, stderr %q, exit code %d", i, r.Stdout, r.Stderr, r.Code)
			}
		})
	}
	wg.Wait()
	realvm.NothingLeft(t, state)
}

// A run that is killed takes its VM with it, and the next one sweeps the rest.
func TestKilledRunLeavesNothing(t *testing.T) {
	state := realvm.NewState(t)
	c := realvm.Command(realvm.Patience(t), state, "run", "--local", "--", "sh", "-c", "echo up; sleep 100")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 3); !readFull(out, b) || string(b) != "up\n" {
		t.Fatalf("it said %q", b)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	if r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "run", "--local", "--", "true")); r.Code != 0 {
		t.Errorf("the next run: %q, exit code %d", r.Stderr, r.Code)
	}
	realvm.NothingLeft(t, state)
}

func readFull(r io.Reader, b []byte) bool {
	_, err := io.ReadFull(r, b)
	return err == nil
}

func TestInterruptKills(t *testing.T) {
	state := realvm.NewState(t)
	c := realvm.Command(realvm.Patience(t), state, "run", "--", "sh", "-c", "echo up; sleep 100")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 3); !readFull(out, b) {
		t.Fatal("no output")
	}
	began := time.Now()
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != 137 {
		t.Errorf("exit code %d", code)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	realvm.NothingLeft(t, state)
}
