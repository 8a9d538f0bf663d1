// Package lethe is the ephemeral overlay: the writable disk of one sandbox,
// made empty for it and wiped at its end.
//
// A disk is a sparse file that holds an empty ext4 file system without a
// journal: nobody reads it after a crash. It is cloned from a master of its
// size, which costs the same for any size.
package lethe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
)

// Config is where masters are kept.
type Config struct {
	Dir        string       // for the masters, best on the file system of the disks; made if it is not there
	MaxMasters int          // the least recently used go; 64 if zero
	Log        *slog.Logger // nil discards
}

// Validate reports what is missing or out of bounds.
func (c Config) Validate() error {
	if c.Dir == "" {
		return fault.Invalid("dir", "name the folder of the masters", "scratch disks have no folder")
	}
	if c.MaxMasters < 0 {
		return fault.Invalid("max_masters", "at least 1, or 0 for the default", "%d masters cannot be kept", c.MaxMasters)
	}
	return nil
}

const defaultMaxMasters = 64

// The bounds of a disk in MiB: the least that a file system fits in, and the
// most that ext4 with 4 KiB blocks and 32-bit block numbers can have.
const (
	MinMiB = 1
	MaxMiB = 16<<20 - 1
)

// Store makes scratch disks. It holds nothing open between calls, and several
// processes may use one folder.
type Store struct {
	dir string
	max int
	log *slog.Logger
}

// Open opens the store in c.Dir.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store of scratch disks: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the store of scratch disks: %w", err)
	}
	s := &Store{dir: dir, max: cmp.Or(c.MaxMasters, defaultMaxMasters), log: c.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.sweep()
	return s, nil
}

// Create makes a file of exactly mib MiB with an empty file system. path must
// not exist: Conflict otherwise. When it fails nothing is left. Unavailable
// means that the host's disk is full.
func (s *Store) Create(ctx context.Context, path string, mib int64) error {
	if mib < MinMiB || mib > MaxMiB {
		return fault.Invalid("resources.disk_mib", fmt.Sprintf("from %d to %d", MinMiB, MaxMiB), "a scratch disk of %d MiB cannot be made", mib)
	}
	if err := s.create(ctx, path, mib); err != nil {
		return classify(fmt.Errorf("making scratch disk: %w", err))
	}
	return nil
}

func (s *Store) create(ctx context.Context, path string, mib int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	master, err := s.master(ctx, mib)
	if err != nil {
		return err
	}
	defer master.Close()
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = clone(ctx, out, master, mib<<20)
	if err = errors.Join(err, out.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

// Wipe gives the room of a disk back and removes it. It is no error if it is
// gone already.
func (s *Store) Wipe(_ context.Context, path string) error {
	// A link or a device is not ours to empty: only its name goes.
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err == nil {
		if st, serr := f.Stat(); serr == nil && st.Mode().IsRegular() {
			err = f.Truncate(0) // even if somebody holds it open yet
		}
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return fmt.Errorf("wiping scratch disk: %w", rerr)
	}
	if err != nil && !errors.Is(err, syscall.ELOOP) && !errors.Is(err, syscall.ENXIO) {
		s.log.Warn("a scratch disk could not be emptied before its removal", "file", path, "error", err)
	}
	return nil
}

// Space is the room of a file system.
type Space struct {
	TotalMiB int64
	FreeMiB  int64 // for an ordinary user
}

// Free tells the room of the file system that path is on.
func Free(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, fmt.Errorf("asking for the room of %s: %w", path, err)
	}
	size := uint64(st.Bsize)
	return Space{TotalMiB: int64(st.Blocks * size >> 20), FreeMiB: int64(st.Bavail * size >> 20)}, nil
}

// masterVersion is part of a master's name: masters made with other options
// are not used.
const masterVersion = "ext4-1-"

// features are the file system's, whatever the host's mke2fs.conf says. No
// journal and no checksums: both protect what outlives a crash.
const features = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,uninit_bg"

// master opens the master of a size, made first if need be.
func (s *Store) master(ctx context.Context, mib int64) (*os.File, error) {
	name := filepath.Join(s.dir, masterVersion+strconv.FormatInt(mib, 10)+".img")
	if f, err := openMaster(name, mib); err == nil {
		now := time.Now()
		_ = os.Chtimes(name, now, now) // it was used: only the choice of what goes depends on it
		return f, nil
	}
	if err := s.makeMaster(ctx, name, mib); err != nil {
		return nil, err
	}
	f, err := openMaster(name, mib)
	s.evict(name)
	return f, err
}

// openMaster opens a master if it is whole.
func openMaster(name string, mib int64) (*os.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != mib<<20 {
		err = fault.New(fault.Internal, "a master is of the wrong size")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makeMaster makes a master under another name first, so that it is there as a
// whole or not at all.
func (s *Store) makeMaster(ctx context.Context, name string, mib int64) error {
	tmp, err := s.createTemp()
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := tmp.Truncate(mib << 20); err != nil {
		return err
	}
	cmd, err := distro.Command(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", features, "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
		// The file is new, so all of it reads as zeros: nothing is to be
		// written now, nor by the guest in the background.
		"-E", "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard,root_owner=0:0", tmp.Name())
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, "MKE2FS_CONFIG=/dev/null")
	if err := distro.Finish(ctx, cmd); err != nil {
		return err
	}
	if err := tmp.Chmod(0o400); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}

// createTemp makes a file and locks it, which says that somebody works on it;
// mke2fs does not care.
func (s *Store) createTemp() (*os.File, error) {
	for {
		f, err := os.CreateTemp(s.dir, "making-*")
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
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

// evict removes the masters that were not used for longest, but never keep.
func (s *Store) evict(keep string) {
	names, err := filepath.Glob(filepath.Join(s.dir, masterVersion+"*.img"))
	if err != nil || len(names) <= s.max {
		return
	}
	type master struct {
		name string
		used time.Time
	}
	var all []master
	for _, n := range names {
		if st, err := os.Stat(n); err == nil && n != keep {
			all = append(all, master{n, st.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b master) int { return a.used.Compare(b.used) })
	for _, m := range all[:max(0, len(all)-s.max+1)] {
		_ = os.Remove(m.name) // who clones it has it open
	}
}

// sweep removes masters that nobody makes any more, and those of other
// versions.
func (s *Store) sweep() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "making-"):
			f, err := os.Open(path)
			if err != nil {
				continue
			}
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				_ = os.Remove(path)
			}
			f.Close()
		case strings.HasPrefix(e.Name(), "ext4-") && !strings.HasPrefix(e.Name(), masterVersion):
			_ = os.Remove(path)
		}
	}
}

// classify gives errors of the system a kind.
func classify(err error) error {
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fault.Wrap(fault.Unavailable, err, "no room for a scratch disk").WithHint("make room on the disk of the state folder")
	case errors.Is(err, fs.ErrExist):
		return fault.Wrap(fault.Conflict, err, "the scratch disk is there already")
	}
	return err
}
