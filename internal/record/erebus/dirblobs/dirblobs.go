// Package dirblobs is the blob store in a folder of this host: one read-only
// file a blob, named by its content.
//
// Layout, under the store's folder:
//
//	blobs/ab/ab12…  the blobs, 0444; the age of a blob is its mtime
//	tmp/            what is being written, each file locked (flock) by its
//	                writer; one that nobody locks is what a crash left
//	damaged/        what was not what its name said; never handed out
//	verified/ab12…  notes: a blob of that name was verified, the file being
//	                this one, at that time (JSON; blobs of 1 MiB or more)
//
// What is zero in blocks of 4 KiB is a hole in the file of a blob, where the
// file system has such.
//
// A blob is verified in full before its path is handed out, which is not done
// again as long as a note, a day old at most, names just this file: its
// device, inode, size, and times of modification and change.
//
// Any number of processes may use one folder at once. The two-digit folders
// are the locks between them: storing and renewing hold one shared, removing
// holds it exclusively, each for the moment of the change only.
package dirblobs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/sparse"
)

// Config is where a store is.
type Config struct {
	Dir string       // made if it is not there, 0700
	Log *slog.Logger // nil discards
}

// Validate reports what is missing.
func (c Config) Validate() error {
	if c.Dir == "" {
		return fault.Invalid("dir", "name the folder of the blobs", "the blob store has no folder")
	}
	return nil
}

// Store is a folder of blobs. It holds nothing open between calls.
type Store struct {
	dir string // absolute
	log *slog.Logger

	mu       sync.Mutex
	verified map[sandbox.Digest]note          // as this process saw it last; mu
	checking map[sandbox.Digest]chan struct{} // one verification at a time for a blob; mu
}

var _ erebus.Local = (*Store)(nil)

const (
	blobMode = 0o444
	dirMode  = 0o700
)

// Open opens the store in c.Dir, and sweeps what crashed processes left there.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening blob store: %w", err)
	}
	s := &Store{dir: dir, log: c.Log, verified: map[sandbox.Digest]note{}, checking: map[sandbox.Digest]chan struct{}{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, sub := range []string{"blobs", "tmp", "damaged", "verified"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), dirMode); err != nil {
			return nil, classify(fmt.Errorf("opening blob store: %w", err))
		}
	}
	s.sweep()
	return s, nil
}

func (s *Store) folder(d sandbox.Digest) string { return filepath.Join(s.dir, "blobs", d.Hex()[:2]) }
func (s *Store) file(d sandbox.Digest) string   { return filepath.Join(s.folder(d), d.Hex()) }

// Put implements erebus.Blobs.
func (s *Store) Put(ctx context.Context, r io.Reader) (sandbox.Digest, error) {
	f, err := s.createTemp()
	if err != nil {
		return "", classify(fmt.Errorf("storing blob: %w", err))
	}
	defer f.Close() // and with it the lock on it
	d, err := s.fill(ctx, f, r)
	if err == nil {
		err = s.publish(f, d)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the sweep gets it otherwise
		return "", classify(fmt.Errorf("storing blob: %w", err))
	}
	return d, nil
}

// fill writes r to f durably, zeros as holes, and returns its name.
func (s *Store) fill(ctx context.Context, f *os.File, r io.Reader) (sandbox.Digest, error) {
	h, to := sha256.New(), sparse.NewWriter(f)
	if _, err := erebus.Copy(ctx, io.MultiWriter(to, h), r); err != nil {
		return "", err
	}
	if err := to.End(); err != nil {
		return "", err
	}
	if err := f.Chmod(blobMode); err != nil {
		return "", err
	}
	return erebus.DigestOf(h), f.Sync()
}

