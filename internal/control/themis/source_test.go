package themis_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// history is a Book, and a log that can be waited for.
type history struct {
	mu      sync.Mutex
	origins []string
	texts   []string
	fails   error
	source  *themis.Source // if set: while the book writes, the one before holds
	t       *testing.T

	lines chan string
}

func newHistory(t *testing.T) *history { return &history{t: t, lines: make(chan string, 100)} }

func (h *history) Activate(_ context.Context, p *themis.Policy, origin string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails != nil {
		return h.fails
	}
	if h.source != nil && h.source.Active().Version() == p.Version() {
		h.t.Error("a version holds before it is written down")
	}
	h.origins, h.texts = append(h.origins, origin), append(h.texts, p.Text())
	return nil
}

func (h *history) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails = err
}

func (h *history) written() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.texts)
}

func (h *history) Write(line []byte) (int, error) {
	h.lines <- string(line)
	return len(line), nil
}

// await waits for a line of the log.
func (h *history) await(want string) string {
	h.t.Helper()
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	for {
		select {
		case line := <-h.lines:
			if strings.Contains(line, want) {
				return line
			}
		case <-timeout.C:
			h.t.Fatalf("no line %q in the log", want)
		}
	}
}

func (h *history) open(path string, change ...func(*themis.SourceConfig)) (*themis.Source, error) {
	cfg := themis.SourceConfig{
		Path: path, Book: h, Poll: time.Hour, Settle: 10 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(h, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	return themis.OpenSource(h.t.Context(), cfg)
}

// watched is a source that runs until the test ends.
func (h *history) watched(path string, change ...func(*themis.SourceConfig)) *themis.Source {
	h.t.Helper()
	s, err := h.open(path, change...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.source = s
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	return s
}

// put writes a file in one step.
func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(t.TempDir(), "next")
	if err := errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, path)); err != nil {
		t.Fatal(err)
	}
}

// link points name to target, in one step.
func link(t *testing.T, target, name string) {
	t.Helper()
	next := filepath.Join(filepath.Dir(name), ".next")
	if err := errors.Join(os.Symlink(target, next), os.Rename(next, name)); err != nil {
		t.Fatal(err)
	}
}

func TestSourceReloads(t *testing.T) {
	h := newHistory(t)
	if s, err := h.open(""); err != nil || s.Active().Version() != builtin(t).Version() || s.Run(t.Context()) != nil {
		t.Fatalf("built-in: %v", err)
	}
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if _, err := h.open(path); !fault.Is(err, fault.NotFound) {
		t.Errorf("no file: %v", err)
	}
	put(t, path, "version: 9")
	if _, err := h.open(path); !fault.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), path+": the policy is malformed: line 1, column 10") {
		t.Errorf("a broken file at the start: %v", err)
	}
	put(t, path, head)
	registry := prometheus.NewRegistry()
	s, err := h.open(path, func(c *themis.SourceConfig) { c.Metrics = registry })
	if err != nil {
		t.Fatal(err)
	}
	reload := func(wantChanged bool, wantErr string) {
		t.Helper()
		changed, err := s.Reload(t.Context())
		if changed != wantChanged || (err == nil) != (wantErr == "") || !strings.Contains(fmt.Sprint(err), wantErr) {
			t.Errorf("changed %v, %v; want %v, %q", changed, err, wantChanged, wantErr)
		}
		if st := s.Status(); (st.Problem == "") != (wantErr == "") || st.Origin != path || st.ProblemAt.IsZero() != (wantErr == "") {
			t.Errorf("status %+v", st)
		}
		told, err := registry.Gather()
		if err != nil || len(told) != 1 || (told[0].GetMetric()[0].GetGauge().GetValue() == 1) != (wantErr != "") {
			t.Errorf("metrics %v, %v", told, err)
		}
	}
	first := s.Active()
	reload(false, "")
	put(t, path, head+"rules: 5")
	reload(false, "line 3, column 8")
	since := s.Status().ProblemAt
	reload(false, "line 3, column 8")
	if s.Active() != first || !s.Status().ProblemAt.Equal(since) {
		t.Errorf("active %s since %v", s.Active().Version(), s.Status().ProblemAt)
	}
	put(t, path, head)
	reload(false, "")
	put(t, path, head+"# more\n")
	h.fail(fault.New(fault.Unavailable, "the disk is full"))
	reload(false, "the disk is full")
	h.fail(errors.New("SELECT secret"))
	reload(false, "SELECT secret")
	if st := s.Status(); strings.Contains(st.Problem, "SELECT") || s.Active() != first {
		t.Errorf("status %+v", st)
	}
	h.fail(nil)
	reload(true, "")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	reload(false, "there is no policy file")
	if s.Active().Text() != head+"# more\n" || first.Text() != head {
		t.Error("it does not hold on")
	}
	if got := h.written(); len(got) != 3 || got[2] != head+"# more\n" || h.origins[0] != "" || h.origins[2] != path {
		t.Errorf("written down: %q of %q", got, h.origins)
	}
}

