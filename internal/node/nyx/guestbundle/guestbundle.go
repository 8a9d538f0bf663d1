// Package guestbundle builds the guest bundle: the kernel and the initramfs
// that every sandbox boots, with our init in it.
//
// A bundle is three blobs: the ELF kernel, the initramfs, and the manifest
// that names them, whose digest is the bundle's. The same kernel and the same
// init give the same bundle.
//
// In the initramfs are /init, /modules/NAME.ko, /etc/tartarus/modules (one
// NAME a line, in the order to load them in), /dev/console and /dev/null.
package guestbundle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Config is what a bundle is made of.
type Config struct {
	Init     []byte       // the guest's init, a static ELF executable
	CacheDir string       // keeps what was downloaded; made if it is not there
	Blobs    erebus.Blobs // where the bundle goes
	Host     distro.Host  // the zero value: the host's own
	Kernel   string       // a vmlinux or bzImage; "" downloads the distribution's
	Modules  string       // with Kernel: a folder such as /lib/modules/RELEASE; "" for a kernel that needs none
	Refresh  bool         // ask for a newer kernel even if one is there
	Progress func(step string, done, total int64)
	Log      *slog.Logger // nil discards
}

// Validate reports what is missing or malformed.
func (c Config) Validate() error {
	switch {
	case !bytes.HasPrefix(c.Init, []byte("\x7fELF")):
		return fault.Invalid("init", "build with make build, which puts the guest's init into the binary", "the guest's init is no ELF executable")
	case c.CacheDir == "":
		return fault.Invalid("cache_dir", "name a folder", "the guest bundle has no cache folder")
	case c.Blobs == nil:
		return fault.Invalid("blobs", "hand in a blob store", "the guest bundle has no blob store")
	case c.Modules != "" && c.Kernel == "":
		return fault.Invalid("modules", "name the kernel too, by --kernel", "modules are named without their kernel")
	}
	return nil
}

// Format is the version of the manifest.
//
// 1: kernel, initrd, init, modules, command line.
const Format = 1

// Manifest says what a bundle is.
type Manifest struct {
	Format   int            `json:"format"`
	Arch     string         `json:"arch"`
	Kernel   sandbox.Digest `json:"kernel"` // an ELF vmlinux
	Initrd   sandbox.Digest `json:"initrd"`
	Init     sandbox.Digest `json:"init"` // of /init in the initrd
	Cmdline  string         `json:"cmdline"`
	Release  string         `json:"release"` // of the kernel
	Modules  []string       `json:"modules"` // in the order they are loaded in
	MadeFrom string         `json:"made_from"`
}

// Cmdline is what the guest wants on the kernel's command line, whatever the
// driver: our init, an end instead of a dead kernel, and a quiet console,
// whose every byte costs an exit to the VMM.
const Cmdline = "rdinit=/init panic=-1 quiet"

// Build makes the bundle, or finds that it is there. It leaves nothing half
// made when it fails or is interrupted, and then goes on where it was.
func Build(ctx context.Context, c Config) (sandbox.Digest, Manifest, error) {
	if err := c.Validate(); err != nil {
		return "", Manifest{}, err
	}
	if err := c.ready(); err != nil {
		return "", Manifest{}, fmt.Errorf("building guest bundle: %w", err)
	}
	k, err := c.kernel(ctx)
	if err != nil {
		return "", Manifest{}, fmt.Errorf("building guest bundle: %w", err)
	}
	d, m, err := c.assemble(ctx, k)
	if err != nil {
		return "", Manifest{}, fmt.Errorf("building guest bundle: %w", err)
	}
	return d, m, nil
}

// ready sets what was left open, and makes the cache's folder.
func (c *Config) ready() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string, int64, int64) {}
	}
	if c.Host.Arch == "" {
		c.Host = distro.Detect()
	}
	return os.MkdirAll(c.CacheDir, 0o700)
}

// assemble stores initrd and manifest for a kernel that is stored already.
func (c Config) assemble(ctx context.Context, k preparedKernel) (sandbox.Digest, Manifest, error) {
	c.Progress("building the initramfs", 0, 0)
	var initrd bytes.Buffer
	if err := writeCPIO(&initrd, initrdEntries(c.Init, k.modules)); err != nil {
		return "", Manifest{}, err
	}
	m := Manifest{
		Format: Format, Arch: c.Host.Arch, Kernel: k.Kernel, Init: erebus.Digest(c.Init),
		Cmdline: Cmdline, Release: k.Release, Modules: moduleNames(k.modules), MadeFrom: k.MadeFrom,
	}
	var err error
	if m.Initrd, err = c.Blobs.Put(ctx, &initrd); err != nil {
		return "", Manifest{}, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return "", Manifest{}, err
	}
	d, err := c.Blobs.Put(ctx, bytes.NewReader(append(text, '\n')))
	return d, m, err
}

func initrdEntries(init []byte, modules []module) []entry {
	entries := []entry{
		{name: "init", mode: modeFile | 0o755, data: init},
		{name: "dev/console", mode: modeChar | 0o600, major: 5, minor: 1},
		{name: "dev/null", mode: modeChar | 0o666, major: 1, minor: 3},
		{name: "proc", mode: modeDir | 0o755},
		{name: "sys", mode: modeDir | 0o755},
		{name: "run", mode: modeDir | 0o755},
		{name: "etc/tartarus/modules", mode: modeFile | 0o644, data: []byte(moduleList(modules))},
	}
	for _, m := range modules {
		entries = append(entries, entry{name: "modules/" + m.Name + ".ko", mode: modeFile | 0o644, data: m.data})
	}
	return entries
}

func moduleNames(modules []module) []string {
	names := []string{}
	for _, m := range modules {
		names = append(names, m.Name)
	}
	return names
}

func moduleList(modules []module) string {
	var b strings.Builder
	for _, m := range modules {
		fmt.Fprintln(&b, m.Name)
	}
	return b.String()
}

// FromFile is what MadeFrom begins with for a kernel that was named by file.
const FromFile = "file "

// maxManifest bounds a manifest.
const maxManifest = 1 << 20

// Read reads and checks the manifest of a bundle.
func Read(ctx context.Context, blobs erebus.Blobs, d sandbox.Digest) (Manifest, error) {
	r, err := blobs.Open(ctx, d)
	if err != nil {
		return Manifest{}, fmt.Errorf("reading guest bundle: %w", err)
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err != nil {
		return Manifest{}, fmt.Errorf("reading guest bundle: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return Manifest{}, fault.Wrap(fault.InvalidArgument, err, "%s is no guest bundle", d)
	}
	if m.Format != Format {
		return Manifest{}, fault.New(fault.Unsupported, "guest bundle %s is of format %d, not %d", d, m.Format, Format).
			WithHint("build it again with tartarus setup")
	}
	if !m.Kernel.Valid() || !m.Initrd.Valid() || !m.Init.Valid() {
		return Manifest{}, fault.New(fault.InvalidArgument, "%s is no guest bundle", d)
	}
	return m, nil
}

// scratch makes a folder for what is not whole yet; done removes it.
func (c Config) scratch() (dir string, done func(), err error) {
	dir, err = os.MkdirTemp(c.CacheDir, "making-*")
	return dir, func() { os.RemoveAll(dir) }, err
}

// cached is the folder of a prepared kernel. The prefix changes with what is
// wanted of one.
func (c Config) cached(key string) string { return filepath.Join(c.CacheDir, "kernel-2-"+key) }
