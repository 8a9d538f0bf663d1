package fcget

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// release makes an archive like the official one.
func release(t *testing.T, names ...string) ([]byte, Release) {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	noise := make([]byte, 200<<10) // so that the archive has a length
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for _, n := range names {
		body := append([]byte("program "+n+" "), noise...)
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o755, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	return out.Bytes(), Release{Version: "9.9.9", Arch: "x86_64", SHA256: hex.EncodeToString(sum[:])}
}

var official = []string{
	"release-v9.9.9-x86_64/LICENSE", "release-v9.9.9-x86_64/jailer-v9.9.9-x86_64", "release-v9.9.9-x86_64/firecracker-v9.9.9-x86_64.debug",
	"release-v9.9.9-x86_64/firecracker-v9.9.9-x86_64",
}

// server serves an archive as script says, and counts.
type server struct {
	*httptest.Server
	asked  atomic.Int32
	ranges atomic.Int32
}

func serve(t *testing.T, h func(n int, w http.ResponseWriter, r *http.Request)) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			s.ranges.Add(1)
		}
		h(int(s.asked.Add(1)), w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func whole(b []byte) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(b))
	}
}

func config(t *testing.T, s *server, r Release) Config {
	t.Helper()
	r.URL = s.URL + "/release.tgz"
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return Config{Release: r, Dir: filepath.Join(t.TempDir(), "firecracker"), HTTP: client}
}

// holds asserts what the folder holds, without the lock.
func holds(t *testing.T, dir string, want ...string) {
	t.Helper()
	var names []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	if fmt.Sprint(names) != fmt.Sprint(want) {
		t.Errorf("the folder holds %v, not %v", names, want)
	}
}

func TestInstall(t *testing.T) {
	b, r := release(t, official...)
	s := serve(t, whole(b))
	cfg := config(t, s, r)
	var last, total int64
	cfg.Progress = func(done, all int64) {
		if done < last {
			t.Errorf("progress fell from %d to %d", last, done)
		}
		last, total = done, all
	}
	if _, ok := Find(cfg.Dir, r); ok {
		t.Error("it is found before it is there")
	}
	for range 2 { // the second time nothing is done
		in, err := Install(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for name, path := range map[string]string{"firecracker": in.Firecracker, "jailer": in.Jailer} {
			got, err := os.ReadFile(path)
			if err != nil || !strings.HasPrefix(string(got), "program release-v9.9.9-x86_64/"+name+"-v9.9.9-x86_64 ") {
				t.Errorf("%s: %.80q, %v", path, got, err)
			}
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o755 {
				t.Errorf("%s: %v, %v", path, st.Mode(), err)
			}
		}
	}
	holds(t, cfg.Dir, "9.9.9")
	if s.asked.Load() != 1 || last != int64(len(b)) || total != last {
		t.Errorf("asked %d times, progress %d of %d", s.asked.Load(), last, total)
	}
}

// TestResume: a download that breaks goes on where it stopped.
func TestResume(t *testing.T) {
	b, r := release(t, official...)
	s := serve(t, func(n int, w http.ResponseWriter, req *http.Request) {
		if n == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			_, _ = w.Write(b[:100_000])
			return // and the connection breaks
		}
		if got := req.Header.Get("Range"); got != "bytes=100000-" {
			t.Errorf("asked for %q", got)
		}
		whole(b)(n, w, req)
	})
	cfg := config(t, s, r)
	if _, err := Install(t.Context(), cfg); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "100000") {
		t.Fatalf("a broken download: %v", err)
	}
	if _, ok := Find(cfg.Dir, r); ok {
		t.Error("half of it was installed")
	}
	if _, err := Install(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	holds(t, cfg.Dir, "9.9.9")
	if s.ranges.Load() != 1 {
		t.Errorf("%d requests for a rest", s.ranges.Load())
	}
}

