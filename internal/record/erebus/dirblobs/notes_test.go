package dirblobs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/dirblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// large is a blob of which verifications are noted.
func large(fill byte) []byte { return bytes.Repeat([]byte{fill}, 1<<20+1) }

func noteOf(dir string, d sandbox.Digest) string { return filepath.Join(dir, "verified", d.Hex()) }

// note is what a test looks at of a note; the rest of it stays as it is.
type note struct {
	Version  int              `json:"version"`
	Digest   sandbox.Digest   `json:"digest"`
	File     map[string]int64 `json:"file"`
	Verified time.Time        `json:"verified"`
}

func readNote(path string) (note, error) {
	var n note
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	return n, err
}

func writeNote(t *testing.T, path string, n note) {
	t.Helper()
	b, err := json.Marshal(n)
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// identity is the file as a note tells it.
func identity(path string) (map[string]int64, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return nil, err
	}
	return map[string]int64{
		"device": int64(st.Dev), "inode": int64(st.Ino), "bytes": st.Size,
		"modified_ns": st.Mtim.Nano(), "changed_ns": st.Ctim.Nano(),
	}, nil
}

// speaksOf reports whether the note of d tells the file that is there.
func speaksOf(t *testing.T, dir string, d sandbox.Digest) bool {
	t.Helper()
	n, err := readNote(noteOf(dir, d))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	want, ierr := identity(file(dir, d))
	if err := errors.Join(err, ierr); err != nil {
		t.Fatal(err)
	}
	return n.Version == 1 && n.Digest == d && fmt.Sprint(n.File) == fmt.Sprint(want)
}

// flip damages a blob in place and gives it back its time of modification.
func flip(t *testing.T, path string) {
	t.Helper()
	before, err := identity(path)
	if err != nil {
		t.Fatal(err)
	}
	for { // until the kernel's clock has ticked
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{'!'}, 4711)
		mtime := time.Unix(0, before["modified_ns"])
		if err := errors.Join(err, f.Close(), os.Chtimes(path, mtime, mtime)); err != nil {
			t.Fatal(err)
		}
		after, err := identity(path)
		if err != nil {
			t.Fatal(err)
		}
		if after["modified_ns"] != before["modified_ns"] || after["bytes"] != before["bytes"] || after["inode"] != before["inode"] {
			t.Fatalf("%v became %v: the test is blind", before, after)
		}
		if after["changed_ns"] != before["changed_ns"] {
			return
		}
	}
}

// forge makes a store with a damaged blob, and a note that says that just this
// file was verified: who believes the note hands the blob out, and who reads
// the blob notices.
func forge(t *testing.T, dir string) (sandbox.Digest, note) {
	t.Helper()
	d, err := open(t, dir).Put(t.Context(), bytes.NewReader(large(1)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file(dir, d), 0o644); err != nil { // for a test that is not root
		t.Fatal(err)
	}
	flip(t, file(dir, d))
	n, err := readNote(noteOf(dir, d))
	if err != nil {
		t.Fatal(err)
	}
	if n.File, err = identity(file(dir, d)); err != nil {
		t.Fatal(err)
	}
	n.Verified = time.Now()
	writeNote(t, noteOf(dir, d), n)
	return d, n
}

// edited changes a note that is believed.
func edited(edit func(*note)) func(*testing.T, string, note) {
	return func(t *testing.T, path string, n note) {
		edit(&n)
		writeNote(t, path, n)
	}
}

// cut leaves so many bytes of a note; counted from its end if negative.
func cut(n int64) func(*testing.T, string, note) {
	return func(t *testing.T, path string, _ note) {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, (n+st.Size())%st.Size()); err != nil {
			t.Fatal(err)
		}
	}
}

