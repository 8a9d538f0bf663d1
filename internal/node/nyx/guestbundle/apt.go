package guestbundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
)

// apt asks the host's package lists, or a private copy of them where the
// host's are missing or stale: that needs no root.
type apt struct {
	private string // folder of the private copy; "" uses the host's lists
}

// options are what makes apt use the private copy.
func (a apt) options() []string {
	if a.private == "" {
		return nil
	}
	return []string{
		"-o", "Dir::State=" + filepath.Join(a.private, "state"),
		"-o", "Dir::State::status=/var/lib/dpkg/status",
		"-o", "Dir::Cache=" + filepath.Join(a.private, "cache"),
		"-o", "Debug::NoLocking=1",
	}
}

// common are options for every download: root's are not handed to another
// user, who could not write into our folder, and a dead mirror is not waited
// for long.
func (a apt) common() []string {
	return append(a.options(), "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2",
		"-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30")
}

// update fetches the package lists into the private copy.
func (a apt) update(ctx context.Context) error {
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.private, dir), 0o700); err != nil {
			return err
		}
	}
	if _, err := distro.Run(ctx, "apt-get", append(a.common(), "update")...); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the package lists could not be fetched").
			WithHint("see what apt-get update says, or name a kernel by --kernel")
	}
	return nil
}

// debPackage is a package that apt can download.
type debPackage struct {
	Name, Version string
	Depends       []string // names only, the first of each alternative
}

// show is what the lists tell of the newest version of a package.
func (a apt) show(ctx context.Context, name string) (debPackage, error) {
	out, err := distro.Run(ctx, "apt-cache", append(a.options(), "show", "--no-all-versions", name)...)
	if err != nil {
		return debPackage{}, fault.Wrap(fault.Unavailable, err, "the package lists have no %s", name).
			WithHint("run apt-get update, or name a kernel by --kernel")
	}
	p := parseControl(out)
	if p.Name == "" || p.Version == "" {
		return debPackage{}, fault.New(fault.Unavailable, "the package lists tell nothing of %s", name)
	}
	return p, nil
}

// parseControl reads the first paragraph of a control file, as far as needed.
func parseControl(text []byte) debPackage {
	var p debPackage
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" && p.Name != "" {
			break
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || strings.HasPrefix(line, " ") {
			continue
		}
		value = strings.TrimSpace(value)
		switch key {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Depends", "Pre-Depends":
			for _, dep := range strings.Split(value, ",") {
				if words := strings.Fields(dep); len(words) > 0 {
					p.Depends = append(p.Depends, words[0])
				}
			}
		}
	}
	return p
}

// dependency is p's dependency that begins with prefix.
func (p debPackage) dependency(prefix string) (string, error) {
	i := slices.IndexFunc(p.Depends, func(d string) bool { return strings.HasPrefix(d, prefix) })
	if i < 0 {
		return "", fault.New(fault.Unsupported, "package %s depends on no %s…", p.Name, prefix).
			WithHint("name a kernel by --kernel")
	}
	return p.Depends[i], nil
}

// newest finds the packages that have the kernel of k: the image first.
func (a apt) newest(ctx context.Context, k distro.Kernel) ([]debPackage, error) {
	meta, err := a.show(ctx, k.Meta)
	if err != nil {
		return nil, err
	}
	name, err := meta.dependency(k.Image)
	if err != nil {
		return nil, err
	}
	image, err := a.show(ctx, name)
	if err != nil || k.Modules == "" {
		return []debPackage{image}, err
	}
	if name, err = image.dependency(k.Modules); err != nil {
		return nil, err
	}
	modules, err := a.show(ctx, name)
	return []debPackage{image, modules}, err
}

// download fetches p into dir, an empty folder, and returns the file. apt
// verifies it against the signed lists.
func (a apt) download(ctx context.Context, p debPackage, dir string, progress func(percent int64)) (string, error) {
	cmd, err := distro.Command(ctx, "apt-get", append(a.common(), "-o", "APT::Status-Fd=3", "download", p.Name+"="+p.Version)...)
	if err != nil {
		return "", err
	}
	cmd.Dir = dir
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	cmd.ExtraFiles = []*os.File{w}
	done := make(chan struct{})
	go func() {
		defer close(done)
		watch(r, progress)
	}()
	err = distro.Finish(ctx, cmd)
	w.Close() // ends watch: all that apt started has ended, or is killed
	<-done
	r.Close()
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "downloading %s failed", p.Name).WithHint("see what apt-get download %s says", p.Name)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", errors.Join(err, fmt.Errorf("downloading %s: apt left %d files", p.Name, len(files)))
	}
	return files[0], nil
}

// watch reads apt's status lines, dlstatus:NUMBER:PERCENT:TEXT.
func watch(r io.Reader, progress func(percent int64)) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		parts := strings.SplitN(lines.Text(), ":", 4)
		if len(parts) == 4 && parts[0] == "dlstatus" {
			if percent, err := strconv.ParseFloat(parts[2], 64); err == nil {
				progress(int64(percent))
			}
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line too long must not block apt
}

// maxDebFile bounds one file of a package.
const maxDebFile = 512 << 20

// unpackKernel adds what the package deb has of a kernel to k.
func unpackKernel(ctx context.Context, deb string, k *rawKernel) error {
	cmd, err := distro.Command(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	cmd.Stdout = w
	read := make(chan error, 1)
	go func() {
		err := k.readTar(r)
		r.CloseWithError(err) // dpkg-deb then gets the error instead of blocking
		read <- err
	}()
	runErr := distro.Finish(ctx, cmd)
	w.CloseWithError(runErr)
	if err := errors.Join(<-read, runErr); err != nil {
		return fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
	}
	return nil
}

// rawKernel is what was found in a kernel's packages.
type rawKernel struct {
	image   []byte // vmlinuz
	release string
	modules *moduleSet
}

func (k *rawKernel) readTar(r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // what follows the archive's end
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := path.Clean(h.Name)
		release, isImage := strings.CutPrefix(name, "boot/vmlinuz-")
		mod, ext, isModule := moduleName(name)
		if !isImage && !isModule && path.Base(name) != "modules.builtin" {
			continue
		}
		data, err := readBounded(t, maxDebFile)
		switch {
		case err != nil:
			return err
		case isImage:
			k.image, k.release = bytes.Clone(data), release
		case isModule:
			k.modules.files[mod] = moduleFile{ext: ext, raw: data}
		default:
			k.modules.addBuiltin(data)
		}
	}
}