// TestOddServers: those that know no ranges, or send what was not asked for.
func TestOddServers(t *testing.T) {
	b, r := release(t, official...)
	for name, c := range map[string]struct {
		second func(http.ResponseWriter)
		works  bool
	}{
		"no ranges": {func(w http.ResponseWriter) { _, _ = w.Write(b) }, true},
		"wrong range": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 5-9/10")
			w.WriteHeader(http.StatusPartialContent)
		}, false},
		"no such file": {func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, false},
		"too much": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(maxArchive+1))
			w.WriteHeader(http.StatusOK)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, func(n int, w http.ResponseWriter, _ *http.Request) {
				if n == 1 {
					w.Header().Set("Content-Length", fmt.Sprint(len(b)))
					_, _ = w.Write(b[:1000])
					return
				}
				c.second(w)
			})
			cfg := config(t, s, r)
			if _, err := Install(t.Context(), cfg); err == nil {
				t.Fatal("it was whole at once")
			}
			_, err := Install(t.Context(), cfg)
			if (err == nil) != c.works || !c.works && !fault.Is(err, fault.Unavailable) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestWrongChecksum leaves nothing, and does not keep the next from working.
func TestWrongChecksum(t *testing.T) {
	b, r := release(t, official...)
	bad := bytes.Clone(b)
	bad[len(bad)/2] ^= 1
	s := serve(t, func(n int, w http.ResponseWriter, req *http.Request) {
		if n == 1 {
			whole(bad)(n, w, req)
			return
		}
		whole(b)(n, w, req)
	})
	cfg := config(t, s, r)
	if _, err := Install(t.Context(), cfg); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), r.SHA256) {
		t.Errorf("%v", err)
	}
	holds(t, cfg.Dir)
	if _, err := Install(t.Context(), cfg); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if s.ranges.Load() != 0 {
		t.Error("it went on with what was wrong")
	}
}

func TestFrom(t *testing.T) {
	b, r := release(t, official...)
	s := serve(t, func(int, http.ResponseWriter, *http.Request) { t.Error("it asked the server") })
	cfg := config(t, s, r)
	cfg.From = filepath.Join(t.TempDir(), "release.tgz")
	var f *fault.Error
	if _, err := Install(t.Context(), cfg); !errors.As(err, &f) || f.Field != "from" {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(cfg.From, b[:len(b)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), cfg); !errors.As(err, &f) || f.Field != "from" || f.Kind != fault.InvalidArgument {
		t.Errorf("a file cut short: %v", err)
	}
	holds(t, cfg.Dir)
	if err := os.WriteFile(cfg.From, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), cfg); err != nil {
		t.Error(err)
	}
	holds(t, cfg.Dir, "9.9.9")
	if _, err := os.Stat(cfg.From); err != nil {
		t.Errorf("the caller's file: %v", err)
	}
}

// TestLacking: an archive that verifies and lacks a program installs nothing.
func TestLacking(t *testing.T) {
	b, r := release(t, official[:3]...)
	cfg := config(t, serve(t, whole(b)), r)
	if _, err := Install(t.Context(), cfg); !fault.Is(err, fault.Unsupported) {
		t.Errorf("%v", err)
	}
	if _, ok := Find(cfg.Dir, r); ok {
		t.Error("half of it was installed")
	}
}

func TestCancelled(t *testing.T) {
	b, r := release(t, official...)
	ctx, cancel := context.WithCancel(t.Context())
	s := serve(t, func(_ int, w http.ResponseWriter, req *http.Request) {
		_, _ = w.Write(b[:1000])
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-req.Context().Done()
	})
	if _, err := Install(ctx, config(t, s, r)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestNobodyThere: a download that never began leaves nothing.
func TestNobodyThere(t *testing.T) {
	_, r := release(t, official...)
	s := serve(t, func(int, http.ResponseWriter, *http.Request) {})
	cfg := config(t, s, r)
	s.Close()
	var f *fault.Error
	if _, err := Install(t.Context(), cfg); !errors.As(err, &f) || f.Kind != fault.Unavailable || !strings.Contains(f.Hint, "--from") {
		t.Errorf("%v", err)
	}
	holds(t, cfg.Dir)
}

// TestOneAtATime: while one process installs, another is told so.
func TestOneAtATime(t *testing.T) {
	b, r := release(t, official...)
	cfg := config(t, serve(t, whole(b)), r)
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(cfg.Dir, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), cfg); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
	_ = f.Close()
	if _, err := Install(t.Context(), cfg); err != nil {
		t.Error(err)
	}
}

func TestPinned(t *testing.T) {
	for arch, r := range releases {
		if sum, err := hex.DecodeString(r.SHA256); err != nil || len(sum) != sha256.Size || !strings.HasPrefix(r.URL, "https://") ||
			!strings.Contains(r.URL, "/v"+r.Version+"/") || !strings.Contains(r.URL, r.Arch) {
			t.Errorf("%s: %+v", arch, r)
		}
	}
}
