package lethe_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/lethe"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB) (*lethe.Store, string) {
	t.Helper()
	if _, err := distro.Look("mke2fs"); err != nil {
		t.Fatalf("these tests need e2fsprogs: %v", err)
	}
	dir := t.TempDir()
	s, err := lethe.Open(lethe.Config{Dir: filepath.Join(dir, "masters")})
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// fsck is what the file system checker, which writes nothing, says.
func fsck(t testing.TB, path string) {
	t.Helper()
	tool, err := distro.Look("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	for _, mib := range []int64{1, 2, 7, 64, 512, 20000} {
		path := filepath.Join(dir, "disk")
		for range 2 { // the first makes the master, the second does not
			if err := s.Create(t.Context(), path, mib); err != nil {
				t.Fatalf("%d MiB: %v", mib, err)
			}
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if st.Size() != mib<<20 {
				t.Errorf("%d MiB: the file has %d bytes", mib, st.Size())
			}
			if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 4<<20 {
				t.Errorf("%d MiB: an empty disk takes %d bytes", mib, used)
			}
			if st.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", st.Mode())
			}
			fsck(t, path)
			if err := s.Wipe(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a wiped disk is still there: %v", err)
			}
		}
	}
}

// A clone must be the master's equal, and writing to it must leave the master
// and other clones alone.
func TestClonesAreApart(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	if err := errors.Join(s.Create(t.Context(), a, 8), s.Create(t.Context(), b, 8)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a, bytes.Repeat([]byte("secret"), 8<<20/6), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Wipe(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), c, 8); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{b, c} {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, before) {
			t.Errorf("%s is not what the master was", filepath.Base(path))
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	for _, mib := range []int64{-1, 0, lethe.MaxMiB + 1, 1 << 62} {
		err := s.Create(t.Context(), filepath.Join(dir, "x"), mib)
		if !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%d MiB: %v", mib, err)
		}
	}
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(there, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{there, link} {
		if err := s.Create(t.Context(), path, 1); !fault.Is(err, fault.Conflict) {
			t.Errorf("creating over %s: %v", path, err)
		}
	}
	if got, _ := os.ReadFile(there); string(got) != "precious" {
		t.Errorf("what was there is now %q", got)
	}
	if err := s.Wipe(t.Context(), link); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(there); string(got) != "precious" {
		t.Errorf("wiping a link emptied its target: %q", got)
	}
	if _, err := os.Lstat(link); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link is still there: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Create(ended, filepath.Join(dir, "late"), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	path := filepath.Join(dir, "disk")
	for range 2 {
		if err := s.Wipe(t.Context(), path); err != nil {
			t.Errorf("wiping what is not there: %v", err)
		}
	}
	if err := s.Create(t.Context(), path, 4); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(path) // as a VMM that does not end would
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := s.Wipe(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	st, err := held.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != 0 || st.Sys().(*syscall.Stat_t).Blocks != 0 {
		t.Errorf("a wiped disk that is held open keeps %d bytes in %d blocks", st.Size(), st.Sys().(*syscall.Stat_t).Blocks)
	}
}

// What is left of a crash, or was cut short, is not cloned.
func TestDamagedMaster(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	path := filepath.Join(dir, "disk")
	if err := s.Create(t.Context(), path, 4); err != nil {
		t.Fatal(err)
	}
	masters, err := filepath.Glob(filepath.Join(dir, "masters", "ext4-*"))
	if err != nil || len(masters) != 1 {
		t.Fatalf("masters: %v %v", masters, err)
	}
	if err := os.Truncate(masters[0], 100); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "masters", "making-left")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = lethe.Open(lethe.Config{Dir: filepath.Join(dir, "masters")}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a crash left is still there: %v", err)
	}
	if err := s.Create(t.Context(), path+"2", 4); err != nil {
		t.Fatal(err)
	}
	fsck(t, path+"2")
}

func TestMastersAreBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := lethe.Open(lethe.Config{Dir: dir, MaxMasters: 3})
	if err != nil {
		t.Fatal(err)
	}
	for mib := int64(1); mib <= 6; mib++ {
		path := filepath.Join(t.TempDir(), "disk")
		if err := s.Create(t.Context(), path, mib); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 3 || !strings.HasSuffix(left[2], "-6.img") {
		t.Errorf("kept %v", left)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			path := filepath.Join(dir, "disk"+string(rune('a'+i)))
			if err := s.Create(t.Context(), path, int64(1+i%3)); err != nil {
				t.Error(err)
				return
			}
			fsck(t, path)
		})
	}
	wg.Wait()
	if left, _ := filepath.Glob(filepath.Join(dir, "masters", "making-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	path := filepath.Join(dir, "disk")
	rapid.Check(t, func(r *rapid.T) {
		mib := rapid.Int64Range(1, 300).Draw(r, "mib")
		if err := s.Create(context.Background(), path, mib); err != nil {
			r.Fatal(err)
		}
		defer func() {
			if err := s.Wipe(context.Background(), path); err != nil {
				r.Error(err)
			}
		}()
		f, err := os.Open(path)
		if err != nil {
			r.Fatal(err)
		}
		defer f.Close()
		if size, _ := f.Seek(0, io.SeekEnd); size != mib<<20 {
			r.Fatalf("%d MiB came out with %d bytes", mib, size)
		}
	})
}

// A host's disk without room is an error with its kind, and nothing stays.
func TestFull(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	small := filepath.Join(dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=16k,mode=0700"); err != nil {
		t.Skip("needs the right to mount a small disk")
	}
	defer func() {
		if err := syscall.Unmount(small, 0); err != nil {
			t.Errorf("something still uses it: %v", err)
		}
	}()
	if err := s.Create(t.Context(), filepath.Join(small, "disk"), 64); !fault.Is(err, fault.Unavailable) {
		t.Errorf("on a full disk: %v", err)
	}
	if left, err := os.ReadDir(small); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestFree(t *testing.T) {
	t.Parallel()
	got, err := lethe.Free(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if got.TotalMiB <= 0 || got.FreeMiB < 0 || got.FreeMiB > got.TotalMiB {
		t.Errorf("%+v", got)
	}
	if _, err := lethe.Free(filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("a folder that is not there has room")
	}
}

func BenchmarkCreate(b *testing.B) {
	s, dir := open(b)
	path := filepath.Join(dir, "disk")
	for b.Loop() {
		if err := s.Create(b.Context(), path, 512); err != nil {
			b.Fatal(err)
		}
		if err := s.Wipe(b.Context(), path); err != nil {
			b.Fatal(err)
		}
	}
}
