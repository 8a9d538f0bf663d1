// Package nyx is the node's store of what a sandbox is made from: guest
// bundles and templates, and later their snapshots.
//
// The bytes are blobs of erebus. What nyx keeps itself is an index: which
// name stands for which digest, and which guest bundle is the current one.
// Several processes may use one folder: the index is replaced as a whole under
// a lock, and whatever is to be made is made by one of them.
package nyx

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/guestbundle"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Config is where a store is and what it makes things from.
type Config struct {
	Dir     string       // index, locks and downloads; made if it is not there, 0700
	Blobs   erebus.Local // shared with others
	Kernel  string       // a vmlinux or bzImage for the guest; "" takes the distribution's
	Modules string       // with Kernel: its modules, a folder such as /lib/modules/RELEASE
	Mirror  string       // of Debian's archive, for template debian; "" for the default
	Refresh bool         // EnsureBundle looks for a newer kernel
	Host    distro.Host  // the zero value: this host's
	Log     *slog.Logger // nil discards

	// SnapshotBytes bounds the host's disk that memory snapshots take; 4 GiB
	// if zero. Those not used for longest go.
	SnapshotBytes int64
}

const defaultSnapshotBytes = 4 << 30

// Validate reports what is missing.
func (c Config) Validate() error {
	if c.Dir == "" {
		return fault.Invalid("dir", "name the folder of templates", "the store of templates has no folder")
	}
	if c.Blobs == nil {
		return fault.Invalid("blobs", "hand in a blob store", "the store of templates has no blob store")
	}
	return nil
}

// Store is the node's view of templates and guest bundles. It holds nothing
// open between calls.
type Store struct {
	c Config

	mu       sync.Mutex
	lastRead *index      // guarded by mu; nil: read it anew
	lastInfo os.FileInfo // guarded by mu; of the file that lastRead came from
}

// Open opens the store in c.Dir.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store of templates: %w", err)
	}
	c.Dir = dir
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Host.Arch == "" {
		c.Host = distro.Detect()
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = defaultSnapshotBytes
	}
	for _, sub := range []string{"locks", "cache", "snapshots"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("opening the store of templates: %w", err)
		}
	}
	s := &Store{c: c}
	_, err = s.read()
	return s, err
}

// Bundle is a guest bundle as files of this host, verified and read-only.
type Bundle struct {
	Digest  sandbox.Digest
	Kernel  string // an ELF vmlinux
	Initrd  string
	Cmdline string // what the guest wants; drivers add their own
	Release string // of the kernel
}

// name is the form of a template's name.
var name = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func noTemplate(n string) error {
	return fault.New(fault.NotFound, "there is no template %q", n).
		WithHint("tartarus template ls shows what there is, tartarus template build makes one")
}

// Template is the template of that name.
func (s *Store) Template(_ context.Context, n string) (sandbox.Template, error) {
	ix, err := s.read()
	if err != nil {
		return sandbox.Template{}, err
	}
	t, ok := ix.Templates[n]
	if !ok {
		return sandbox.Template{}, noTemplate(n)
	}
	return t, nil
}

// Templates are all templates by name.
func (s *Store) Templates(context.Context) ([]sandbox.Template, error) {
	ix, err := s.read()
	if err != nil {
		return nil, err
	}
	out := make([]sandbox.Template, 0, len(ix.Templates))
	for _, t := range ix.Templates {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b sandbox.Template) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// RootDisk is the read-only file of a template's image, verified.
func (s *Store) RootDisk(ctx context.Context, d sandbox.Digest) (string, error) {
	path, err := s.c.Blobs.Path(ctx, d)
	if err != nil {
		return "", fmt.Errorf("root disk: %w", err)
	}
	return path, nil
}

// Bundle is the guest bundle of that digest.
func (s *Store) Bundle(ctx context.Context, d sandbox.Digest) (Bundle, error) {
	m, err := guestbundle.Read(ctx, s.c.Blobs, d)
	if err != nil {
		return Bundle{}, err
	}
	b := Bundle{Digest: d, Cmdline: m.Cmdline, Release: m.Release}
	if b.Kernel, err = s.c.Blobs.Path(ctx, m.Kernel); err != nil {
		return Bundle{}, fmt.Errorf("kernel of guest bundle %s: %w", d, err)
	}
	if b.Initrd, err = s.c.Blobs.Path(ctx, m.Initrd); err != nil {
		return Bundle{}, fmt.Errorf("initrd of guest bundle %s: %w", d, err)
	}
	return b, nil
}

// CurrentBundle is the guest bundle that new sandboxes get.
func (s *Store) CurrentBundle(ctx context.Context) (Bundle, error) {
	d, err := s.CurrentDigest(ctx)
	if err != nil {
		return Bundle{}, err
	}
	return s.Bundle(ctx, d)
}

// CurrentDigest names the guest bundle that new sandboxes get. Whether it is
// whole is seen where it is used.
func (s *Store) CurrentDigest(context.Context) (sandbox.Digest, error) {
	ix, err := s.read()
	if err != nil {
		return "", err
	}
	if len(ix.Bundles) == 0 {
		return "", fault.New(fault.NotFound, "there is no guest bundle yet").WithHint("tartarus setup makes it")
	}
	return ix.Bundles[0], nil
}

// Remove forgets a template. Its image goes with the next Collect of the blobs
// that nobody else needs it for.
func (s *Store) Remove(ctx context.Context, n string) error {
	return s.change(ctx, func(ix *index) error {
		if _, ok := ix.Templates[n]; !ok {
			return noTemplate(n)
		}
		delete(ix.Templates, n)
		return nil
	})
}

// Referenced are the blobs that the store needs: what erebus must keep.
func (s *Store) Referenced(ctx context.Context) (map[sandbox.Digest]bool, error) {
	ix, err := s.read()
	if err != nil {
		return nil, err
	}
	keep := map[sandbox.Digest]bool{}
	for _, t := range ix.Templates {
		keep[t.Digest] = true
	}
	for _, d := range ix.Bundles {
		keep[d] = true
		m, err := guestbundle.Read(ctx, s.c.Blobs, d)
		switch {
		case err == nil:
			keep[m.Kernel], keep[m.Initrd] = true, true
		case !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict):
			return nil, err // out of reach: better to keep everything
		}
	}
	snapshots, err := s.snapshots()
	if err != nil {
		return nil, fmt.Errorf("looking at the snapshots: %w", err)
	}
	for _, k := range snapshots {
		keep[k.Memory], keep[k.State] = true, true
	}
	return keep, nil
}
