package assembly

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/runner"
	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// testPolicy leaves room for every way to be refused.
const testPolicy = `version: 1
tenants:
  local:
    quota: {live: 100, running: 50, vcpus: 8, memory_mib: 65536, disk_mib: 65536, rate_per_minute: 6000, burst: 1000}
defaults: {template: base, log_bytes: 4096}
rules:
  - name: no-root
    deny: request.user == "root"
    reason: Nothing runs as root here.
`

// fakeUp is an up whose VMs are fakes: everything else of it is real.
type fakeUp struct {
	t    *testing.T
	e    *embedded
	url  string
	http *http.Client
	log  *syncBuffer // JSON lines
	stop func()
}

// startFake starts an up. script says what its n-th VM does; nil: all behave.
func startFake(t *testing.T, script func(n int, s tartarus.Spec) fakevm.Script) *fakeUp {
	t.Helper()
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	must(t, os.WriteFile(policy, []byte(testPolicy), 0o600))
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	must(t, os.WriteFile(kernel, testkit.FakeKernel(), 0o600))
	dir, err := os.MkdirTemp("", "tt") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	u := &fakeUp{t: t, log: &syncBuffer{}, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	u.e = &embedded{
		cfg: Config{
			StateDir: filepath.Join(dir, "s"), Policy: policy, Listen: "127.0.0.1:0",
			Host: &Host{Driver: fakevm.New(fakevm.Config{Script: script}), Kernel: kernel},
		},
		log: slog.New(slog.NewJSONHandler(u.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	ctx, cancel := context.WithCancel(context.Background())
	for _, step := range []func(context.Context) error{u.e.openFolders, u.e.openTelemetry, u.e.standIn, u.e.openBook, u.e.build} {
		must(t, step(ctx))
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- runner.Run(ctx, func() { close(ready) }, u.e.services...) }()
	u.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, u.e.close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(u.stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	u.url = u.e.addresses[1]
	return u
}

// ask is one request as the admin.
func (u *fakeUp) ask(method, path, body string, header ...string) (int, []byte) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, u.url+path, strings.NewReader(body))
	must(u.t, err)
	token, err := os.ReadFile(u.e.paths.adminToken())
	must(u.t, err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := u.http.Do(req)
	must(u.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(u.t, err)
	return resp.StatusCode, b
}

// answered is what the tests read of a record or an error.
type answered struct {
	ID        string    `json:"id"`
	State     string    `json:"state"`
	CreatedAt time.Time `json:"created_at"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`
	Error     struct {
		Code string `json:"code"`
		ID   string `json:"id"`
	} `json:"error"`
}

func (u *fakeUp) asked(method, path, body string, header ...string) answered {
	u.t.Helper()
	_, b := u.ask(method, path, body, header...)
	var out answered
	must(u.t, json.Unmarshal(b, &out))
	return out
}

// run runs a request until its end.
func (u *fakeUp) run(body string, header ...string) answered {
	u.t.Helper()
	out := u.asked("POST", "/sandbox/run?wait=60s", body, header...)
	if out.Error.Code == "" && out.EndedAt.IsZero() {
		u.t.Fatalf("%s did not end: %+v", body, out)
	}
	return out
}

// await waits until a sandbox is in a state.
func (u *fakeUp) await(id, state string) {
	u.t.Helper()
	u.until("sandbox "+id+" is "+state, func() bool { return u.asked("GET", "/sandbox/"+id, "").State == state })
}

// until waits for what must happen at some time.
func (u *fakeUp) until(what string, is func() bool) {
	u.t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			u.t.Fatalf("never: %s", what)
		}
	}
}

// syncBuffer is a buffer that many write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
