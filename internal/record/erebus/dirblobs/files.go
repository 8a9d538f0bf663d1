package dirblobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// createTemp makes a file in tmp and locks it, so that no sweep takes it. The
// caller closes and renames or removes it.
func (s *Store) createTemp() (*os.File, error) {
	for {
		f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "put-*")
		if err != nil {
			return nil, err
		}
		var st syscall.Stat_t
		err = flock(f, syscall.LOCK_EX)
		if err == nil {
			err = syscall.Fstat(int(f.Fd()), &st)
		}
		if err == nil && st.Nlink > 0 {
			return f, nil
		}
		// Without a name a sweep was faster than the lock: once more.
		_ = os.Remove(f.Name())
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// sweep removes what nobody is writing any more, and notes of what is gone.
// It is tidying: what it cannot do is left for the next time.
func (s *Store) sweep() {
	s.sweepNotes()
	names, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return
	}
	for _, e := range names {
		path := filepath.Join(s.dir, "tmp", e.Name())
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if flock(f, syscall.LOCK_EX|syscall.LOCK_NB) == nil && stillNamed(f, path) {
			if err := os.Remove(path); err == nil {
				s.log.Info("removed what an interrupted writer left", "file", e.Name())
			}
		}
		f.Close()
	}
}

// stillNamed reports whether path is f.
func stillNamed(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// Collect implements erebus.Blobs. It also tidies tmp and verified, and
// damaged of what is older than grace.
func (s *Store) Collect(ctx context.Context, keep func(sandbox.Digest) bool, grace time.Duration) ([]erebus.Info, error) {
	young := time.Now().Add(-grace)
	s.sweep()
	s.sweepDamaged(young)
	folders, err := os.ReadDir(filepath.Join(s.dir, "blobs"))
	if err != nil {
		return nil, classify(fmt.Errorf("collecting blobs: %w", err))
	}
	var removed []erebus.Info
	for _, folder := range folders {
		files, err := os.ReadDir(filepath.Join(s.dir, "blobs", folder.Name()))
		if err != nil {
			return removed, classify(fmt.Errorf("collecting blobs: %w", err))
		}
		for _, e := range files {
			if err := ctx.Err(); err != nil {
				return removed, err
			}
			d := sandbox.Digest("sha256:" + e.Name())
			if !d.Valid() || !strings.HasPrefix(e.Name(), folder.Name()) || keep(d) {
				continue
			}
			info, gone, err := s.removeOlder(d, young)
			if err != nil {
				return removed, classify(fmt.Errorf("collecting blobs: %w", err))
			}
			if gone {
				removed = append(removed, info)
			}
		}
	}
	return removed, nil
}

// removeOlder removes d if its age began before young, which it judges while
// nobody can store or renew it.
func (s *Store) removeOlder(d sandbox.Digest, young time.Time) (info erebus.Info, gone bool, err error) {
	unlock, err := s.lock(d, syscall.LOCK_EX)
	if err != nil {
		return info, false, err
	}
	defer unlock()
	st, err := os.Lstat(s.file(d))
	if errors.Is(err, fs.ErrNotExist) {
		return info, false, nil
	}
	if err != nil || !st.ModTime().Before(young) {
		return info, false, err
	}
	if err := os.Remove(s.file(d)); err != nil {
		return info, false, err
	}
	s.forget(d)
	return erebus.Info{Digest: d, Bytes: st.Size(), Stored: st.ModTime()}, true, nil
}

// putAside takes a damaged blob out of the store, unless its name is another
// file by now.
func (s *Store) putAside(f *os.File, d sandbox.Digest) {
	unlock, err := s.lock(d, syscall.LOCK_EX)
	if err != nil {
		s.log.Error("a damaged blob could not be put aside", "digest", d, "error", err)
		return
	}
	defer unlock()
	if !stillNamed(f, s.file(d)) {
		return
	}
	s.forget(d)
	aside := filepath.Join(s.dir, "damaged", fmt.Sprintf("%s.%d", d.Hex(), time.Now().UnixNano()))
	if err := os.Rename(s.file(d), aside); err != nil {
		s.log.Error("a damaged blob could not be put aside", "digest", d, "error", err)
		return
	}
	s.log.Error("a damaged blob was put aside", "digest", d, "file", aside)
}

func (s *Store) sweepDamaged(young time.Time) {
	dir := filepath.Join(s.dir, "damaged")
	files, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range files {
		// The time of putting aside is in the name: the blob's own is its age.
		var at int64
		if _, when, ok := strings.Cut(e.Name(), "."); !ok {
			continue
		} else if _, err := fmt.Sscanf(when, "%d", &at); err != nil || !time.Unix(0, at).Before(young) {
			continue
		}
		_ = os.Remove(filepath.Join(dir, e.Name())) // the next Collect tries again
	}
}

// lock locks the two-digit folder of d against other calls and processes,
// making it if need be. It is held for a rename or a removal, never longer.
func (s *Store) lock(d sandbox.Digest, how int) (unlock func(), err error) {
	folder := s.folder(d)
	f, err := os.Open(folder)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(folder, dirMode); err != nil {
			return nil, err
		}
		if err := syncDir(filepath.Dir(folder)); err != nil {
			return nil, err
		}
		f, err = os.Open(folder)
	}
	if err != nil {
		return nil, err
	}
	if err := flock(f, how); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// classify gives an error of the system the kind that the seam promises.
func classify(err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, full) {
			return fault.Wrap(fault.Unavailable, err, "the blob store is full").
				WithHint("make room on the disk of the state folder, or remove templates that nobody uses")
		}
	}
	for _, away := range []error{syscall.EROFS, syscall.EACCES, syscall.EPERM, syscall.EMFILE, syscall.ENFILE, syscall.ESTALE} {
		if errors.Is(err, away) {
			return fault.Wrap(fault.Unavailable, err, "the blob store is out of reach")
		}
	}
	return err
}
