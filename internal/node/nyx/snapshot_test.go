package nyx_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func shape(n int) nyx.Shape {
	return nyx.Shape{
		Template: sandbox.Digest("sha256:" + strings.Repeat("a", 64)), Bundle: sandbox.Digest("sha256:" + strings.Repeat("b", 64)),
		Driver: "fake", Version: "1", Accelerator: "none", Machine: "m", VCPUs: 1, MemoryMiB: int64(n), DiskMiB: 64,
	}
}

// snapshotSize is of the memory of snap's snapshots, most of which is a hole.
const snapshotSize = 1 << 20

// snap writes what a VMM would.
func snap(n int) func(context.Context, *os.File, *os.File) error {
	return func(_ context.Context, memory, state *os.File) error {
		_, err := memory.WriteAt([]byte(fmt.Sprintf("memory %d", n)), snapshotSize/2)
		_, serr := fmt.Fprintf(state, "state %d", n)
		return errors.Join(err, serr, memory.Truncate(snapshotSize))
	}
}

// isThere reads a snapshot and compares it with what snap wrote.
func isThere(t *testing.T, s *nyx.Store, n int) bool {
	t.Helper()
	got, err := s.Snapshot(t.Context(), shape(n))
	if fault.Is(err, fault.NotFound) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	state, err := io.ReadAll(got.State)
	memory, merr := io.ReadAll(got.Memory)
	if err := errors.Join(err, merr); err != nil {
		t.Fatal(err)
	}
	if string(state) != fmt.Sprintf("state %d", n) || len(memory) != snapshotSize ||
		!bytes.HasPrefix(memory[snapshotSize/2:], fmt.Appendf(nil, "memory %d", n)) {
		t.Errorf("snapshot %d: state %q, %d bytes of memory", n, state, len(memory))
	}
	return true
}

