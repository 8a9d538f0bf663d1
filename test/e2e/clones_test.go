package e2e_test

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// cloneProgram tells what a clone has, as a clone.
//
//go:embed testdata/clone.py
var cloneProgram string

// clone is what cloneProgram tells, and when it was asked and had told it.
type clone struct {
	Own         map[string]any // must be nobody else's
	Found       []string       // in folders that must be empty
	Kept        bool           // it read what it had written, after the others may have written
	RNG         string
	Clocksource string
	PID         int
	Uptime      float64
	Clock       float64

	asked, told time.Time
	start       string // as the record says
}

// clones is how many go on from one snapshot, clonesAtOnce how many of them
// side by side, and waiting how many more have waited for their sandbox.
const (
	clones       = 20
	clonesAtOnce = 4
	waiting      = 3
)

// Sandboxes that go on from one snapshot know nothing of each other.
func TestClones(t *testing.T) {
	from, err := realvm.Prepared("debian")
	if err != nil {
		t.Fatal(err)
	}
	state := realvm.OwnState(t, from)
	// Scratch disks get another file system than the VM had that was saved: one
	// that took what it remembers of that one would not mount.
	if err := os.RemoveAll(filepath.Join(state, "lethe")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	all := make([]clone, clones)
	slots := make(chan struct{}, clonesAtOnce)
	var wg sync.WaitGroup
	for i := range all {
		slots <- struct{}{}
		wg.Go(func() {
			all[i] = runClone(t, state, "--local")
			<-slots
		})
	}
	wg.Wait()
	t.Logf("%d clones took %v", clones, time.Since(began))
	for i, c := range all {
		if c.start != "restored" {
			t.Errorf("the start of clone %d was %s", i, c.start)
		}
	}
	u := realvm.StartUp(t, state, "--standby", fmt.Sprint(waiting))
	for waited := 0; waited < waiting; {
		if len(all) == clones+10*waiting {
			t.Fatalf("only %d of the last %d had waited", waited, 10*waiting)
		}
		c := runClone(t, state)
		if c.start == "standby" {
			waited++
		}
		all = append(all, c)
	}
	u.End()
	seen := map[string]int{}
	for i, c := range all {
		checkClone(t, i, c)
		for name, value := range c.Own {
			key := fmt.Sprint(name, " ", value)
			if other, ok := seen[key]; ok {
				t.Errorf("clones %d and %d share %s", other, i, key)
			}
			seen[key] = i
		}
	}
	t.Logf("what they may share: PID %d, clock source %s, an uptime of about %.1f s", all[0].PID, all[0].Clocksource, all[0].Uptime)
	realvm.NothingLeft(t, state)
}

// runClone starts one.
func runClone(t *testing.T, state string, flags ...string) clone {
	t.Helper()
	c := clone{asked: time.Now()}
	args := append(append([]string{"run"}, flags...), "--timings", "--template", "debian", "--", "python3", "-I", "-S", "-c", cloneProgram)
	r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, args...))
	c.told = time.Now()
	if err := json.Unmarshal([]byte(r.Stdout), &c); err != nil {
		t.Errorf("%v: stdout %q, stderr %q, exit code %d", err, r.Stdout, r.Stderr, r.Code)
	}
	_, c.start, _ = strings.Cut(strings.TrimSpace(r.Stderr), ", start ")
	return c
}

// checkClone checks what is right or wrong with one alone.
func checkClone(t *testing.T, i int, c clone) {
	t.Helper()
	const off = time.Second
	if clock := time.UnixMicro(int64(c.Clock * 1e6)); clock.Before(c.asked.Add(-off)) || clock.After(c.told.Add(off)) {
		t.Errorf("clone %d, run from %v to %v, has the time %v", i, c.asked, c.told, clock)
	}
	if len(c.Own) == 0 || c.Own["hostname"] != c.Own["/etc/hostname"] {
		t.Errorf("clone %d: %v", i, c.Own)
	}
	if len(c.Found) > 0 || !c.Kept {
		t.Errorf("clone %d found %q, and what it wrote stayed: %v", i, c.Found, c.Kept)
	}
	if c.RNG != "none" {
		t.Errorf("clone %d has a device for randomness, which is filled ahead: %s", i, c.RNG)
	}
}
