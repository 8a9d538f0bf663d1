package e2e_test

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// orders is a file for the orders to execute, outside the state.
func orders(t *testing.T) string { return filepath.Join(t.TempDir(), "orders") }

// executed counts how often each sandbox was ordered to execute.
func executed(t *testing.T, file string) map[string]int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for id := range strings.FieldsSeq(string(b)) {
		count[id]++
	}
	return count
}

func TestUp(t *testing.T) {
	state := realvm.NewState(t)
	s := realvm.StartServer(t, state, orders(t), "")

	t.Run("run, follow the log, read the record", func(t *testing.T) {
		rec := s.Run(`{"command": ["sh", "-c", "echo one; echo two >&2; exit 5"]}`)
		resp := s.Open(realvm.Patience(t), "GET", "/sandbox/"+rec.ID+"/logs?follow=true", "")
		defer resp.Body.Close()
		got := map[string]string{}
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			e := realvm.Decode[struct{ Stream, Text string }](t, sc.Bytes())
			got[e.Stream] += e.Text
		}
		if got["stdout"] != "one\n" || got["stderr"] != "two\n" {
			t.Errorf("the log says %q", got)
		}
		rec = s.Ended(rec.ID)
		if rec.State != "failed" || rec.Exit.Cause != "exited" || rec.Exit.Source != "guest" || rec.Exit.Code == nil || *rec.Exit.Code != 5 {
			t.Errorf("the record says %+v", rec)
		}
		if len(rec.Isolation.Confinement) == 0 {
			t.Error("the record does not say what confined the VM")
		}
		_, text := s.Call("GET", "/sandbox/"+rec.ID+"/logs?stream=stdout", "")
		if !strings.Contains(string(text), "one") || strings.Contains(string(text), "two") {
			t.Errorf("afterwards stdout is %q", text)
		}
	})

	t.Run("wait", func(t *testing.T) {
		code, b := s.Call("POST", "/sandbox/run?wait=60s", `{"command": ["true"]}`)
		if rec := realvm.Decode[realvm.Record](t, b); code != http.StatusOK || rec.State != "succeeded" {
			t.Errorf("%d %+v", code, rec)
		}
	})

	t.Run("kill", func(t *testing.T) {
		rec := s.Run(`{"command": ["sleep", "100"]}`)
		s.Follow(rec.ID, func(state string) bool { return state == "running" })
		if code, b := s.Call("DELETE", "/sandbox/"+rec.ID+"?grace=1s", ""); code != http.StatusOK {
			t.Errorf("%d %s", code, b)
		}
		if rec = s.Ended(rec.ID); rec.State != "failed" || rec.Exit.Cause != "killed" || rec.Exit.Source != "host" {
			t.Errorf("%+v", rec)
		}
		if code, _ := s.Call("DELETE", "/sandbox/"+rec.ID, ""); code != http.StatusOK {
			t.Errorf("killing an ended one answers %d", code)
		}
	})

	t.Run("max_duration", func(t *testing.T) {
		rec := s.Run(`{"command": ["sleep", "60"], "max_duration": "2s"}`)
		rec = s.Ended(rec.ID)
		if took := rec.EndedAt.Sub(rec.StartedAt); rec.Exit.Cause != "max_duration" || took < 2*time.Second || took > 4*time.Second {
			t.Errorf("cause %s after %v", rec.Exit.Cause, took)
		}
	})

	t.Run("more output than the cap", func(t *testing.T) {
		rec := s.Run(`{"command": ["sh", "-c", "head -c 67108864 /dev/zero | tr '\\0' x"], "max_duration": "120s"}`)
		rec = s.Ended(rec.ID)
		if rec.State != "succeeded" || !rec.Usage.LogTruncated || rec.Usage.LogBytes != 16<<20 {
			t.Errorf("%s, %+v", rec.State, rec.Usage)
		}
		resp := s.Open(realvm.Patience(t), "GET", "/sandbox/"+rec.ID+"/logs", "")
		defer resp.Body.Close()
		last := map[string]any{}
		bytes := 0
		for d := json.NewDecoder(resp.Body); d.More(); {
			clear(last)
			if err := d.Decode(&last); err != nil {
				t.Fatal(err)
			}
			text, _ := last["text"].(string)
			bytes += len(text)
		}
		if bytes != 16<<20 || last["truncated"] != true {
			t.Errorf("%d bytes, and the last entry is %v", bytes, last)
		}
	})

	t.Run("the Go client over gRPC", func(t *testing.T) {
		c, err := client.Dial(s.URL, s.Token)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sb, err := c.Run(realvm.Patience(t), &apiv1.RunRequest{Command: []string{"sh", "-c", "echo hi; kill -9 $$"}})
		if err != nil {
			t.Fatal(err)
		}
		var out []byte
		for e, err := range c.Logs(realvm.Patience(t), &apiv1.LogsRequest{Id: sb.GetId(), Follow: true}) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, e.GetData()...)
		}
		if sb, err = c.Wait(realvm.Patience(t), sb.GetId()); err != nil {
			t.Fatal(err)
		}
		if string(out) != "hi\n" || client.ExitCode(sb) != 128+9 {
			t.Errorf("output %q, %s, exit code %d", out, sb.GetExit(), client.ExitCode(sb))
		}
	})

	s.Stop()
	realvm.NothingLeft(t, state)
}