// Every way in which a policy is replaced in one step is seen without a poll.
func TestSourceWatches(t *testing.T) {
	for name, c := range map[string]struct {
		path    string // below the folder
		prepare func(t *testing.T, dir string)
		change  func(t *testing.T, dir, text string)
	}{
		"a file is renamed over": {"policy.yaml",
			func(t *testing.T, dir string) { put(t, filepath.Join(dir, "policy.yaml"), head) },
			func(t *testing.T, dir, text string) { put(t, filepath.Join(dir, "policy.yaml"), text) },
		},
		"a file is written in place": {"policy.yaml",
			func(t *testing.T, dir string) { put(t, filepath.Join(dir, "policy.yaml"), head) },
			func(t *testing.T, dir, text string) {
				if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600); err != nil {
					t.Error(err)
				}
			},
		},
		"a ConfigMap is swapped": {"", configMap, func(t *testing.T, dir, text string) {
			put(t, filepath.Join(dir, "..v2", "policy.yaml"), text)
			link(t, "..v2", filepath.Join(dir, "..data"))
			if err := os.RemoveAll(filepath.Join(dir, "..v1")); err != nil {
				t.Error(err)
			}
		}},
		"a ConfigMap's file is named": {"policy.yaml", configMap, func(t *testing.T, dir, text string) {
			put(t, filepath.Join(dir, "..v2", "policy.yaml"), text)
			link(t, "..v2", filepath.Join(dir, "..data"))
		}},
		"a link to the folder is swapped": {"current",
			func(t *testing.T, dir string) {
				put(t, filepath.Join(dir, "r1", "rules.yaml"), head)
				link(t, "r1", filepath.Join(dir, "current"))
			},
			func(t *testing.T, dir, text string) {
				put(t, filepath.Join(dir, "r2", "rules.yaml"), text)
				link(t, "r2", filepath.Join(dir, "current"))
			},
		},
		"the folder is replaced": {"policies",
			func(t *testing.T, dir string) { put(t, filepath.Join(dir, "policies", "policy.yaml"), head) },
			func(t *testing.T, dir, text string) {
				put(t, filepath.Join(dir, "next", "policy.yaml"), text)
				err := os.Rename(filepath.Join(dir, "policies"), filepath.Join(dir, "last"))
				if err := errors.Join(err, os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "policies"))); err != nil {
					t.Error(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.prepare(t, dir)
			h := newHistory(t)
			s := h.watched(filepath.Join(dir, c.path))
			h.await("is watched")
			c.change(t, dir, head+"# good\n")
			h.await("policy holds")
			if got := s.Active().Text(); got != head+"# good\n" {
				t.Errorf("what holds is %q", got)
			}
			// What took the folder's place is watched as well.
			put(t, s.Status().Origin, head+"# better\n")
			h.await("policy holds")
			if got := h.written(); !slices.Equal(got, []string{head, head + "# good\n", head + "# better\n"}) {
				t.Errorf("written down: %q", got)
			}
		})
	}
}

// configMap makes a folder as Kubernetes mounts a ConfigMap.
func configMap(t *testing.T, dir string) {
	t.Helper()
	put(t, filepath.Join(dir, "..v1", "policy.yaml"), head)
	link(t, "..v1", filepath.Join(dir, "..data"))
	link(t, "..data/policy.yaml", filepath.Join(dir, "policy.yaml"))
}