// snapshotFiles are the names beside the index.
func snapshotFiles(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "nyx", "snapshots", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir, nyx.Config{})
	if isThere(t, s, 1) {
		t.Error("there is one before it is made")
	}
	if err := s.MakeSnapshot(t.Context(), shape(1), snap(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.MakeSnapshot(t.Context(), shape(1), func(context.Context, *os.File, *os.File) error {
		t.Error("one that is there is made again")
		return nil
	}); err != nil {
		t.Error(err)
	}
	again := mustOpen(t, dir, nyx.Config{})
	if !isThere(t, s, 1) || !isThere(t, again, 1) || isThere(t, s, 2) {
		t.Error("the one that was made is not the one that is there")
	}
	if keep, err := s.Referenced(t.Context()); err != nil || len(keep) != 2 {
		t.Errorf("a collection would keep %v (%v)", keep, err)
	}
	if err := errors.Join(s.DropSnapshot(shape(1)), s.DropSnapshot(shape(1))); err != nil || isThere(t, again, 1) {
		t.Errorf("one that was dropped is there (%v)", err)
	}
	if left := snapshotFiles(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSnapshotFails: when it cannot be made there is none, and nothing of it.
func TestSnapshotFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir, nyx.Config{})
	no := errors.New("the VM does not boot")
	err := s.MakeSnapshot(t.Context(), shape(1), func(ctx context.Context, memory, state *os.File) error {
		return errors.Join(snap(1)(ctx, memory, state), no)
	})
	if !errors.Is(err, no) || isThere(t, s, 1) || len(snapshotFiles(t, dir)) > 0 {
		t.Errorf("%v, left %v", err, snapshotFiles(t, dir))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.MakeSnapshot(ctx, shape(1), snap(1)); err == nil && !isThere(t, s, 1) {
		t.Error("it says that it made one")
	}
}

// TestSnapshotDamaged: whatever is damaged is never handed out, and the next
// one is whole.
func TestSnapshotDamaged(t *testing.T) {
	t.Parallel()
	blob := func(dir string, sized func(int64) bool) string {
		var found string
		_ = filepath.WalkDir(filepath.Join(dir, "blobs", "blobs"), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil && sized(info.Size()) {
					found = path
				}
			}
			return nil
		})
		return found
	}
	memory := func(dir string) string { return blob(dir, func(n int64) bool { return n == snapshotSize }) }
	state := func(dir string) string { return blob(dir, func(n int64) bool { return n < 100 }) }
	manifest := func(dir string) string { return snapshotFiles(t, dir)[0] }
	edit := func(name string, change func([]byte) []byte) error {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return errors.Join(os.Chmod(name, 0o600), os.WriteFile(name, change(b), 0o600))
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for name, harm := range map[string]func(dir string) error{
		"memory cut":     func(dir string) error { return os.Truncate(memory(dir), snapshotSize/2) },
		"memory flipped": func(dir string) error { return edit(memory(dir), flip) },
		"memory gone":    func(dir string) error { return os.Remove(memory(dir)) },
		"state flipped":  func(dir string) error { return edit(state(dir), flip) },
		"state gone":     func(dir string) error { return os.Remove(state(dir)) },
		"manifest cut":   func(dir string) error { return os.Truncate(manifest(dir), 100) },
		"manifest empty": func(dir string) error { return os.Truncate(manifest(dir), 0) },
		"another shape": func(dir string) error {
			return edit(manifest(dir), func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"fake"`), []byte(`"none"`)) })
		},
		"another format": func(dir string) error {
			return edit(manifest(dir), func(b []byte) []byte { return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2`), 1) })
		},
		"an unknown field": func(dir string) error {
			return edit(manifest(dir), func(b []byte) []byte { return bytes.Replace(b, []byte(`"format"`), []byte(`"x": 1, "format"`), 1) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := mustOpen(t, dir, nyx.Config{}).MakeSnapshot(t.Context(), shape(1), snap(1)); err != nil {
				t.Fatal(err)
			}
			if err := harm(dir); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, dir, nyx.Config{})
			if isThere(t, s, 1) {
				t.Error("it is handed out")
			}
			if err := s.MakeSnapshot(t.Context(), shape(1), snap(1)); err != nil || !isThere(t, s, 1) {
				t.Errorf("it is not made again: %v", err)
			}
		})
	}
}

// TestSnapshotOneMaker: one makes it, whoever asks.
func TestSnapshotOneMaker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stores := []*nyx.Store{mustOpen(t, dir, nyx.Config{}), mustOpen(t, dir, nyx.Config{})}
	var made atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := stores[i%2].MakeSnapshot(t.Context(), shape(1), func(ctx context.Context, memory, state *os.File) error {
				made.Add(1)
				return snap(1)(ctx, memory, state)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 || !isThere(t, stores[0], 1) {
		t.Errorf("it was made %d times", made.Load())
	}
}

// TestSnapshotBudget: those that were not used for longest go.
func TestSnapshotBudget(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, dir, nyx.Config{SnapshotBytes: 20 << 10}) // each takes a block or two for memory and one for its state
	for n := 1; n <= 2; n++ {
		if err := s.MakeSnapshot(t.Context(), shape(n), snap(n)); err != nil {
			t.Fatal(err)
		}
	}
	// A time that the file system can tell apart, and a use.
	old := time.Now().Add(-time.Hour)
	for _, f := range snapshotFiles(t, dir) {
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if !isThere(t, s, 1) || !isThere(t, s, 2) {
		t.Fatal("two are too many for the budget")
	}
	for _, f := range snapshotFiles(t, dir) {
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if !isThere(t, s, 1) { // which is its use
		t.Fatal("it is gone")
	}
	if err := s.MakeSnapshot(t.Context(), shape(3), snap(3)); err != nil {
		t.Fatal(err)
	}
	if !isThere(t, s, 1) || isThere(t, s, 2) || !isThere(t, s, 3) {
		t.Error("another one went than the one that was not used for longest")
	}
}
