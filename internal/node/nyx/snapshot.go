package nyx

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Shape is all that a memory snapshot depends on: where two VMs differ in any
// of it, one cannot go on as the other. The disk's size is part of it because
// a guest learns that when it boots.
type Shape struct {
	Template    sandbox.Digest `json:"template"`
	Bundle      sandbox.Digest `json:"bundle"` // with the kernel's command line
	Driver      string         `json:"driver"`
	Version     string         `json:"version"` // of the VMM
	Accelerator string         `json:"accelerator"`
	Machine     string         `json:"machine"` // as in tartarus.Info
	VCPUs       int            `json:"vcpus"`
	MemoryMiB   int64          `json:"memory_mib"`
	DiskMiB     int64          `json:"disk_mib"`
}

// key names a shape's snapshot.
func (s Shape) key() string {
	b, _ := json.Marshal(s) // strings and numbers
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// snapshotFormat is the version of a snapshot's manifest.
const snapshotFormat = 1

// manifest is what is kept of a snapshot beside its blobs, in a file of its
// own: it is there as a whole or not at all, and its time is that of the last
// use.
type manifest struct {
	Format int            `json:"format"`
	Shape  Shape          `json:"shape"`
	Memory sandbox.Digest `json:"memory"`
	State  sandbox.Digest `json:"state"`
	Bytes  int64          `json:"bytes"` // of the host's disk, both together
	MadeAt time.Time      `json:"made_at"`
}

// Snapshot is a snapshot as open files, verified. The caller closes it.
type Snapshot struct {
	Memory *os.File
	State  *os.File
}

// Close lets go of the files. VMs that go on from them keep what they have.
func (s *Snapshot) Close() error { return errors.Join(s.Memory.Close(), s.State.Close()) }

func (s *Store) manifestFile(sh Shape) string {
	return filepath.Join(s.c.Dir, "snapshots", sh.key()+".json")
}

// Snapshot is the snapshot of a shape. NotFound: there is none; one that was
// damaged is gone by then.
func (s *Store) Snapshot(ctx context.Context, sh Shape) (*Snapshot, error) {
	name := s.manifestFile(sh)
	m, err := readManifest(name)
	if err == nil && m.Shape != sh {
		err = fault.New(fault.Conflict, "the snapshot is of another shape")
	}
	var out *Snapshot
	if err == nil {
		out, err = s.openSnapshot(ctx, m)
	}
	switch {
	case err == nil:
		now := time.Now()
		_ = os.Chtimes(name, now, now) // only the choice of what goes depends on it
		return out, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "there is no snapshot of this shape")
	case fault.Is(err, fault.Conflict), fault.Is(err, fault.NotFound):
		s.c.Log.Warn("a snapshot is damaged, and is removed", "snapshot", filepath.Base(name), "error", err)
		_ = os.Remove(name)
		return nil, fault.Wrap(fault.NotFound, err, "the snapshot of this shape was damaged")
	}
	return nil, fmt.Errorf("opening a snapshot: %w", err)
}

func (s *Store) openSnapshot(ctx context.Context, m manifest) (*Snapshot, error) {
	open := func(d sandbox.Digest) (*os.File, error) {
		path, err := s.c.Blobs.Path(ctx, d)
		if err != nil {
			return nil, err
		}
		return os.Open(path)
	}
	memory, err := open(m.Memory)
	if err != nil {
		return nil, err
	}
	state, err := open(m.State)
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	return &Snapshot{Memory: memory, State: state}, nil
}

// readManifest reads a manifest. Conflict: it is none that this version wrote.
func readManifest(name string) (manifest, error) {
	var m manifest
	text, err := os.ReadFile(name)
	if err != nil {
		return m, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fault.Wrap(fault.Conflict, err, "a snapshot's manifest is damaged")
	}
	if m.Format != snapshotFormat || !m.Memory.Valid() || !m.State.Valid() || m.Bytes < 0 {
		return m, fault.New(fault.Conflict, "a snapshot's manifest is damaged, or of another version")
	}
	return m, nil
}

// MakeSnapshot has take write the snapshot of a shape, unless it is there
// already. One at a time makes any, in all processes; the others wait
// until it is there. When it fails, or dies, nothing is left.
func (s *Store) MakeSnapshot(ctx context.Context, sh Shape, take func(ctx context.Context, memory, state *os.File) error) error {
	unlock, err := s.lock(ctx, "snapshots")
	if err != nil {
		return fmt.Errorf("making a snapshot: %w", err)
	}
	defer unlock()
	if m, err := readManifest(s.manifestFile(sh)); err == nil && m.Shape == sh {
		return nil
	}
	if err := s.makeSnapshot(ctx, sh, take); err != nil {
		return fmt.Errorf("making a snapshot: %w", err)
	}
	return s.trimSnapshots(sh)
}

func (s *Store) makeSnapshot(ctx context.Context, sh Shape, take func(ctx context.Context, memory, state *os.File) error) error {
	memory, err := s.nameless()
	if err != nil {
		return err
	}
	defer memory.Close()
	state, err := s.nameless()
	if err != nil {
		return err
	}
	defer state.Close()
	if err := take(ctx, memory, state); err != nil {
		return err
	}
	m := manifest{Format: snapshotFormat, Shape: sh, MadeAt: time.Now().UTC()}
	for f, d := range map[*os.File]*sandbox.Digest{memory: &m.Memory, state: &m.State} {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		m.Bytes += st.Blocks * 512
		if *d, err = s.c.Blobs.Put(ctx, io.NewSectionReader(f, 0, st.Size)); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replace(s.manifestFile(sh), append(text, '\n'))
}

// nameless is a file that ends with its last descriptor.
func (s *Store) nameless() (*os.File, error) {
	f, err := os.CreateTemp(filepath.Join(s.c.Dir, "snapshots"), "making-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// DropSnapshot forgets a snapshot that VMs could not go on from.
func (s *Store) DropSnapshot(sh Shape) error {
	if err := os.Remove(s.manifestFile(sh)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting a snapshot: %w", err)
	}
	return nil
}

// kept is a snapshot that is there.
type kept struct {
	name string
	used time.Time
	manifest
}

// snapshots are all that can be read, those used last first. What a crash left
// of others goes.
func (s *Store) snapshots() ([]kept, error) {
	dir := filepath.Join(s.c.Dir, "snapshots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []kept
	for _, e := range entries {
		k := kept{name: filepath.Join(dir, e.Name())}
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(k.name, ".json") {
			continue // gone meanwhile, or being written
		}
		if k.manifest, err = readManifest(k.name); err != nil {
			if fault.Is(err, fault.Conflict) {
				_ = os.Remove(k.name)
			}
			continue
		}
		k.used = info.ModTime()
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b kept) int { return cmp.Or(b.used.Compare(a.used), strings.Compare(a.name, b.name)) })
	return out, nil
}

// trimSnapshots forgets those that were not used for longest until the rest
// keeps the budget; never the one that was just made. Their blobs go with the
// next Collect.
func (s *Store) trimSnapshots(made Shape) error {
	all, err := s.snapshots()
	if err != nil {
		return fmt.Errorf("looking at the snapshots: %w", err)
	}
	var sum int64
	for _, k := range all {
		if sum += k.Bytes; sum > s.c.SnapshotBytes && k.Shape != made {
			s.c.Log.Info("a snapshot goes, to keep the budget", "snapshot", filepath.Base(k.name), "bytes", k.Bytes)
			if err := os.Remove(k.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			sum -= k.Bytes
		}
	}
	return nil
}
