package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
)

// addition is a file or folder of this machine that appears in the lab.
type addition struct{ from, to string }

// parseAddition reads FROM:TO.
func parseAddition(s string) (addition, error) {
	from, to, ok := strings.Cut(s, ":")
	if !ok || from == "" || !filepath.IsAbs(to) {
		return addition{}, fmt.Errorf("%q is not FILE:PATH with an absolute path in the lab", s)
	}
	return addition{from, filepath.Clean(to)}, nil
}

// folders of the lab's disk, and their modes.
var folders = map[string]fs.FileMode{
	"bin": 0o755, "sbin": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "lib": 0o755, "lib64": 0o755, "etc": 0o755,
	"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "opt": 0o755, "srv": 0o755, "home": 0o755,
	"root": 0o700, "var/lib": 0o755, "tmp": 0o777 | fs.ModeSticky, "var/tmp": 0o777 | fs.ModeSticky,
}

// texts are files of the lab's disk.
var texts = map[string]string{
	"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
	"etc/group":       "root:x:0:\nkvm:x:105:user\nnogroup:x:65534:\nuser:x:1000:\n",
	"etc/hosts":       "127.0.0.1\tlocalhost lab\n::1\tlocalhost\n",
	"etc/hostname":    "lab\n",
	"etc/resolv.conf": "",
	"etc/os-release":  "ID=lab\nPRETTY_NAME=\"the lab\"\n",
}

// buildDisk makes the lab's disk as a file: an ext4 file system of sizeMiB
// with busybox, the additions, and programs of this machine with their
// libraries. It stages in tmp, which is the caller's to remove.
func buildDisk(ctx context.Context, tmp string, sizeMiB int, adds []addition, programs []string) (string, error) {
	tree := filepath.Join(tmp, "root")
	if err := buildTree(ctx, tree); err != nil {
		return "", fmt.Errorf("building the lab's disk: %w", err)
	}
	for _, p := range programs {
		more, err := withLibraries(ctx, p)
		if err != nil {
			return "", err
		}
		adds = append(adds, more...)
	}
	for _, a := range adds {
		if err := copyInto(a.from, filepath.Join(tree, a.to)); err != nil {
			return "", fmt.Errorf("adding %s: %w", a.from, err)
		}
	}
	disk := filepath.Join(tmp, "disk")
	f, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Truncate(int64(sizeMiB)<<20), f.Close()); err != nil {
		return "", err
	}
	// No journal: the disk does not outlive the lab.
	if _, err := distro.Run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", tree, disk); err != nil {
		return "", fmt.Errorf("building the lab's disk of %d MiB: %w", sizeMiB, err)
	}
	return disk, os.RemoveAll(tree)
}

// buildTree makes the folders and files that the lab always has.
func buildTree(ctx context.Context, tree string) error {
	for dir, mode := range folders {
		path := filepath.Join(tree, dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	busybox, err := distro.Look("busybox")
	if err != nil {
		return err
	}
	if err := copyInto(busybox, filepath.Join(tree, "bin/busybox")); err != nil {
		return err
	}
	applets, err := distro.Run(ctx, "busybox", "--list-full")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(applets)) {
		err := os.Symlink("/bin/busybox", filepath.Join(tree, name))
		// An applet of a folder that the lab has not is missed by nobody.
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// copyInto copies a file or a folder, following what from itself links to.
// Modes stay.
func copyInto(from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyOne(path, filepath.Join(to, rel), info)
	})
}

func copyOne(from, to string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		return os.Chmod(to, info.Mode().Perm()|0o700)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case info.Mode().IsRegular():
		return copyFile(from, to, info.Mode().Perm())
	}
	return nil // sockets and the like are of a process, not of a tree
}

func copyFile(from, to string, mode fs.FileMode) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = w.ReadFrom(r)
	return errors.Join(err, w.Chmod(mode), w.Close())
}

// withLibraries is a program of this machine and all that it is linked with.
func withLibraries(ctx context.Context, name string) ([]addition, error) {
	path, err := distro.Look(name)
	if err != nil {
		return nil, err
	}
	out, err := distro.Run(ctx, "ldd", path)
	if err != nil {
		return nil, fmt.Errorf("finding the libraries of %s: %w", path, err)
	}
	adds := []addition{{path, path}}
	for _, lib := range libraries(string(out)) {
		adds = append(adds, addition{lib, lib})
	}
	return adds, nil
}

// libraries are the paths in what ldd prints: "NAME => PATH (ADDRESS)" and
// "PATH (ADDRESS)".
func libraries(ldd string) []string {
	var out []string
	for line := range strings.Lines(ldd) {
		if _, rest, ok := strings.Cut(line, "=>"); ok {
			line = rest
		}
		if f := strings.Fields(line); len(f) > 0 && filepath.IsAbs(f[0]) {
			out = append(out, f[0])
		}
	}
	return out
}
