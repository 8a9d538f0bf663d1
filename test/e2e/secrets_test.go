package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// The markers of what is secret, and of what is not: that one shows that the
// search finds what is there.
const (
	secretEnv   = "MARK-7f3a-the-value-of-env"
	secretStdin = "MARK-7f3a-standard-input"
	secretFile  = "MARK-7f3a-the-text-of-a-file"
	secretMore  = "MARK-7f3a-input-that-came-later"
	openArg     = "OPEN-51c2-an-argument"
	openEnv     = "OPEN-51c2-of-the-server-itself"
)

// secretForms are the secrets as they are and as JSON has bytes.
func secretForms() []string {
	var out []string
	for _, s := range []string{secretEnv, secretStdin, secretFile, secretMore} {
		out = append(out, s, b64(s))
	}
	return out
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// search looks for the secrets in everything of an up that somebody may read.
type search struct {
	t     *testing.T
	up    *realvm.Up
	dirs  []string
	found map[string]string // what is no secret, by where it was seen
	seen  int
}

// look reads text, which is found at where.
func (s *search) look(where string, text []byte) {
	s.t.Helper()
	s.seen++
	for _, secret := range secretForms() {
		if bytes.Contains(text, []byte(secret)) {
			s.t.Errorf("%s holds %q", where, secret)
		}
	}
	for _, open := range []string{openArg, openEnv} {
		if bytes.Contains(text, []byte(open)) {
			s.found[where] += open
		}
	}
}

// files reads all files of the folders but those that except names.
func (s *search) files(except func(path string) bool) {
	s.t.Helper()
	for _, dir := range s.dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) { // it went while we looked
				return nil
			}
			if err != nil || !d.Type().IsRegular() || except(path) {
				return err
			}
			b, err := os.ReadFile(path)
			if os.IsNotExist(err) {
				return nil
			}
			s.look(path, b)
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// processes reads command line and environment of the up and all below it, and
// says how many those are.
func (s *search) processes() int {
	s.t.Helper()
	parents := map[int]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		var state string
		var parent int
		if _, err := fmt.Sscan(string(b[bytes.LastIndexByte(b, ')')+1:]), &state, &parent); err != nil {
			s.t.Fatal(err)
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			s.t.Fatal(err)
		}
		parents[pid] = parent
	}
	n := 0
	for pid := range parents {
		p := pid
		for p > 1 && p != s.up.Cmd.Process.Pid {
			p = parents[p]
		}
		if p != s.up.Cmd.Process.Pid {
			continue
		}
		n++
		for _, name := range []string{"cmdline", "environ"} {
			path := fmt.Sprintf("/proc/%d/%s", pid, name)
			b, err := os.ReadFile(path)
			if os.IsNotExist(err) || os.IsPermission(err) { // it has ended, or has another user's rights
				continue
			}
			if err != nil {
				s.t.Fatal(err)
			}
			s.look(path, b)
		}
	}
	return n
}

// answers reads what the API tells.
func (s *search) answers(id string) {
	s.t.Helper()
	for _, path := range []string{"/metrics", "/audit", "/sandbox", "/sandbox/" + id, "/sandbox/" + id + "/events", "/nodes", "/tokens"} {
		code, b := s.up.Call("GET", path, "")
		if code != http.StatusOK {
			s.t.Fatalf("GET %s: %d %s", path, code, b)
		}
		s.look(path, b)
	}
}

