package guestbundle

import (
	"context"
	"fmt"
	"io"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Parts are a kernel and some of its modules, for who boots another machine
// with them than a guest.
type Parts struct {
	Image    []byte   // as the distribution has it, a bzImage
	Release  string   // of the kernel
	MadeFrom string   // package and version
	Modules  []Module // in the order to load them in
}

// Module is a kernel module, unpacked.
type Module struct {
	Name string // with underscores, as the kernel tells it
	Data []byte
}

// FetchParts downloads the distribution's newest kernel with the modules of
// these names and all that they depend on; what is built in is left out. Of c
// it uses CacheDir, for what is not whole yet, Host, Progress and Log. It
// keeps nothing: what it returns is the caller's to keep.
func FetchParts(ctx context.Context, c Config, modules []string) (Parts, error) {
	if c.CacheDir == "" {
		return Parts{}, fault.Invalid("cache_dir", "name a folder", "a kernel is fetched without a cache folder")
	}
	if err := c.ready(); err != nil {
		return Parts{}, fmt.Errorf("fetching a kernel: %w", err)
	}
	var p Parts
	err := c.withLists(ctx, func(a apt) error {
		packages, err := c.newestPackages(ctx, a)
		if err != nil {
			return err
		}
		raw, err := c.download(ctx, a, packages)
		if err != nil {
			return err
		}
		ordered, err := raw.modules.orderOf(modules)
		if err != nil {
			return err
		}
		p = Parts{Image: raw.image, Release: raw.release, MadeFrom: madeFrom(packages)}
		for _, m := range ordered {
			p.Modules = append(p.Modules, Module{Name: m.Name, Data: m.data})
		}
		return nil
	})
	if err != nil {
		return Parts{}, fmt.Errorf("fetching a kernel: %w", err)
	}
	return p, nil
}

// WriteInitramfs writes an initramfs as a guest bundle has it, with the init
// and the modules given; it is not compressed.
func WriteInitramfs(w io.Writer, init []byte, modules []Module) error {
	var ms []module
	for _, m := range modules {
		ms = append(ms, module{Name: m.Name, data: m.Data})
	}
	return writeCPIO(w, initrdEntries(init, ms))
}
