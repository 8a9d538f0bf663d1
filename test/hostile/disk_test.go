package hostile_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// smallVar names a state folder to a process of this test that has mounts of
// its own: there a small disk takes the folder's place.
const smallVar = "TARTARUS_HOSTILE_SMALL"

// TestFullDisk: somebody else fills the host's disk while sandboxes run on it.
// They end as they are told or with a true cause, their records and the audit
// are whole, and new ones are refused; afterwards all goes on.
func TestFullDisk(t *testing.T) {
	if state := os.Getenv(smallVar); state != "" {
		onSmallDisk(t, state)
		return
	}
	if os.Geteuid() != 0 {
		t.Log("an ordinary user cannot mount a small disk")
		return
	}
	state := realvm.NewState(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), smallVar+"="+state)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestFullDisk")) {
		t.Errorf("%v\n%s", err, out)
	}
	realvm.NothingLeft(t, state)
}

// smallDisk is beside what the images take.
const smallDisk = 400 << 20

// mountSmall puts a small disk in the place of a state folder, with what is in
// it.
func mountSmall(t *testing.T, state string) {
	t.Helper()
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	err := filepath.WalkDir(state, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var i os.FileInfo
			if i, err = d.Info(); err == nil {
				size += i.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	moved := state + "-moved"
	if err := os.Rename(state, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("small", state, "tmpfs", 0, fmt.Sprintf("mode=0700,size=%d", size+smallDisk)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, 0); err != nil {
			t.Errorf("something still uses it: %v", err)
		}
	})
	if err := realvm.CopyState(moved, state); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(moved); err != nil {
		t.Fatal(err)
	}
}

// fill takes all the room that a disk has, and goes on taking what becomes
// free until it is told to stop.
func fill(t *testing.T, path string) (stop func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	take := func() {
		for size := 1 << 20; size > 0; {
			if _, err := f.Write(make([]byte, size)); err != nil {
				size /= 2
			}
		}
	}
	take()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			take()
			time.Sleep(50 * time.Millisecond)
		}
	})
	return sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		f.Close()
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
}

func onSmallDisk(t *testing.T, state string) {
	mountSmall(t, state)
	u := realvm.StartUp(t, state)
	s := &u.Server
	running := func(r request) string {
		id := s.Run(r.with("resources", map[string]any{"disk_mib": 32}).with("max_duration", "300s").body(t)).ID
		s.Follow(id, func(state string) bool { return state == "running" })
		return id
	}
	sleeps := running(shell("sleep 300"))
	talks := running(shell("while :; do echo $i; i=$((i+1)); done"))
	exits := running(shell("read x; cat /dev/zero >/work/a 2>/dev/null; exit 3").with("stdin_open", true))
	late := running(shell("read x; sleep 300").with("stdin_open", true).with("max_duration", "300s"))
	stop := fill(t, filepath.Join(state, "somebody-else"))
	defer stop()

	if code, b := s.Call("POST", "/sandbox/"+exits+"/stdin", "go\n"); code != http.StatusOK {
		t.Errorf("stdin: %d %s", code, b)
	}
	if rec := s.Ended(exits); rec.Exit.Cause != "exited" || rec.Exit.Code == nil || *rec.Exit.Code != 3 {
		t.Errorf("the one that ended by itself: %+v", rec)
	}
	for _, id := range []string{sleeps, talks, late} {
		if code, b := s.Call("DELETE", "/sandbox/"+id+"?grace=0s", ""); code != http.StatusOK {
			t.Errorf("kill: %d %s", code, b)
		}
		if rec := s.Ended(id); rec.Exit.Cause != "killed" || rec.Exit.Source != "host" {
			t.Errorf("one that was killed: %+v", rec)
		}
	}
	if rec := s.Get(talks); !rec.Usage.LogTruncated {
		t.Errorf("output was lost, and the record does not say so: %+v", rec.Usage)
	}
	code, b := s.Call("POST", "/sandbox/run", `{"command": ["true"]}`)
	if code != http.StatusServiceUnavailable || !strings.Contains(string(b), "disk is nearly full") {
		t.Errorf("a new one: %d %s", code, b)
	}
	audited := map[string]int{}
	for _, e := range auditOf(s) {
		audited[e.Action+" "+e.Sandbox]++
	}
	for _, want := range []string{"run " + sleeps, "run " + talks, "run " + exits, "run " + late, "kill " + sleeps, "kill " + talks, "kill " + late} {
		if audited[want] != 1 {
			t.Errorf("the audit has %q %d times", want, audited[want])
		}
	}

	stop()
	code, b = s.Call("POST", "/sandbox/run?wait=100s", `{"command": ["true"]}`)
	if rec := realvm.Decode[realvm.Record](t, b); code != http.StatusOK || rec.State != "succeeded" {
		t.Errorf("when there is room again: %d %s", code, b)
	}
	u.End()
	if r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "audit", "verify")); r.Code != 0 {
		t.Errorf("the audit: %+v", r)
	}
}

type auditEntry struct{ Action, Sandbox string }

func auditOf(s *realvm.Server) []auditEntry {
	s.T.Helper()
	code, b := s.Call("GET", "/audit", "")
	if code != http.StatusOK {
		s.T.Fatalf("%d %s", code, b)
	}
	return realvm.Decode[struct{ Entries []auditEntry }](s.T, b).Entries
}