// TestSecretsLeaveNoTrace gives a run secrets in every way there is, and looks
// for them in all that an up writes, tells and starts: while it runs, after its
// end, and after the up's. Its own disk, which the command itself writes to, is
// the one place that has them, for as long as it lives.
func TestSecretsLeaveNoTrace(t *testing.T) {
	state := realvm.NewState(t)
	kept := t.TempDir()
	t.Setenv("PLANTED", openEnv)
	u := realvm.StartUp(t, state, "--audit-sink", "file:"+filepath.Join(kept, "checkpoints"))
	s := &search{t: t, up: u, dirs: []string{state, kept}, found: map[string]string{}}

	// What is refused is told without them.
	for i, body := range []string{
		`{"command": ["true"], "env": {"A B": "` + secretEnv + `"}}`,
		`{"command": ["true"], "env": {"A": "` + secretEnv + `"}, "bogus": "` + secretEnv + `"}`,
		`{"command": ["true"], "env": "` + secretEnv + `"}`,
		`{"command": ["true"], "env": {"A": ["` + secretEnv + `"]}}`,
		`{"command": ["true"], "stdin": "` + secretStdin + ` is no base64"}`,
		`{"command": ["true"], "stdin": "` + b64(secretStdin) + `", "user": "root", "resources": {"memory_mib": 1048576}}`,
		`{"command": ["true"], "files": [{"path": "relative", "data": "` + b64(secretFile) + `"}]}`,
		`{"command": ["true"], "files": [{"path": "/f", "data": "` + b64(secretFile) + `", "mode": 99999}]}`,
		`{"command": ["true"], "env": {"A": "` + secretEnv + `"`,
		`"` + secretEnv + `"`,
	} {
		code, b := u.Call("POST", "/sandbox/run", body)
		if code < 400 {
			t.Errorf("%s: %d %s", body, code, b)
		}
		s.look(fmt.Sprint("the answer to body ", i), b)
	}

	code, b := u.Call("POST", "/sandbox/run", `{"command": ["sh", "-c", "cat >/dev/null; sync; echo ready; sleep 600", "`+openArg+`"], "stdin_open": true,
		"env": {"TOKEN": "`+secretEnv+`"}, "stdin": "`+b64(secretStdin)+`", "files": [{"path": "/work/key", "data": "`+b64(secretFile)+`"}]}`)
	if code != http.StatusAccepted {
		t.Fatalf("%d %s", code, b)
	}
	s.look("the answer", b)
	id := realvm.Decode[realvm.Record](t, b).ID
	s.answers(id) // queued, or on its way
	s.files(onOwnDisk)
	if code, b := u.Call("POST", "/sandbox/"+id+"/stdin", secretMore); code != http.StatusOK {
		t.Fatalf("stdin: %d %s", code, b)
	}
	logs := u.Open(realvm.Patience(t), "GET", "/sandbox/"+id+"/logs?follow=true", "")
	line, err := bufio.NewReader(logs.Body).ReadString('\n')
	logs.Body.Close()
	if err != nil || !strings.Contains(line, "ready") {
		t.Fatalf("it does not run: %q, %v\n%s", line, err, &u.Log)
	}

	s.answers(id)
	s.files(onOwnDisk)
	if n := s.processes(); n < 2 {
		t.Errorf("%d processes were looked at: where is the VM?", n)
	}
	s.look("the log", []byte(u.Log.String()))

	if code, b := u.Call("DELETE", "/sandbox/"+id+"?grace=0s", ""); code != http.StatusOK {
		t.Fatalf("%d %s", code, b)
	}
	u.Ended(id)
	s.answers(id)
	s.processes()
	u.End()
	s.files(func(string) bool { return false })
	s.look("the log", []byte(u.Log.String()))
	realvm.NothingLeft(t, state)

	// What is no secret was found where it is: the search is not blind.
	var where strings.Builder
	for path := range s.found {
		fmt.Fprintln(&where, path)
	}
	for _, want := range []string{"/ledger.db\n", "/environ\n", "/sandbox/" + id + "\n"} {
		if !strings.Contains(where.String(), want) {
			t.Errorf("what is no secret was not seen in *%q, only in\n%s", want, &where)
		}
	}
	if s.seen < 50 || !strings.Contains(u.Log.String(), id) {
		t.Errorf("only %d things were looked at, and the log is\n%s", s.seen, &u.Log)
	}
}

// onOwnDisk reports whether a file is a live sandbox's own disk.
func onOwnDisk(path string) bool {
	return filepath.Base(path) == "scratch" && strings.Contains(path, "/node/sandboxes/sb-")
}
