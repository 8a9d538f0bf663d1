package fcget

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// unpack takes the two programs out of a verified archive. Their folder
// appears whole or not at all.
func unpack(ctx context.Context, archive io.Reader, cfg Config) (err error) {
	tmp, err := os.MkdirTemp(cfg.Dir, ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // it is gone when all went well
	z, err := gzip.NewReader(reader{ctx, archive})
	if err != nil {
		return fmt.Errorf("unpacking the archive: %w", err)
	}
	r := cfg.Release
	wanted := map[string]string{ // name in the archive, without folders: name here
		"firecracker-v" + r.Version + "-" + r.Arch: "firecracker",
		"jailer-v" + r.Version + "-" + r.Arch:      "jailer",
	}
	t := tar.NewReader(z)
	for len(wanted) > 0 {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Unsupported, "the archive lacks a program of Firecracker's").WithHint("this is a fault of Tartarus: please report it")
		}
		if err != nil {
			return fmt.Errorf("unpacking the archive: %w", err)
		}
		name, ok := wanted[path.Base(h.Name)]
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		if err := program(filepath.Join(tmp, name), t, h.Size); err != nil {
			return fmt.Errorf("unpacking %s: %w", name, err)
		}
		delete(wanted, path.Base(h.Name))
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	home := filepath.Join(cfg.Dir, r.Version)
	if err := os.RemoveAll(home); err != nil { // half of one, or somebody's
		return err
	}
	return os.Rename(tmp, home)
}

// program writes one program.
func program(to string, from io.Reader, size int64) error {
	if size <= 0 || size > maxProgram {
		return fmt.Errorf("a program of %d bytes", size)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, from, size)
	return errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
}
