package soak_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// soak is one run.
type soak struct {
	t      *testing.T
	dir    string
	before testkit.Inventory
	http   *http.Client

	proc *server // the present one; of the goroutine that runs the test

	mu       sync.Mutex
	url      string            // guarded by mu
	token    string            // guarded by mu
	admitted map[string]string // guarded by mu; cause of the end by ID, "" until it is known
	counts   map[string]int64  // guarded by mu
	notes    []string
}

// server is the process under test.
type server struct {
	cmd  *exec.Cmd
	life io.Closer
	said *strings.Builder
}

func newSoak(t *testing.T) *soak {
	dir, err := os.MkdirTemp("", "tsoak") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s := &soak{t: t, dir: dir, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, admitted: map[string]string{}, counts: map[string]int64{}}
	if s.before, err = testkit.TakeInventory(testkit.Scope{Mark: dir}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(policy), 0o600),
		os.WriteFile(filepath.Join(dir, "vmlinux"), testkit.FakeKernel(), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.start()
	t.Cleanup(func() { // does nothing after stop
		if s.proc != nil {
			_ = s.proc.cmd.Process.Kill()
			_ = s.proc.cmd.Wait()
		}
	})
	return s
}

// start starts the server, and waits until it answers.
func (s *soak) start() {
	s.t.Helper()
	p := &server{cmd: exec.Command("/proc/self/exe"), said: &strings.Builder{}}
	p.cmd.Env = append(os.Environ(), roleVar+"="+s.dir)
	p.cmd.Stderr = p.said
	life, err := p.cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	p.life = life
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.proc = p
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.t.Fatalf("the server did not start: %v: %s", p.cmd.Wait(), p.said)
	}
	token, err := os.ReadFile(filepath.Join(s.dir, "s", "admin-token"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.url, s.token = strings.TrimSpace(url), strings.TrimSpace(string(token))
}

// kill ends the server as kill -9 does, and starts another on the same state.
func (s *soak) kill() {
	_ = s.proc.cmd.Process.Signal(syscall.SIGKILL)
	_ = s.proc.cmd.Wait()
	s.count("servers killed", 1)
	s.start()
}

// stop ends the server in order.
func (s *soak) stop() {
	_ = s.proc.life.Close()
	if err := s.proc.cmd.Wait(); err != nil {
		s.t.Errorf("the server ended with %v: %s", err, s.proc.said)
	}
	s.proc = nil
	s.http.CloseIdleConnections()
}

// request makes a request to whatever server there is now.
func (s *soak) request(ctx context.Context, method, path, body string) (*http.Request, error) {
	s.mu.Lock()
	url, token := s.url, s.token
	s.mu.Unlock()
	r, err := http.NewRequestWithContext(ctx, method, url+path, strings.NewReader(body))
	if err == nil {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r, err
}

func (s *soak) count(what string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what] += n
}

// metrics reads what the server tells of itself.
func (s *soak) metrics(names ...model.LabelValue) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := s.request(ctx, http.MethodGet, "/metrics", "")
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for _, n := range names {
		f := families[string(n)]
		if f == nil {
			return nil, fmt.Errorf("there is no metric %s", n)
		}
		for _, m := range f.GetMetric() {
			out[string(n)] += m.GetGauge().GetValue()
		}
	}
	return out, nil
}

// rss is the server's memory in bytes.
func (s *soak) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.proc.cmd.Process.Pid))
	f := strings.Fields(string(b))
	if err != nil || len(f) < 2 {
		s.t.Fatalf("reading the server's memory: %v %q", err, b)
	}
	pages, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

func (s *soak) summary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends := map[string]int64{}
	for _, end := range s.admitted {
		ends["ended: "+end]++
	}
	maps.Copy(ends, s.counts)
	ends["admitted"] = int64(len(s.admitted))
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(ends)) {
		fmt.Fprintf(&b, "%8d  %s\n", ends[k], k)
	}
	for _, n := range s.notes {
		fmt.Fprintln(&b, n)
	}
	return b.String()
}

// record is what is read of a record, or of an error.
type record struct {
	ID      string `json:"id"`
	EndedAt string `json:"ended_at"`
	Exit    struct {
		Cause string `json:"cause"`
	} `json:"exit"`
	Error struct {
		Code string `json:"code"`
	} `json:"error"`
}

func decode(r io.Reader) (rec record, err error) {
	err = json.NewDecoder(r).Decode(&rec)
	return rec, err
}