// A broken version is told of once, with its place; the next good one holds.
func TestSourceRefusesABrokenVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	put(t, path, head)
	h := newHistory(t)
	s := h.watched(path)
	put(t, path, head+"defaults: {user: \"MARKER!\"}\n")
	line := h.await("refused")
	for _, want := range []string{"level=ERROR", path, "line 3, column 18", s.Active().Version()} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is missing in %s", want, line)
		}
	}
	if strings.Contains(line, "MARKER") || s.Active().Text() != head {
		t.Errorf("%s; what holds is %q", line, s.Active().Text())
	}
	for range 5 {
		if _, err := s.Reload(t.Context()); err == nil {
			t.Error("it is good")
		}
	}
	put(t, path, head)
	for line := range h.lines {
		if strings.Contains(line, "refused") {
			t.Fatalf("told again: %s", line)
		}
		if strings.Contains(line, "good again") {
			break
		}
	}
	if st := s.Status(); st.Problem != "" {
		t.Errorf("status %+v", st)
	}
}

// What no watch sees, the poll does: here a change behind a link.
func TestSourcePolls(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.yaml")
	put(t, filepath.Join(dir, "sub", "real"), head)
	link(t, "sub/real", path)
	h := newHistory(t)
	s := h.watched(path, func(c *themis.SourceConfig) { c.Poll = 10 * time.Millisecond })
	h.await("is watched")
	put(t, filepath.Join(dir, "sub", "real"), head+"# more\n")
	h.await("policy holds")
	if s.Active().Text() != head+"# more\n" {
		t.Errorf("what holds is %q", s.Active().Text())
	}
}

func TestWhereAPolicyIs(t *testing.T) {
	outside := t.TempDir()
	put(t, filepath.Join(outside, "real.yaml"), head)
	for name, c := range map[string]struct {
		path    string
		prepare func(t *testing.T, dir string)
		file    string // "": refused
		says    string
	}{
		"policy.yaml among others": {"", func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "policy.yaml"), head)
			put(t, filepath.Join(dir, "tests.yaml"), "x")
		}, "policy.yaml", ""},
		"the only one": {"", func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "rules.yaml"), head)
			put(t, filepath.Join(dir, ".hidden.yaml"), "x")
			put(t, filepath.Join(dir, "README"), "x")
		}, "rules.yaml", ""},
		"one of several": {"", func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "a.yaml"), head)
			put(t, filepath.Join(dir, "b.yaml"), head)
		}, "", "2 files *.yaml"},
		"none":           {"", func(*testing.T, string) {}, "", "no policy in the folder"},
		"a folder in it": {"", func(t *testing.T, dir string) { put(t, filepath.Join(dir, "policy.yaml", "x"), head) }, "", "no plain file"},
		"nothing there":  {"gone.yaml", func(*testing.T, string) {}, "", "no policy file"},
		"a link within": {"link", func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "sub", "p"), head)
			link(t, "sub/p", filepath.Join(dir, "link"))
		}, "link", ""},
		"a link to a file": {"link", func(t *testing.T, dir string) {
			link(t, filepath.Join(outside, "real.yaml"), filepath.Join(dir, "link"))
		}, "", "cannot be read"},
		"a link upwards": {"in/link", func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "real"), head)
			put(t, filepath.Join(dir, "in", "x"), "")
			link(t, "../real", filepath.Join(dir, "in", "link"))
		}, "", "cannot be read"},
		"a link out, from a folder": {"", func(t *testing.T, dir string) {
			link(t, filepath.Join(outside, "real.yaml"), filepath.Join(dir, "policy.yaml"))
		}, "", "cannot be read"},
		"..data out of the folder": {"", func(t *testing.T, dir string) {
			link(t, outside, filepath.Join(dir, "..data"))
			link(t, "..data/real.yaml", filepath.Join(dir, "policy.yaml"))
		}, "", "cannot be read"},
		"a pipe": {"pipe", func(t *testing.T, dir string) {
			if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "", "no plain file"},
		"too large": {"p", func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "p"), head+strings.Repeat("#\n", themis.MaxPolicyBytes))
		}, "", "more than"},
	} {
		dir := t.TempDir()
		c.prepare(t, dir)
		p, file, err := themis.Load(filepath.Join(dir, c.path))
		if c.file == "" {
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "internal") {
				t.Errorf("%s: %v, want %q", name, err, c.says)
			}
			continue
		}
		if err != nil || file != filepath.Join(dir, c.file) || p.Text() != head {
			t.Errorf("%s: %s, %v", name, file, err)
		}
	}
	// A file with more in it than its size says, as while it is written.
	if _, _, err := themis.Load("/proc/version"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "being written") {
		t.Errorf("a file that moves: %v", err)
	}
	if p, file, err := themis.Load(""); err != nil || file != "" || p.Version() != builtin(t).Version() {
		t.Errorf("built-in: %s, %v", file, err)
	}
}
