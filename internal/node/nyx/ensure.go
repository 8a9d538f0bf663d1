package nyx

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/guestbundle"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/templates"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Step tells what is being made right now.
type Step struct {
	Of    string // "guest bundle" or "template NAME"
	Name  string // what is being done, as in "downloading …"
	Done  int64  // of Total
	Total int64  // 0: it is not known how long it takes
}

// Progress is told every step, from one goroutine at a time. nil is allowed
// where it is asked for.
type Progress func(Step)

func (p Progress) of(what string) func(string, int64, int64) {
	if p == nil {
		return nil
	}
	return func(step string, done, total int64) { p(Step{Of: what, Name: step, Done: done, Total: total}) }
}

// Buildable are the templates that EnsureTemplate can make.
func Buildable() []string { return templates.Names() }

// EnsureBundle makes the guest bundle with that init the current one, and
// makes it if it is not there. However many processes ask, one makes it.
func (s *Store) EnsureBundle(ctx context.Context, guestInit []byte, progress Progress) (Bundle, error) {
	if b, ok := s.current(ctx, guestInit); ok {
		return b, nil
	}
	const what = "guest bundle"
	unlock, err := s.maker(ctx, "bundle", progress.of(what))
	if err != nil {
		return Bundle{}, err
	}
	defer unlock()
	if b, ok := s.current(ctx, guestInit); ok { // somebody else has made it meanwhile
		return b, nil
	}
	d, _, err := guestbundle.Build(ctx, guestbundle.Config{
		Init: guestInit, CacheDir: filepath.Join(s.c.Dir, "cache"), Blobs: s.c.Blobs, Host: s.c.Host,
		Kernel: s.c.Kernel, Modules: s.c.Modules, Refresh: s.c.Refresh, Progress: progress.of(what), Log: s.c.Log,
	})
	if err != nil {
		return Bundle{}, err
	}
	err = s.change(ctx, func(ix *index) error {
		rest := slices.DeleteFunc(ix.Bundles, func(old sandbox.Digest) bool { return old == d })
		ix.Bundles = append([]sandbox.Digest{d}, rest...)
		ix.Bundles = ix.Bundles[:min(len(ix.Bundles), keptBundles)]
		return nil
	})
	if err != nil {
		return Bundle{}, err
	}
	return s.Bundle(ctx, d)
}

// current is the current bundle, if it is whole and is what EnsureBundle would
// make, as far as can be told without making it.
func (s *Store) current(ctx context.Context, guestInit []byte) (Bundle, bool) {
	if s.c.Kernel != "" || s.c.Refresh {
		return Bundle{}, false
	}
	ix, err := s.read()
	if err != nil || len(ix.Bundles) == 0 {
		return Bundle{}, false
	}
	m, err := guestbundle.Read(ctx, s.c.Blobs, ix.Bundles[0])
	if err != nil || m.Init != erebus.Digest(guestInit) || m.Cmdline != guestbundle.Cmdline ||
		m.Arch != s.c.Host.Arch || strings.HasPrefix(m.MadeFrom, guestbundle.FromFile) {
		return Bundle{}, false
	}
	b, err := s.Bundle(ctx, ix.Bundles[0])
	return b, err == nil
}

// EnsureTemplate is the template of that name, made if it is not there.
// However many processes ask, one makes it.
func (s *Store) EnsureTemplate(ctx context.Context, n string, progress Progress) (sandbox.Template, error) {
	if t, ok := s.present(ctx, n); ok {
		return t, nil
	}
	if !slices.Contains(templates.Names(), n) {
		return sandbox.Template{}, fault.New(fault.NotFound, "there is no template %q, and nobody knows how to build it", n).
			WithHint("these can be built: %s", strings.Join(templates.Names(), ", "))
	}
	return s.make(ctx, n, progress, func() (sandbox.Template, bool) { return s.present(ctx, n) })
}

// RebuildTemplate makes a template anew, with today's packages.
func (s *Store) RebuildTemplate(ctx context.Context, n string, progress Progress) (sandbox.Template, error) {
	return s.make(ctx, n, progress, func() (sandbox.Template, bool) { return sandbox.Template{}, false })
}

// make makes a template, unless there says that somebody else has meanwhile.
func (s *Store) make(ctx context.Context, n string, progress Progress, there func() (sandbox.Template, bool)) (sandbox.Template, error) {
	if !name.MatchString(n) {
		return sandbox.Template{}, fault.Invalid("template", "lower-case letters, digits, dots and dashes", "malformed template name %q", n)
	}
	what := "template " + n
	unlock, err := s.maker(ctx, "template-"+n, progress.of(what))
	if err != nil {
		return sandbox.Template{}, err
	}
	defer unlock()
	if t, ok := there(); ok {
		return t, nil
	}
	dir := filepath.Join(s.c.Dir, "cache", "template-"+n)
	if err := os.RemoveAll(dir); err != nil { // what an interrupted maker left
		return sandbox.Template{}, err
	}
	defer os.RemoveAll(dir)
	t, err := templates.Build(ctx, templates.Config{
		Name: n, Dir: dir, Blobs: s.c.Blobs, Host: s.c.Host, Mirror: s.c.Mirror, Progress: progress.of(what), Log: s.c.Log,
	})
	if err != nil {
		return sandbox.Template{}, err
	}
	return t, s.change(ctx, func(ix *index) error {
		ix.Templates[n] = t
		return nil
	})
}

// present is the template if its image is there.
func (s *Store) present(ctx context.Context, n string) (sandbox.Template, bool) {
	t, err := s.Template(ctx, n)
	if err != nil {
		return t, false
	}
	info, err := s.c.Blobs.Stat(ctx, t.Digest)
	return t, err == nil && info.Bytes == t.Bytes
}

// maker takes the lock of what is to be made, and tells when it has to wait.
func (s *Store) maker(ctx context.Context, name string, progress func(string, int64, int64)) (unlock func(), err error) {
	soon, cancel := context.WithTimeout(ctx, lockRetry)
	unlock, err = s.lock(soon, name)
	cancel()
	if err == nil || ctx.Err() != nil || soon.Err() == nil {
		return unlock, err
	}
	if progress != nil {
		progress("waiting for another process that makes it", 0, 0)
	}
	return s.lock(ctx, name)
}
