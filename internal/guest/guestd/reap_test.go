package guestd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestd"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
)

// asInit makes the test binary a guest that waits for every child there is,
// as PID 1 does: a subreaper, in a process of its own.
const asInit = "GUESTD_TEST_SOCKET"

func TestMain(m *testing.M) {
	launcher.Main() // a VMM of the tests is started through this binary
	if path := os.Getenv(asInit); path != "" {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			panic(err)
		}
		port, err := listenOn(path)
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString("ready\n")
		if err := guestd.Serve(guestd.Config{Port: port, Machine: &plain{}, ReapAll: true}, 0); err != nil {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func startInit(t *testing.T) (*guest, int) {
	t.Helper()
	g := &guest{path: filepath.Join(t.TempDir(), "s")}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asInit+"="+g.path)
	cmd.Stderr = os.Stderr
	stop, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return g, cmd.Process.Pid
}

// zombies lists the dead children of pid.
func zombies(t *testing.T, pid int) (dead []string) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone meanwhile
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(pid) {
			dead = append(dead, string(b))
		}
	}
	return dead
}

func TestOrphansAreReaped(t *testing.T) {
	g, pid := startInit(t)
	s := open(t, g)
	o := collect(t)
	// Each subshell ends before its child, which then is init's.
	p := begin(t, s, sh("i=0; while [ $i -lt 50 ]; do (sleep 0.01 &); i=$((i+1)); done; sleep 0.3; echo done; read x"), o.sink)
	if e := wait(t, p); e.Code != 1 || o.out.String() != "done\n" {
		t.Errorf("exit %+v %q", e, o.out.String())
	}
	deadline := time.Now().Add(5 * time.Second)
	for dead := zombies(t, pid); len(dead) > 0; dead = zombies(t, pid) {
		if time.Now().After(deadline) {
			t.Fatalf("zombies: %q", dead)
		}
		time.Sleep(5 * time.Millisecond)
	}
	// Its own processes are told from orphans.
	if e := wait(t, begin(t, s, sh("exit 4"), nil)); e.Code != 4 {
		t.Errorf("exit %+v", e)
	}
}

// A failed exec leaves no child behind, and the next start works.
func TestReaperAndFailedStarts(t *testing.T) {
	g, pid := startInit(t)
	s := open(t, g)
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("\x7fELF rubbish"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		m := sh("")
		m.Argv = []string{bad}
		if _, err := s.Start(t.Context(), m, nil); err == nil {
			t.Fatal("rubbish was started")
		}
		if e := wait(t, begin(t, s, sh("exit 5"), nil)); e.Code != 5 {
			t.Errorf("exit %+v", e)
		}
	}
	if dead := zombies(t, pid); len(dead) > 0 {
		t.Errorf("zombies: %q", dead)
	}
}
