package guestbundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// preparedKernel is a kernel in the blob store, with its modules: what the
// cache keeps, in a folder with kernel.json and NAME.ko.
type preparedKernel struct {
	Kernel   sandbox.Digest `json:"kernel"`
	Release  string         `json:"release"`
	MadeFrom string         `json:"made_from"`
	Modules  []loadable     `json:"modules"` // in the order to load them in
	modules  []module
}

type loadable struct {
	Name   string         `json:"name"`
	Digest sandbox.Digest `json:"digest"`
}

// kernel finds or makes the kernel that c asks for.
func (c Config) kernel(ctx context.Context) (preparedKernel, error) {
	if c.Kernel != "" {
		return c.kernelFromFile(ctx)
	}
	old, there := c.newestCached(ctx)
	if there && !c.Refresh {
		return old, nil
	}
	k, err := c.kernelFromPackages(ctx)
	if err != nil && there && ctx.Err() == nil && fault.Is(err, fault.Unavailable) {
		c.Log.Warn("no newer kernel can be had now, the one that is there stays", "kernel", old.MadeFrom, "error", err)
		return old, nil
	}
	return k, err
}

// newestCached is the kernel that was prepared last, if all of it is there.
func (c Config) newestCached(ctx context.Context) (preparedKernel, bool) {
	dirs, err := filepath.Glob(c.cached("*"))
	if err != nil {
		return preparedKernel{}, false
	}
	type made struct {
		dir string
		at  int64
	}
	var all []made
	for _, dir := range dirs {
		if st, err := os.Stat(dir); err == nil {
			all = append(all, made{dir, st.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(all, func(a, b made) int { return int(b.at/1e6 - a.at/1e6) })
	for _, m := range all {
		if k, err := c.load(ctx, m.dir); err == nil {
			return k, true
		}
	}
	return preparedKernel{}, false
}

// load reads a prepared kernel, and fails unless every part is what it was.
func (c Config) load(ctx context.Context, dir string) (preparedKernel, error) {
	text, err := os.ReadFile(filepath.Join(dir, "kernel.json"))
	if err != nil {
		return preparedKernel{}, err
	}
	var k preparedKernel
	if err := json.Unmarshal(text, &k); err != nil {
		return preparedKernel{}, err
	}
	if _, err := c.Blobs.Stat(ctx, k.Kernel); err != nil {
		return preparedKernel{}, err
	}
	for _, m := range k.Modules {
		data, err := os.ReadFile(filepath.Join(dir, filepath.Base(m.Name)+".ko"))
		if err != nil {
			return preparedKernel{}, err
		}
		if erebus.Digest(data) != m.Digest {
			return preparedKernel{}, erebus.Damaged(m.Digest)
		}
		k.modules = append(k.modules, module{Name: m.Name, data: data})
	}
	return k, nil
}

// kernelFromPackages downloads the distribution's kernel, unless the cache has
// it.
func (c Config) kernelFromPackages(ctx context.Context) (preparedKernel, error) {
	var k preparedKernel
	err := c.withLists(ctx, func(a apt) error {
		packages, err := c.newestPackages(ctx, a)
		if err != nil {
			return err
		}
		from := madeFrom(packages)
		key := cacheKey(from + " " + c.Host.Arch)
		if k, err = c.load(ctx, c.cached(key)); err == nil {
			return nil
		}
		raw, err := c.download(ctx, a, packages)
		if err != nil {
			return err
		}
		k, err = c.prepare(ctx, raw, source{key: key, name: from})
		return err
	})
	return k, err
}

// withLists calls do with the host's package lists, and where those do not
// lead to a kernel once more with lists of its own.
func (c Config) withLists(ctx context.Context, do func(apt) error) error {
	err := do(apt{})
	if err == nil || ctx.Err() != nil || !fault.Is(err, fault.Unavailable) {
		return err
	}
	c.Log.Info("the host's package lists do not lead to a kernel, fetching them anew", "error", err)
	c.Progress("fetching package lists", 0, 0)
	dir, done, err := c.scratch()
	if err != nil {
		return err
	}
	defer done()
	own := apt{private: dir}
	if err := own.update(ctx); err != nil {
		return err
	}
	return do(own)
}

// newestPackages are the packages that have the host's newest kernel.
func (c Config) newestPackages(ctx context.Context, a apt) ([]debPackage, error) {
	where, err := c.Host.Kernel()
	if err != nil {
		return nil, err
	}
	c.Progress("looking for the newest kernel", 0, 0)
	return a.newest(ctx, where)
}

func madeFrom(packages []debPackage) string { return packages[0].Name + " " + packages[0].Version }

// download fetches packages and unpacks what they have of a kernel.
func (c Config) download(ctx context.Context, a apt, packages []debPackage) (*rawKernel, error) {
	raw := &rawKernel{modules: newModuleSet()}
	for _, p := range packages {
		if err := c.fetch(ctx, a, p, raw); err != nil {
			return nil, err
		}
	}
	if raw.image == nil {
		return nil, fault.New(fault.Unsupported, "package %s has no boot/vmlinuz-…", packages[0].Name)
	}
	return raw, nil
}

// fetch downloads and unpacks one package; only what it holds remains.
func (c Config) fetch(ctx context.Context, a apt, p debPackage, into *rawKernel) error {
	dir, done, err := c.scratch()
	if err != nil {
		return err
	}
	defer done()
	step := "downloading " + p.Name
	c.Progress(step, 0, 100)
	deb, err := a.download(ctx, p, dir, func(percent int64) { c.Progress(step, percent, 100) })
	if err != nil {
		return err
	}
	c.Progress(step, 100, 100)
	c.Progress("unpacking "+p.Name, 0, 0)
	return unpackKernel(ctx, deb, into)
}

// kernelFromFile uses the kernel that c names.
func (c Config) kernelFromFile(ctx context.Context) (preparedKernel, error) {
	image, err := os.ReadFile(c.Kernel)
	if err != nil {
		return preparedKernel{}, fault.Wrap(fault.InvalidArgument, err, "the kernel cannot be read").
			WithHint("name a readable vmlinux or bzImage by --kernel")
	}
	modules, err := readModules(c.Modules)
	if err != nil {
		return preparedKernel{}, err
	}
	return c.prepare(ctx, &rawKernel{image: image, modules: modules}, source{name: FromFile + filepath.Base(c.Kernel)})
}

// source tells where a kernel came from.
type source struct {
	key  string // of the cache; "" is not cached
	name string
}

// prepare stores the kernel and caches the rest.
func (c Config) prepare(ctx context.Context, raw *rawKernel, from source) (preparedKernel, error) {
	c.Progress("extracting the kernel", 0, 0)
	vmlinux, err := Vmlinux(raw.image)
	if err != nil {
		return preparedKernel{}, err
	}
	if err := CheckPVH(vmlinux); err != nil {
		return preparedKernel{}, err
	}
	k := preparedKernel{Release: raw.release, MadeFrom: from.name}
	if k.Release == "" {
		k.Release = releaseOf(vmlinux)
	}
	if k.modules, err = raw.modules.order(); err != nil {
		return preparedKernel{}, err
	}
	for _, m := range k.modules {
		k.Modules = append(k.Modules, loadable{Name: m.Name, Digest: erebus.Digest(m.data)})
	}
	if k.Kernel, err = c.Blobs.Put(ctx, bytes.NewReader(vmlinux)); err != nil {
		return preparedKernel{}, err
	}
	if from.key == "" {
		return k, nil
	}
	return k, c.save(k, c.cached(from.key))
}

// save puts k into the cache, as a whole or not at all.
func (c Config) save(k preparedKernel, dir string) error {
	tmp, done, err := c.scratch()
	if err != nil {
		return err
	}
	defer done()
	text, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "kernel.json"), text, 0o600); err != nil {
		return err
	}
	for _, m := range k.modules {
		if err := os.WriteFile(filepath.Join(tmp, m.Name+".ko"), m.data, 0o600); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("caching the kernel: %w", err)
	}
	return nil
}

// cacheKey makes a folder's name of a package and its version.
func cacheKey(s string) string {
	return strings.Trim(regexp.MustCompile(`[^A-Za-z0-9.+_-]+`).ReplaceAllString(s, "_"), ".")
}

// releaseOf finds what the kernel calls itself: "Linux version RELEASE (…".
func releaseOf(vmlinux []byte) string {
	_, rest, ok := bytes.Cut(vmlinux, []byte("Linux version "))
	for ok {
		word, _, _ := bytes.Cut(rest[:min(len(rest), 128)], []byte(" "))
		if len(word) > 0 && word[0] >= '0' && word[0] <= '9' {
			return string(word)
		}
		_, rest, ok = bytes.Cut(rest, []byte("Linux version "))
	}
	return "unknown"
}
