package dirblobs

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	// trusted is how long a verification holds: what a disk does to a file
	// changes no time of it, so the file is read again after that.
	trusted = 24 * time.Hour

	// notedFrom is the size from which verifications are noted: a smaller
	// blob is read in less time than notes of all the logs would take.
	notedFrom = 1 << 20

	// noteVersion is the form of notes. 1: the first.
	noteVersion = 1
)

// note is one verification of a blob, in memory and, as JSON, in a file. It
// is a help only: without it, or if anything about it is not as it should be,
// the blob is read.
type note struct {
	Version  int            `json:"version"`
	Digest   sandbox.Digest `json:"digest"`
	File     identity       `json:"file"`
	Verified time.Time      `json:"verified"` // when the reading began, or the writing ended; renewing keeps it
}

// identity tells a file that nobody wrote, replaced or renewed since. A write
// cannot set back the time of change, but one within the same tick of the
// kernel's clock (some ms) leaves it as it is.
type identity struct {
	Device   uint64 `json:"device"`
	Inode    uint64 `json:"inode"`
	Bytes    int64  `json:"bytes"`
	Modified int64  `json:"modified_ns"`
	Changed  int64  `json:"changed_ns"`
}

func identify(st fs.FileInfo) identity {
	id := identity{Bytes: st.Size(), Modified: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		id.Device, id.Inode, id.Changed = sys.Dev, sys.Ino, sys.Ctim.Nano()
	}
	return id
}

// newNote is the note of a verification at that time. Its times are the
// wall clock's, in memory as in the file.
func newNote(d sandbox.Digest, file identity, at time.Time) note {
	return note{Version: noteVersion, Digest: d, File: file, Verified: at.UTC().Round(0)}
}

// holds reports whether n speaks for that file of d. A note from the future
// does not: the clock was set back since, and its age is not known.
func (n note) holds(d sandbox.Digest, file identity, now time.Time) bool {
	return n.Version == noteVersion && n.Digest == d && n.File == file &&
		!n.Verified.After(now) && now.Sub(n.Verified) < trusted
}

func (s *Store) noteFile(d sandbox.Digest) string { return filepath.Join(s.dir, "verified", d.Hex()) }

// known finds the verification that still holds for that file of d, by this
// process or by another one.
func (s *Store) known(d sandbox.Digest, file identity) (note, bool) {
	now := time.Now()
	s.mu.Lock()
	n := s.verified[d]
	s.mu.Unlock()
	if n.holds(d, file, now) {
		return n, true
	}
	if file.Bytes < notedFrom {
		return note{}, false
	}
	b, err := os.ReadFile(s.noteFile(d))
	var read note
	if err != nil || json.Unmarshal(b, &read) != nil || !read.holds(d, file, now) {
		return note{}, false
	}
	s.keep(read)
	return read, true
}

func (s *Store) keep(n note) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verified[n.Digest] = n
}

// remember keeps n, for other processes too. The caller holds the lock on
// n.Digest shared, so that no note comes after its blob has gone.
func (s *Store) remember(n note) {
	s.keep(n)
	if n.File.Bytes < notedFrom {
		return
	}
	if err := s.write(n); err != nil {
		s.log.Debug("a verification could not be noted: the next process verifies again", "digest", n.Digest, "error", err)
	}
}

// write replaces the note of a blob. It is not synced: one that a crash of
// the host tore is no note.
func (s *Store) write(n note) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	f, err := s.createTemp()
	if err != nil {
		return err
	}
	defer f.Close() // and with it the lock on it
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = os.Rename(f.Name(), s.noteFile(n.Digest))
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the sweep gets it otherwise
	}
	return err
}

// rememberRead remembers that the blob f was verified from that time on, when
// its identity was file; for other processes only if it still is.
func (s *Store) rememberRead(d sandbox.Digest, file identity, at time.Time) {
	n := newNote(d, file, at)
	s.keep(n)
	unlock, err := s.lock(d, syscall.LOCK_SH)
	if err != nil {
		return
	}
	defer unlock()
	if st, err := os.Lstat(s.file(d)); err == nil && identify(st) == file {
		s.remember(n)
	}
}

// forget drops what is known of d. The caller holds the lock on d exclusively.
func (s *Store) forget(d sandbox.Digest) {
	s.mu.Lock()
	delete(s.verified, d)
	s.mu.Unlock()
	_ = os.Remove(s.noteFile(d)) // the sweep gets it otherwise, and it speaks for no other file
}

// sweepNotes removes the notes of blobs that are gone.
func (s *Store) sweepNotes() {
	notes, err := os.ReadDir(filepath.Join(s.dir, "verified"))
	if err != nil {
		return
	}
	for _, e := range notes {
		d := sandbox.Digest("sha256:" + e.Name())
		if d.Valid() && s.gone(d) {
			s.sweepNote(d)
		}
	}
}

// sweepNote looks again while nobody can store d.
func (s *Store) sweepNote(d sandbox.Digest) {
	unlock, err := s.lock(d, syscall.LOCK_EX)
	if err != nil {
		return
	}
	defer unlock()
	if s.gone(d) {
		s.forget(d)
	}
}

func (s *Store) gone(d sandbox.Digest) bool {
	_, err := os.Lstat(s.file(d))
	return errors.Is(err, fs.ErrNotExist)
}
