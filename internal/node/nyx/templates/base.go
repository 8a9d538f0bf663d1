package templates

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
)

// baseTree is the template of most tests: busybox and nothing else.
func baseTree(ctx context.Context, c Config, t *treeWriter) (string, error) {
	c.Progress("taking busybox", 0, 0)
	file, err := distro.Look("busybox")
	if err != nil {
		return "", err
	}
	busybox, err := os.ReadFile(file)
	if err != nil {
		return "", fault.Wrap(fault.Unsupported, err, "busybox cannot be read")
	}
	if err := checkStatic(busybox); err != nil {
		return "", err
	}
	applets, err := distro.Run(ctx, "busybox", "--list-full")
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"bin", "sbin", "usr", "usr/bin", "usr/sbin", "etc", "var"} {
		if err := t.dir(dir, 0o755, 0); err != nil {
			return "", err
		}
	}
	if err := t.file("bin/busybox", 0o755, busybox); err != nil {
		return "", err
	}
	names := strings.Fields(string(applets))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		name = clean(name)
		if t.seen[name] || !strings.Contains(name, "/") {
			continue
		}
		if dir := path.Dir(name); !t.seen[dir] {
			if err := t.dir(dir, 0o755, 0); err != nil {
				return "", err
			}
		}
		if err := t.link(name, "/bin/busybox"); err != nil {
			return "", err
		}
	}
	if !t.seen["bin/sh"] {
		return "", fault.New(fault.Unsupported, "this host's busybox has no sh")
	}
	return busyboxVersion(ctx), nil
}

// busyboxVersion is the first words of what busybox says of itself.
func busyboxVersion(ctx context.Context) string {
	out, err := distro.Run(ctx, "busybox")
	words := strings.Fields(string(out))
	if err != nil || len(words) < 2 {
		return "busybox"
	}
	return "busybox " + words[1]
}

// checkStatic refuses a busybox that needs libraries, which the image has not.
func checkStatic(b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "busybox is no ELF file")
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fault.New(fault.Unsupported, "this host's busybox is not static").
				WithHint("sudo apt-get install --no-install-recommends busybox-static")
		}
	}
	return nil
}
