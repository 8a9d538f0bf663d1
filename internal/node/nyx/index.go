package nyx

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// indexFormat is the version of index.json.
//
// 1: bundles, templates.
const indexFormat = 1

// keptBundles is how many guest bundles stay: admitted runs name theirs by
// digest, and may wait while a new one is made.
const keptBundles = 4

// index is what the folder knows.
type index struct {
	Format    int                         `json:"format"`
	Bundles   []sandbox.Digest            `json:"bundles"` // the current one first
	Templates map[string]sandbox.Template `json:"templates"`
}

func (s *Store) indexFile() string { return filepath.Join(s.c.Dir, "index.json") }

// read is the index, not to be changed. Every request asks for it: where the
// file is still the one that was read last, it is not read again.
func (s *Store) read() (index, error) {
	now := time.Now()
	info, err := os.Stat(s.indexFile())
	if err != nil {
		return s.load() // it says what is wrong
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastRead != nil && os.SameFile(info, s.lastInfo) && info.ModTime().Equal(s.lastInfo.ModTime()) && info.Size() == s.lastInfo.Size() {
		return *s.lastRead, nil
	}
	s.lastRead = nil
	ix, err := s.load()
	if err != nil {
		return ix, err
	}
	// A file that was replaced within the grain of its time could look the same.
	if now.Sub(info.ModTime()) > settled {
		s.lastRead, s.lastInfo = &ix, info
	}
	return ix, nil
}

// settled is the age from which on a file's time tells it from the one that
// takes its place.
const settled = time.Second

// load reads the index, which is always whole: it is only ever replaced.
func (s *Store) load() (index, error) {
	ix := index{Format: indexFormat, Templates: map[string]sandbox.Template{}}
	text, err := os.ReadFile(s.indexFile())
	if errors.Is(err, fs.ErrNotExist) {
		return ix, nil
	}
	if err != nil {
		return ix, fmt.Errorf("reading the index of templates: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&ix); err != nil {
		return ix, fault.Wrap(fault.Internal, err, "the index of templates is damaged").
			WithHint("remove %s and run tartarus setup", s.indexFile())
	}
	if ix.Format != indexFormat {
		return ix, fault.New(fault.Unsupported, "the index of templates is of format %d, not %d", ix.Format, indexFormat).
			WithHint("it was written by another version of tartarus: use that one, or another state folder")
	}
	for n, t := range ix.Templates {
		if t.Name != n || !name.MatchString(n) || !t.Digest.Valid() {
			return ix, fault.New(fault.Internal, "the index of templates is damaged at %q", n).
				WithHint("remove %s and run tartarus setup", s.indexFile())
		}
	}
	for _, d := range ix.Bundles {
		if !d.Valid() {
			return ix, fault.New(fault.Internal, "the index of guest bundles is damaged").
				WithHint("remove %s and run tartarus setup", s.indexFile())
		}
	}
	if ix.Templates == nil {
		ix.Templates = map[string]sandbox.Template{}
	}
	return ix, nil
}

// change changes the index, alone among all processes.
func (s *Store) change(ctx context.Context, edit func(*index) error) error {
	unlock, err := s.lock(ctx, "index")
	if err != nil {
		return err
	}
	defer unlock()
	ix, err := s.load()
	if err != nil {
		return err
	}
	if err := edit(&ix); err != nil {
		return err
	}
	text, err := json.MarshalIndent(ix, "", "  ")
	if err != nil {
		return err
	}
	if err := replace(s.indexFile(), append(text, '\n')); err != nil {
		return fmt.Errorf("writing the index of templates: %w", err)
	}
	return nil
}

// replace writes a file as a whole and durably, or not at all.
func replace(name string, text []byte) error {
	tmp := name + ".new" // one writer at a time: it holds the lock
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// lockRetry is how often a lock is asked for: the kernel tells nobody that a
// flock is free again without blocking a thread that could not be called off.
const lockRetry = 50 * time.Millisecond

// lock takes the folder's lock of that name, which ends with the process at
// the latest.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.c.Dir, "locks", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-retry.C:
		}
	}
}
