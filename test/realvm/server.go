package realvm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is an up in a process of its own.
type Server struct {
	T      *testing.T
	Cmd    *exec.Cmd
	URL    string
	Token  string
	life   io.Closer // its standard input
	stderr *bytes.Buffer
}

// StartServer starts an up on state and waits until it answers.
func StartServer(t *testing.T, state, orders, policy string) *Server {
	t.Helper()
	s := &Server{T: t, Cmd: exec.Command("/proc/self/exe"), stderr: &bytes.Buffer{}}
	s.Cmd.Env = append(os.Environ(), roleVar+"=server", "TARTARUS_STATE="+state, ordersVar+"="+orders, policyVar+"="+policy)
	s.Cmd.Stderr = s.stderr
	life, err := s.Cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.life = life
	out, err := s.Cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var line bytes.Buffer
	for b := make([]byte, 1); ; {
		if _, err := out.Read(b); err != nil {
			_ = s.Cmd.Wait()
			t.Fatalf("the server ended: %s", s.stderr)
		}
		if b[0] == '\n' {
			break
		}
		line.WriteByte(b[0])
	}
	s.URL = line.String()
	token, err := os.ReadFile(filepath.Join(state, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	s.Token = strings.TrimSpace(string(token))
	t.Cleanup(s.Kill) // does nothing after stop
	return s
}

// For is the server for a subtest.
func (s *Server) For(t *testing.T) *Server {
	u := *s
	u.T = t
	return &u
}

// Kill ends the server as kill -9 does.
func (s *Server) Kill() {
	if s.Cmd.ProcessState != nil {
		return
	}
	_ = s.Cmd.Process.Signal(syscall.SIGKILL)
	_ = s.Cmd.Wait()
}

// Stop ends the server in order.
func (s *Server) Stop() {
	s.T.Helper()
	s.life.Close()
	if err := s.Cmd.Wait(); err != nil {
		s.T.Errorf("the server ended with %v: %s", err, s.stderr)
	}
}

// Call is one request, whole.
func (s *Server) Call(method, path, body string) (int, []byte) {
	s.T.Helper()
	resp := s.Open(Patience(s.T), method, path, body)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.T.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, b
}

// Open is one request whose answer the caller reads and closes.
func (s *Server) Open(ctx context.Context, method, path, body string) *http.Response {
	s.T.Helper()
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, strings.NewReader(body))
	if err != nil {
		s.T.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	resp, err := quick.Do(req)
	if err != nil {
		s.T.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// quick keeps no connections, so that none outlives its test.
var quick = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Record is what the tests read of a record.
type Record struct {
	ID         string    `json:"id"`
	State      string    `json:"state"`
	AssignedAt time.Time `json:"assigned_at"`
	StartedAt  time.Time `json:"started_at"`
	EndedAt    time.Time `json:"ended_at"`
	Exit       struct {
		Cause     string `json:"cause"`
		Source    string `json:"source"`
		Code      *int   `json:"code"`
		Signal    int    `json:"signal"`
		Message   string `json:"message"`
		LimitsHit []struct {
			Limit string  `json:"limit"`
			Count float64 `json:"count"`
		} `json:"limits_hit"`
	} `json:"exit"`
	Isolation struct {
		Accelerator string   `json:"accelerator"`
		Confinement []string `json:"confinement"`
		Missing     []string `json:"missing"`
	} `json:"isolation"`
	Runtime struct {
		Driver  string `json:"driver"`
		Version string `json:"version"`
		Attempt int    `json:"attempt"`
	} `json:"runtime"`
	Usage struct {
		LogBytes     float64 `json:"log_bytes"`
		LogTruncated bool    `json:"log_truncated"`
	} `json:"usage"`
}

// Run asks for a run, which must be admitted.
func (s *Server) Run(body string) Record {
	s.T.Helper()
	code, b := s.Call("POST", "/sandbox/run", body)
	if code != http.StatusAccepted {
		s.T.Fatalf("POST /sandbox/run: %d %s", code, b)
	}
	return Decode[Record](s.T, b)
}

// Get is the record as it is now.
func (s *Server) Get(id string) Record {
	s.T.Helper()
	code, b := s.Call("GET", "/sandbox/"+id, "")
	if code != http.StatusOK {
		s.T.Fatalf("GET /sandbox/%s: %d %s", id, code, b)
	}
	return Decode[Record](s.T, b)
}

// Decode reads JSON.
func Decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

// Ended waits for the end of a sandbox, by its events.
func (s *Server) Ended(id string) Record {
	s.T.Helper()
	s.Follow(id, func(state string) bool { return false })
	return s.Get(id)
}

// Follow reads a sandbox's states until it has ended or enough says so.
func (s *Server) Follow(id string, enough func(state string) bool) {
	s.T.Helper()
	resp := s.Open(Patience(s.T), "GET", "/sandbox/"+id+"/events?follow=true", "")
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var e struct {
			State string          `json:"state"`
			Error json.RawMessage `json:"error"`
		}
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil || e.Error != nil {
			s.T.Fatalf("events of %s: %v %s", id, err, e.Error)
		}
		if enough(e.State) {
			return
		}
	}
}

// Up is a `tartarus up` as users start it.
type Up struct {
	Server
	Log syncLog
}

type syncLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *syncLog) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.WriteString(line)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// StartUp starts an up that tells everything it does, and waits until it
// answers.
func StartUp(t *testing.T, state string, flags ...string) *Up {
	t.Helper()
	return startUp(t, state, upCommand(t, state, flags))
}

// StartUpAsNobody is StartUp of an ordinary user, whose state becomes.
func StartUpAsNobody(t *testing.T, state string, flags ...string) *Up {
	t.Helper()
	return startUp(t, state, AsNobody(t, upCommand(t, state, flags), state))
}

func upCommand(t *testing.T, state string, flags []string) *exec.Cmd {
	return Command(t.Context(), state, append([]string{"up", "-v", "--listen", "127.0.0.1:0"}, flags...)...)
}

func startUp(t *testing.T, state string, c *exec.Cmd) *Up {
	t.Helper()
	u := &Up{Server: Server{T: t, stderr: &bytes.Buffer{}}}
	u.Cmd = c
	u.Cmd.Cancel = func() error { return u.Cmd.Process.Signal(syscall.SIGTERM) }
	out, err := u.Cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what it told:\n%s", &u.Log)
		}
	})
	t.Cleanup(u.Kill) // does nothing after end
	address := make(chan string, 1)
	go func() {
		defer close(address)
		for r := bufio.NewReader(out); ; {
			line, err := r.ReadString('\n')
			u.Log.add(line)
			if a, ok := strings.CutPrefix(line, "tartarus: listening on http"); ok {
				address <- "http" + strings.TrimSpace(a)
			}
			if err != nil {
				return
			}
		}
	}()
	var ok bool
	if u.URL, ok = <-address; !ok {
		t.Fatalf("it ended: %s", &u.Log)
	}
	token, err := os.ReadFile(filepath.Join(state, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	u.Token = strings.TrimSpace(string(token))
	return u
}

// End ends it in order.
func (u *Up) End() {
	u.T.Helper()
	if err := u.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		u.T.Fatal(err)
	}
	if err := u.Cmd.Wait(); err != nil {
		u.T.Errorf("it ended with %v: %s", err, &u.Log)
	}
}