// publish gives f its name. Where a good blob of that name is already, that
// one is renewed and stays; one that is not known to be good is replaced, which
// heals it if it is damaged.
func (s *Store) publish(f *os.File, d sandbox.Digest) error {
	unlock, err := s.lock(d, syscall.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	if s.renew(d) {
		return os.Remove(f.Name())
	}
	// Its age begins here, under the lock, and not with its last byte: a
	// Collect that runs meanwhile must see that it is new.
	now := time.Now()
	if err := os.Chtimes(f.Name(), now, now); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.file(d)); err != nil {
		return err
	}
	if err := syncDir(s.folder(d)); err != nil {
		return err
	}
	if st, err := f.Stat(); err == nil {
		s.remember(newNote(d, identify(st), now))
	}
	return nil
}

// renew makes a blob young again if it is known to be good, and its note with
// it. The caller holds the lock on d shared.
func (s *Store) renew(d sandbox.Digest) bool {
	st, err := os.Lstat(s.file(d))
	if err != nil {
		return false
	}
	n, ok := s.known(d, identify(st))
	if !ok {
		return false
	}
	now := time.Now()
	if err := os.Chtimes(s.file(d), now, now); err != nil {
		return false
	}
	if st, err = os.Lstat(s.file(d)); err == nil {
		s.remember(newNote(d, identify(st), n.Verified))
	}
	return err == nil
}

// Open implements erebus.Blobs.
func (s *Store) Open(ctx context.Context, d sandbox.Digest) (io.ReadSeekCloser, error) {
	f, st, err := s.open(d)
	if err != nil {
		return nil, err
	}
	return erebus.NewReader(ctx, erebus.ReaderConfig{
		Content: f, Digest: d, Size: st.Size(),
		Whole:   func() error { return s.verify(ctx, f, d) },
		Damaged: func() { s.putAside(f, d) },
	}), nil
}

func (s *Store) open(d sandbox.Digest) (*os.File, fs.FileInfo, error) {
	if err := erebus.Check(d); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(s.file(d), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, erebus.Missing(d)
	}
	if err != nil {
		return nil, nil, classify(fmt.Errorf("opening blob: %w", err))
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = erebus.Damaged(d)
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("opening blob: %w", err)
	}
	return f, st, nil
}

// Stat implements erebus.Blobs.
func (s *Store) Stat(_ context.Context, d sandbox.Digest) (erebus.Info, error) {
	if err := erebus.Check(d); err != nil {
		return erebus.Info{}, err
	}
	st, err := os.Lstat(s.file(d))
	if errors.Is(err, fs.ErrNotExist) {
		return erebus.Info{}, erebus.Missing(d)
	}
	if err != nil {
		return erebus.Info{}, classify(fmt.Errorf("looking at blob: %w", err))
	}
	return erebus.Info{Digest: d, Bytes: st.Size(), Stored: st.ModTime()}, nil
}

// Path implements erebus.Local.
func (s *Store) Path(ctx context.Context, d sandbox.Digest) (string, error) {
	f, _, err := s.open(d)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := s.verify(ctx, f, d); err != nil {
		return "", err
	}
	return s.file(d), nil
}

// verify verifies the open blob f, unless what is known of just this file
// says that it is good. A damaged one is put aside.
func (s *Store) verify(ctx context.Context, f *os.File, d sandbox.Digest) error {
	st, err := f.Stat()
	if err != nil {
		return classify(fmt.Errorf("verifying blob: %w", err))
	}
	id := identify(st)
	if _, ok := s.known(d, id); ok {
		return nil
	}
	done, err := s.begin(ctx, d)
	if err != nil {
		return err
	}
	defer done()
	if _, ok := s.known(d, id); ok {
		return nil
	}
	began := time.Now()
	err = erebus.Verify(ctx, f, st.Size(), d)
	switch {
	case err == nil:
		s.rememberRead(d, id, began)
	case fault.Is(err, fault.Conflict):
		s.putAside(f, d)
	}
	return err
}

// begin waits for the turn to verify d.
func (s *Store) begin(ctx context.Context, d sandbox.Digest) (done func(), err error) {
	for {
		s.mu.Lock()
		busy, ok := s.checking[d]
		if !ok {
			mine := make(chan struct{})
			s.checking[d] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.checking, d)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
