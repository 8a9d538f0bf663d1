package dirblobs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/blobtest"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// role makes this test binary play another process on the same folder.
const role = "DIRBLOBS_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		goleak.VerifyTestMain(m)
	case "writer":
		os.Exit(writer(os.Args[1]))
	case "limited":
		os.Exit(limited(os.Args[1]))
	case "stuck":
		os.Exit(stuck(os.Args[1]))
	case "noter":
		os.Exit(noter(os.Args[1]))
	}
}

// play starts this binary in another role.
func play(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], dir)
	cmd.Env = append(os.Environ(), role+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

func open(t blobtest.TB, dir string) *dirblobs.Store {
	t.Helper()
	s, err := dirblobs.Open(dirblobs.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func file(dir string, d sandbox.Digest) string {
	return filepath.Join(dir, "blobs", d.Hex()[:2], d.Hex())
}

// files are all files below dir but those in damaged.
func files(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Base(filepath.Dir(path)) != "damaged" {
			out = append(out, path)
		}
		return err
	})
	return out, err
}

func TestSuite(t *testing.T) {
	t.Parallel()
	blobtest.Run(t, func(t blobtest.TB) blobtest.Backend {
		dir, err := os.MkdirTemp("", "dirblobs-*")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return blobtest.Backend{
			Blobs: open(t, dir),
			Rewrite: func(d sandbox.Digest, edit func([]byte) []byte) error {
				b, err := os.ReadFile(file(dir, d))
				if err != nil {
					return err
				}
				return errors.Join(os.Chmod(file(dir, d), 0o644), os.WriteFile(file(dir, d), edit(b), 0o644))
			},
			Count: func() (int, error) {
				all, err := files(dir)
				return len(all), err
			},
		}
	})
}

// A flip that leaves size and time alone is found by the next process.
func TestSilentDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := open(t, dir).Put(t.Context(), strings.NewReader("precious"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file(dir, d))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(file(dir, d), 0o644), os.WriteFile(file(dir, d), []byte("Precious"), 0o644),
		os.Chtimes(file(dir, d), st.ModTime(), st.ModTime())); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if p, err := s.Path(t.Context(), d); !fault.Is(err, fault.Conflict) {
		t.Errorf("the path of a damaged blob: %q, %v", p, err)
	}
	aside, err := filepath.Glob(filepath.Join(dir, "damaged", d.Hex()+".*"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("put aside: %v, %v", aside, err)
	}
	if _, err := s.Collect(t.Context(), func(sandbox.Digest) bool { return true }, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(aside[0]); err != nil {
		t.Errorf("within the grace it stays to be looked at: %v", err)
	}
	time.Sleep(2 * time.Millisecond)
	if _, err := s.Collect(t.Context(), func(sandbox.Digest) bool { return true }, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(aside[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the grace it goes: %v", err)
	}
}

// What is not a plain file of the store is never handed out.
func TestLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	d, err := s.Put(t.Context(), strings.NewReader("here"))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := errors.Join(os.Rename(file(dir, d), other), os.Symlink(other, file(dir, d))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), d); err == nil {
		t.Error("a link was opened")
	}
	if _, err := s.Path(t.Context(), d); err == nil {
		t.Error("the path of a link was handed out")
	}
}

// A writer that was killed leaves nothing after the next Open, and one that
// still writes is left alone.
func TestCrashLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := play(t, "stuck", dir)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil { // it is in the middle of a blob
		t.Fatal(err)
	}
	open(t, dir)
	if left, err := files(dir); err != nil || len(left) != 1 {
		t.Errorf("while another process writes: %v, %v", left, err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := other.Wait(); err == nil {
		t.Error("it ended by itself")
	}
	s := open(t, dir)
	if left, err := files(dir); err != nil || len(left) != 0 {
		t.Errorf("after a crash: %v, %v", left, err)
	}
	if _, err := s.Put(t.Context(), strings.NewReader("works")); err != nil {
		t.Error(err)
	}
}

// stuck is a writer that never comes to an end.
func stuck(dir string) int {
	s, err := dirblobs.Open(dirblobs.Config{Dir: dir})
	if err != nil {
		return 1
	}
	n := 0
	_, _ = s.Put(context.Background(), readFunc(func(p []byte) (int, error) {
		if n++; n == 3 {
			fmt.Print("x")
			select {}
		}
		return len(p), nil
	}))
	return 1
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// A full disk, played by the limit on the size of files: nothing stays, and
// the store goes on working.
func TestFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := play(t, "limited", dir).Output(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	left, err := files(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func limited(dir string) int {
	signal.Ignore(syscall.SIGXFSZ) // what a limit sends before the error
	limit := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		fmt.Println(err)
		return 1
	}
	s, err := dirblobs.Open(dirblobs.Config{Dir: dir})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, fill := range []byte{0, 1} { // a hole, and what is written
		if _, err := s.Put(context.Background(), bytes.NewReader(bytes.Repeat([]byte{fill}, 2<<20))); !fault.Is(err, fault.Unavailable) {
			fmt.Println("a blob that is too large:", err)
			return 1
		}
	}
	if _, err := s.Put(context.Background(), strings.NewReader("small")); err != nil {
		fmt.Println("a small one afterwards:", err)
		return 1
	}
	return 0
}

// The same with a real full disk, where this user may mount one.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		if os.Geteuid() == 0 {
			t.Logf("root cannot mount here: %v", err)
		}
		t.Skip("needs the right to mount a small disk")
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("something still uses it: %v", err)
		}
	}()
	s := open(t, dir)
	if _, err := s.Put(t.Context(), bytes.NewReader(bytes.Repeat([]byte{1}, 2<<20))); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a blob larger than the disk: %v", err)
	}
	if left, err := files(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := s.Put(t.Context(), bytes.NewReader(bytes.Repeat([]byte{1}, 512<<10))); err != nil {
		t.Errorf("one that fits: %v", err)
	}
	if _, err := s.Put(t.Context(), bytes.NewReader(make([]byte, 8<<20))); err != nil {
		t.Errorf("one of zeros, which take no room: %v", err)
	}
}

// playAtOnce has n processes play a role, and waits for them.
func playAtOnce(t *testing.T, n int, role, dir string) {
	t.Helper()
	var cmds []*exec.Cmd
	for range n {
		cmd := play(t, role, dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("one of the processes: %v", err)
		}
	}
}

// Several processes store, read and collect the same few blobs.
func TestProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	playAtOnce(t, 3, "writer", dir)
	left, err := files(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		b, err := os.ReadFile(f)
		if err != nil || erebus.Digest(b).Hex() != filepath.Base(f) {
			t.Errorf("%s is not its name's content, %v", f, err)
		}
	}
}

func writer(dir string) int {
	ctx := context.Background()
	s, err := dirblobs.Open(dirblobs.Config{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for i := range 150 {
		data := bytes.Repeat([]byte{byte(i % 7)}, 10_000)
		d, err := s.Put(ctx, bytes.NewReader(data))
		if err != nil {
			fmt.Fprintln(os.Stderr, "storing:", err)
			return 1
		}
		p, err := s.Path(ctx, d)
		if err != nil {
			fmt.Fprintln(os.Stderr, "path of what was just stored:", err)
			return 1
		}
		if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, data) {
			fmt.Fprintln(os.Stderr, "reading what was just stored:", err)
			return 1
		}
		// The grace is longer than what lies between a Put and the reading
		// after it, in whichever process: so what a Put returned stays.
		if _, err := s.Collect(ctx, func(sandbox.Digest) bool { return false }, time.Second); err != nil {
			fmt.Fprintln(os.Stderr, "collecting:", err)
			return 1
		}
	}
	return 0
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	if _, err := dirblobs.Open(dirblobs.Config{}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("no folder: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dirblobs.Open(dirblobs.Config{Dir: plain}); err == nil {
		t.Error("a file was opened as a folder")
	}
}
