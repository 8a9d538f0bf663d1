package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

func TestMemoryLimitKills(t *testing.T) {
	g := group(t, realTree(t), Limits{MemoryMiB: 64})
	if !slices.Contains(g.On(), LayerMemory) || !slices.Contains(g.On(), LayerSwapOff) {
		t.Fatalf("on %v, missing %v", g.On(), g.Missing())
	}
	m := start(t, g, "hog")
	if l := m.line(t); l != "" {
		t.Errorf("a hog of 512 MiB said %q in a group of 64", l)
	}
	err := m.cmd.Wait()
	if ws := m.cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("the hog ended with %v", err)
	}
	s, err := g.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if s.OOMKills != 1 || s.MemoryPeakBytes < 48<<20 || s.MemoryPeakBytes > 65<<20 {
		t.Errorf("counted %+v", s)
	}
}

func TestCPULimitSlows(t *testing.T) {
	g := group(t, realTree(t), Limits{CPUs: 0.25})
	m := start(t, g, "spin")
	before, err := g.Stat()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if l := m.line(t); l != "spun" {
		t.Fatalf("the spinner said %q", l)
	}
	after, err := g.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// It spins for 400 ms at a quarter of a CPU; without the limit it uses all
	// of the time, however long that is where the host is busy.
	used, took := after.CPUSeconds-before.CPUSeconds, time.Since(began).Seconds()
	if after.CPUSeconds <= 0.02 || used > 0.6*took {
		t.Errorf("used %v s in %v s", used, took)
	}
}

func TestPidsLimitRefusesForks(t *testing.T) {
	g := group(t, realTree(t), Limits{Pids: 40})
	m := start(t, g, "fork")
	if l := m.line(t); !strings.HasPrefix(l, "refused:") {
		t.Errorf("the forker said %q", l)
	}
	// Remove, at the end, ends all that were born.
}

func TestRemoveEndsWhatLingers(t *testing.T) {
	tree := realTree(t)
	g := group(t, tree, Limits{})
	m := start(t, g, "sleep")
	if names, err := tree.Names(); err != nil || !slices.Contains(names, g.Name()) {
		t.Errorf("groups: %v, %v", names, err)
	}
	waited := make(chan error, 1)
	go func() { waited <- m.cmd.Wait() }()
	later := tree.Open(g.Name()) // as an agent that came back has it
	if later == nil {
		t.Fatal("the group is not found again")
	}
	if err := later.Remove(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err == nil {
		t.Error("the member ended by itself")
	}
	if err := g.Remove(bounded(t)); err != nil {
		t.Errorf("removing again: %v", err)
	}
	if _, err := g.Stat(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("counters of a removed group: %v", err)
	}
}

func TestCreateTwice(t *testing.T) {
	tree := realTree(t)
	g := group(t, tree, Limits{})
	if _, err := tree.Create(g.Name(), Limits{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second group of one name: %v", err)
	}
	if tree.Open(g.Name()) == nil {
		t.Error("the refused one took the first with it")
	}
}

func TestAgentIsNotKilled(t *testing.T) {
	tree := realTree(t)
	g := group(t, tree, Limits{})
	p := tree.dirs(g.Name())
	was := make(map[string]string) // v1: the group that the test came from
	for _, d := range p {
		was[d] = d[:strings.LastIndex(d, "/"+ownFolder)]
		if err := put(d, "cgroup.procs", "0"); err != nil {
			t.Fatal(err)
		}
	}
	err := g.Remove(bounded(t))
	for _, d := range was {
		if err := put(d, "cgroup.procs", "0"); err != nil {
			t.Fatal(err)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "agent itself") {
		t.Errorf("removing the agent's own group: %v", err)
	}
}

func TestOrdinaryUserGetsReasons(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becomes an ordinary user by itself")
	}
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine: its user is not given back.
		lockThreadAs(65534)
		_, err := Detect(Config{Parent: "tartarus-nobody"})
		done <- err
	}()
	err := <-done
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("as an ordinary user: %v", err)
	}
}
