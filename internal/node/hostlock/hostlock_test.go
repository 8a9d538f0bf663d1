package hostlock_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/node/hostlock"
)

const holdVar = "TARTARUS_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdVar); path != "" { // holds it until it is killed
		if l, err := hostlock.Try(path); err != nil || l == nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("held\n")
		select {}
	}
	os.Exit(m.Run())
}

func try(t *testing.T, path string) *hostlock.Lock {
	t.Helper()
	l, err := hostlock.Try(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOneHasIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "lock")
	l := try(t, path)
	if l == nil {
		t.Fatal("nobody has it, and it is not given")
	}
	if try(t, path) != nil {
		t.Error("two have it")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = try(t, path)
	if l == nil {
		t.Fatal("it was given back, and is not given again")
	}
	if err := l.Drop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("its file is there: %v", err)
	}
}

// A process that is killed gives it back.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), holdVar+"="+path)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Errorf("%q, %v", line, err)
	}
	if try(t, path) != nil {
		t.Error("two have it")
	}
	_ = c.Process.Kill()
	_ = c.Wait() // it was killed
	l := try(t, path)
	if l == nil {
		t.Fatal("a dead process has it")
	}
	l.Close()
}

// However many make it, have it and drop it, never two have it at a time.
func TestDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holders, had atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				l, err := hostlock.Try(path)
				if err != nil {
					t.Error(err)
					return
				}
				if l == nil {
					continue
				}
				if n := holders.Add(1); n != 1 {
					t.Error(strconv.Itoa(int(n)) + " have it")
				}
				had.Add(1)
				holders.Add(-1)
				if err := l.Drop(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if had.Load() == 0 {
		t.Error("nobody ever had it")
	}
}
