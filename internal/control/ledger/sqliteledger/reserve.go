package sqliteledger

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// reserve is room on the ledger's disk that others cannot take: a file of
// nothing beside the ledger. When the disk is nearly full a slice at a time of
// it becomes room of the write-ahead log and of the log's index, before a
// commit, so that ends and audit entries can be written whoever else fills the
// disk; until it is whole again nothing new is admitted. The writer's goroutine
// owns it.
type reserve struct {
	path string
	wal  string // the path of the write-ahead log
	shm  string // and of its index
	size int64  // when it is whole; 0 for no reserve
	log  *slog.Logger

	held  int64
	tight bool // the disk was nearly full, and the reserve is not whole again
}

const (
	reserveSlice = 4 << 20
	reserveIndex = 64 << 10 // of a slice, for 8192 pages: the index has 32 KiB for 4096
	reserveSpare = 2 << 20  // a commit must find so much room in the log or on the disk
	reserveLow   = 4 << 20  // less free than this is nearly full
	reserveAmple = 32 << 20 // and so much beside the reserve is enough again
)

func newReserve(cfg Config) *reserve {
	r := &reserve{path: cfg.Path + ".reserve", wal: cfg.Path + "-wal", shm: cfg.Path + "-shm", size: cfg.Reserve, log: cfg.Logger}
	if st, err := os.Lstat(r.path); err == nil && st.Mode().IsRegular() {
		r.held = min(st.Size(), r.size) // of the process before
	}
	r.keep()
	return r
}

// free is the room of the disk; ok is false when it does not tell.
func (r *reserve) free() (n int64, ok bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * st.Bsize, true
}

// spare is the room that the write-ahead log has beyond its end. SQLite writes
// into it, and loses it only where it truncates the log.
func (r *reserve) spare() int64 {
	var st unix.Stat_t
	if err := unix.Stat(r.wal, &st); err != nil {
		return 0
	}
	return st.Blocks*512 - st.Size
}

// keep gives a slice away when the disk is nearly full, and makes the reserve
// whole when there is room for it.
func (r *reserve) keep() {
	if r.size == 0 {
		return
	}
	free, ok := r.free()
	switch {
	case !ok:
	case free < reserveLow:
		if !r.tight {
			r.tight = true
			r.log.Error("the disk is nearly full: nothing new is admitted until there is room", "folder", filepath.Dir(r.path))
		}
		if r.held > 0 && r.spare() < reserveSpare {
			r.give()
		}
	case (r.tight || r.held < r.size) && free >= r.size-r.held+reserveAmple:
		r.fill()
	}
}

// give makes a slice room of the log. What others may take in the instant
// between is lost, and the next commit gets another slice.
func (r *reserve) give() {
	slice := min(r.held, reserveSlice)
	err := os.Truncate(r.path, r.held-slice)
	if err == nil {
		r.held -= slice
		err = errors.Join(extend(r.shm, reserveIndex), extend(r.wal, slice-reserveIndex))
	}
	if err != nil {
		r.log.Error("the ledger's reserve could not be given", "error", err)
	}
}

// extend takes n bytes of the disk for a file, beyond all that it has.
func extend(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, max(st.Size, st.Blocks*512), n)
}

func (r *reserve) fill() {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, r.size), f.Close())
	}
	if err != nil {
		// It may be that the file system cannot: then there is none.
		r.log.Warn("the ledger has no reserve", "error", err)
		r.size = 0
		_ = os.Remove(r.path)
	}
	if r.tight {
		r.log.Info("there is room on the disk again")
	}
	r.held, r.tight = r.size, false
}

// admits refuses what is new while the disk is nearly full.
func (r *reserve) admits() error {
	if !r.tight {
		return nil
	}
	return fault.New(fault.Unavailable, "the disk is nearly full").WithHint("free some space in the state folder")
}