// A note is believed if all of it is as it should be, and not otherwise.
func TestWhichNotesAreBelieved(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		edit     func(t *testing.T, path string, n note)
		believed bool
	}{
		{"as it should be", edited(func(*note) {}), true},
		{"nearly a day old", edited(func(n *note) { n.Verified = n.Verified.Add(-23 * time.Hour) }), true},
		{"a day old", edited(func(n *note) { n.Verified = n.Verified.Add(-24 * time.Hour) }), false},
		{"from the future: the clock was set back", edited(func(n *note) { n.Verified = n.Verified.Add(time.Hour) }), false},
		{"of no time", edited(func(n *note) { n.Verified = time.Time{} }), false},
		{"of another version", edited(func(n *note) { n.Version++ }), false},
		{"of another device", edited(func(n *note) { n.File["device"]++ }), false},
		{"of another inode", edited(func(n *note) { n.File["inode"]++ }), false},
		{"of another size", edited(func(n *note) { n.File["bytes"]++ }), false},
		{"modified since", edited(func(n *note) { n.File["modified_ns"]-- }), false},
		{"changed since", edited(func(n *note) { n.File["changed_ns"]-- }), false},
		{"of another blob", edited(func(n *note) { n.Digest = erebus.Digest([]byte("another")) }), false},
		{"of no file", edited(func(n *note) { n.File = nil }), false},
		{"empty", cut(0), false},
		{"cut at its start", cut(1), false},
		{"cut in the middle", cut(100), false},
		{"cut at its end", cut(-1), false},
		{"with more behind it", func(t *testing.T, path string, _ note) {
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, append(b, b...), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, false},
		{"zeros", func(t *testing.T, path string, _ note) {
			if err := os.WriteFile(path, make([]byte, 200), 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"missing", func(t *testing.T, path string, _ note) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"unreadable: a folder", func(t *testing.T, path string, _ note) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d, n := forge(t, dir)
			c.edit(t, noteOf(dir, d), n)
			_, err := open(t, dir).Path(t.Context(), d)
			if c.believed && err != nil {
				t.Errorf("a note to be believed: %v", err)
			}
			if !c.believed && !fault.Is(err, fault.Conflict) {
				t.Errorf("a note that nobody should believe: %v", err)
			}
		})
	}
}

// What damages a blob in place and sets its time back is noticed by the next
// process, which then leaves no note; what is stored again is good.
func TestChangedInPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	d, err := s.Put(t.Context(), bytes.NewReader(large(1)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Path(t.Context(), d); err != nil || !speaksOf(t, dir, d) {
		t.Fatalf("before: %v", err)
	}
	if err := os.Chmod(file(dir, d), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Path(t.Context(), d); err != nil || !speaksOf(t, dir, d) {
		t.Fatalf("with another mode: %v", err)
	}
	flip(t, file(dir, d))
	for _, s := range []*dirblobs.Store{open(t, dir), s} {
		_, err := s.Path(t.Context(), d)
		if !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound) {
			t.Errorf("a blob that was changed in place: %v", err)
		}
	}
	if _, err := os.Lstat(noteOf(dir, d)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note of a blob that was put aside: %v", err)
	}
	if _, err := s.Put(t.Context(), bytes.NewReader(large(1))); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Path(t.Context(), d); err != nil || !speaksOf(t, dir, d) {
		t.Errorf("stored again: %v", err)
	}
}

// What a process reads in full it notes; small blobs are read by each.
func TestVerificationsAreNoted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	d, err := s.Put(t.Context(), bytes.NewReader(large(1)))
	if err != nil {
		t.Fatal(err)
	}
	if !speaksOf(t, dir, d) {
		t.Error("what was stored is not noted")
	}
	for what, use := range map[string]func(*dirblobs.Store) error{
		"Path": func(s *dirblobs.Store) error {
			_, err := s.Path(t.Context(), d)
			return err
		},
		"Open and Seek": func(s *dirblobs.Store) error {
			r, err := s.Open(t.Context(), d)
			if err != nil {
				return err
			}
			defer r.Close()
			if _, err := r.Seek(-1, io.SeekEnd); err != nil {
				return err
			}
			_, err = io.ReadAll(r)
			return err
		},
	} {
		if err := os.Remove(noteOf(dir, d)); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := use(s); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		wg.Wait()
		if !speaksOf(t, dir, d) {
			t.Errorf("%s leaves no note", what)
		}
	}
	small, err := s.Put(t.Context(), strings.NewReader("small"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Path(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(noteOf(dir, small)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note of a small blob: %v", err)
	}
}

// Storing what another process has stored makes it young, not newly verified.
func TestRenewedNote(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := open(t, dir).Put(t.Context(), bytes.NewReader(large(1)))
	if err != nil {
		t.Fatal(err)
	}
	before, err := readNote(noteOf(dir, d))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := open(t, dir).Put(t.Context(), bytes.NewReader(large(1))); err != nil {
			t.Fatal(err)
		}
	}
	after, err := readNote(noteOf(dir, d))
	if err != nil {
		t.Fatal(err)
	}
	if !speaksOf(t, dir, d) || after.File["inode"] != before.File["inode"] || after.File["modified_ns"] == before.File["modified_ns"] {
		t.Errorf("%v was renewed as %v", before, after)
	}
	if !after.Verified.Equal(before.Verified) {
		t.Errorf("verified at %v, renewed: at %v", before.Verified, after.Verified)
	}
}

// A process that lives for longer than a day verifies again, too.
func TestADayInOneProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d, _ := forge(t, dir)
		s := open(t, dir)
		for range 2 {
			if _, err := s.Path(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			time.Sleep(11 * time.Hour)
		}
		time.Sleep(2 * time.Hour)
		if _, err := s.Path(t.Context(), d); !fault.Is(err, fault.Conflict) {
			t.Errorf("after a day: %v", err)
		}
	})
}

// Notes go with their blobs; those that stayed behind go with the next sweep.
func TestNotesGoWithTheirBlobs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	kept, err := s.Put(t.Context(), bytes.NewReader(large(1)))
	if err != nil {
		t.Fatal(err)
	}
	notes := func(what string, want int) {
		t.Helper()
		all, err := os.ReadDir(filepath.Join(dir, "verified"))
		if err != nil || len(all) != want {
			t.Errorf("%s: notes %v, %v; want %d", what, all, err, want)
		}
	}
	collect := func(grace time.Duration) {
		t.Helper()
		if _, err := s.Collect(t.Context(), func(d sandbox.Digest) bool { return d == kept }, grace); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := s.Put(t.Context(), bytes.NewReader(large(2)))
	if err != nil {
		t.Fatal(err)
	}
	notes("stored", 2)
	collect(time.Hour)
	notes("within the grace", 2)
	collect(-time.Hour)
	notes("collected", 1)

	orphan := func() {
		t.Helper()
		n, err := readNote(noteOf(dir, kept))
		if err != nil {
			t.Fatal(err)
		}
		writeNote(t, noteOf(dir, gone), n)
	}
	orphan()
	open(t, dir)
	notes("opened", 1)
	orphan()
	collect(time.Hour)
	notes("tidied", 1)
	if !speaksOf(t, dir, kept) {
		t.Error("the note of what was kept has suffered")
	}
}

// A store whose notes cannot be written works.
func TestWithoutNotes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	notes := filepath.Join(dir, "verified")
	if err := errors.Join(os.Remove(notes), os.WriteFile(notes, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	d, err := s.Put(t.Context(), bytes.NewReader(large(1)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Path(t.Context(), d); err != nil {
		t.Error(err)
	}
	if removed, err := s.Collect(t.Context(), func(sandbox.Digest) bool { return false }, -time.Hour); err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v", removed, err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Two processes store, renew, verify and collect the same few blobs: whatever
// is noted in the end is true.
func TestNotesOfTwoProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	playAtOnce(t, 2, "noter", dir)
	s := open(t, dir)
	for fill := range byte(noterBlobs) {
		d := erebus.Digest(large(fill))
		p, err := s.Path(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, large(fill)) {
			t.Errorf("blob %d has other bytes, %v", fill, err)
		}
		if !speaksOf(t, dir, d) {
			t.Errorf("blob %d was verified, and there is no note", fill)
		}
	}
	if left, err := files(dir); err != nil || len(left) != 2*noterBlobs {
		t.Errorf("%d files for %d blobs, %v", len(left), noterBlobs, err)
	}
}

const noterBlobs = 3

func noter(dir string) int {
	ctx := context.Background()
	for i := range 40 {
		s, err := dirblobs.Open(dirblobs.Config{Dir: dir}) // each time it knows what is noted and no more
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		data := large(byte(i % noterBlobs))
		d, err := s.Put(ctx, bytes.NewReader(data))
		if err != nil {
			fmt.Fprintln(os.Stderr, "storing:", err)
			return 1
		}
		if i%5 == 0 {
			_ = os.Remove(noteOf(dir, d)) // so that it is read
		}
		if _, err := s.Path(ctx, d); err != nil {
			fmt.Fprintln(os.Stderr, "path of what was just stored:", err)
			return 1
		}
		if _, err := s.Collect(ctx, func(sandbox.Digest) bool { return false }, time.Minute); err != nil {
			fmt.Fprintln(os.Stderr, "collecting:", err)
			return 1
		}
	}
	return 0
}

// What the path of a template costs a new process, with a note and without.
func BenchmarkPath(b *testing.B) {
	dir := b.TempDir()
	d, err := open(b, dir).Put(b.Context(), bytes.NewReader(bytes.Repeat([]byte("template"), 200<<20/8)))
	if err != nil {
		b.Fatal(err)
	}
	for _, noted := range []bool{true, false} {
		b.Run(fmt.Sprintf("noted=%v", noted), func(b *testing.B) {
			for b.Loop() {
				if !noted {
					if err := os.Remove(noteOf(dir, d)); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := open(b, dir).Path(b.Context(), d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