func TestSecondUpIsRefused(t *testing.T) {
	state := realvm.NewState(t)
	s := realvm.StartServer(t, state, orders(t), "")
	r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "up", "--listen", ""))
	if r.Code == 0 || !strings.Contains(r.Stderr, "another `tartarus up`") {
		t.Errorf("stderr %q, exit code %d", r.Stderr, r.Code)
	}
	s.Stop()
}

// policyOfEight lets a tenant run eight sandboxes at a time, and gives each the
// time to boot that it takes on a host with much else to do.
const policyOfEight = `
version: 1
defaults: {start_timeout: 10m}
tenants:
  local:
    quota: {live: 1000, running: 8, vcpus: 64, memory_mib: 65536, disk_mib: 262144, rate_per_minute: 100000, burst: 1000}
`

// crowd is how many sandboxes are posted at once: all share two cores, and
// each boots a VM.
const crowd = 100

func TestManyAtOnceNeverMoreThanTheLimitEachOnce(t *testing.T) {
	state, file := realvm.NewState(t), orders(t)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(policyOfEight), 0o600); err != nil {
		t.Fatal(err)
	}
	s := realvm.StartServer(t, state, file, policy)
	ids := make([]string, crowd)
	const clients = 20
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := c; i < crowd; i += clients {
				ids[i] = s.Run(fmt.Sprintf(`{"command": ["echo", "%d"], "max_duration": "120s"}`, i)).ID
			}
		})
	}
	wg.Wait()
	var recs []realvm.Record
	for _, id := range ids {
		rec := s.Ended(id)
		if rec.State != "succeeded" {
			t.Errorf("%+v", rec)
		}
		recs = append(recs, rec)
	}
	if most := overlap(recs); most > 8 {
		t.Errorf("%d ran at the same time", most)
	}
	count := executed(t, file)
	for _, id := range ids {
		if count[id] != 1 {
			t.Errorf("%s was executed %d times", id, count[id])
		}
	}
	s.Stop()
	realvm.NothingLeft(t, state)
}

// overlap is how many were on the node at the same time at most.
func overlap(recs []realvm.Record) int {
	type edge struct {
		at    time.Time
		delta int
	}
	var edges []edge
	for _, r := range recs {
		edges = append(edges, edge{r.AssignedAt, 1}, edge{r.EndedAt, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.delta, b.delta)) })
	now, most := 0, 0
	for _, e := range edges {
		now += e.delta
		most = max(most, now)
	}
	return most
}

func TestKilledServerLosesNothingAndRunsNothingTwice(t *testing.T) {
	state, file := realvm.NewState(t), orders(t)
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(strings.Replace(policyOfEight, "running: 8", "running: 2", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := realvm.StartServer(t, state, file, policy)
	running := []string{s.Run(`{"command": ["sleep", "100"]}`).ID, s.Run(`{"command": ["sleep", "100"]}`).ID}
	for _, id := range running {
		s.Follow(id, func(state string) bool { return state == "running" })
	}
	var queued []string
	for range 4 {
		queued = append(queued, s.Run(`{"command": ["true"]}`).ID)
	}
	s.Kill()
	s = realvm.StartServer(t, state, file, policy)
	for _, id := range running {
		if rec := s.Ended(id); rec.State != "failed" || rec.Exit.Cause != "node_lost" || rec.Exit.Source != "host" {
			t.Errorf("one that was running: %+v", rec)
		}
	}
	for _, id := range queued {
		if rec := s.Ended(id); rec.State != "succeeded" {
			t.Errorf("one that was queued: %+v", rec)
		}
	}
	for id, n := range executed(t, file) {
		if n != 1 {
			t.Errorf("%s was executed %d times", id, n)
		}
	}
	s.Stop()
	realvm.NothingLeft(t, state)
}
