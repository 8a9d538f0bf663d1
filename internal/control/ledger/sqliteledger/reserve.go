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
// nothing beside the ledger. When the disk is nearly full it gives the room
// back a slice at a time, before a commit, so that ends and audit entries can
// be written; until it is whole again nothing new is admitted. The writer's
// goroutine owns it.
type reserve struct {
	path string
	size int64 // when it is whole; 0 for no reserve
	log  *slog.Logger

	held  int64
	tight bool // the disk was nearly full, and the reserve is not whole again
}

const (
	reserveSlice = 4 << 20
	reserveLow   = 4 << 20  // less free than this is nearly full
	reserveAmple = 32 << 20 // and so much beside the reserve is enough again
)

func newReserve(cfg Config) *reserve {
	r := &reserve{path: cfg.Path + ".reserve", size: cfg.Reserve, log: cfg.Logger}
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
		r.give()
	case r.held < r.size && free >= r.size-r.held+reserveAmple:
		r.fill()
	}
}

func (r *reserve) give() {
	if !r.tight {
		r.tight = true
		r.log.Error("the disk is nearly full: nothing new is admitted until there is room", "folder", filepath.Dir(r.path))
	}
	if r.held == 0 {
		return
	}
	left := max(0, r.held-reserveSlice)
	if err := os.Truncate(r.path, left); err != nil {
		r.log.Error("the ledger's reserve could not be given", "error", err)
		return
	}
	r.held = left
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
