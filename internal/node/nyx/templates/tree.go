package templates

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// The user that every template has, and that commands run as by default.
const (
	User = "sandbox"
	UID  = 1000
	Home = "/home/" + User
)

// epoch is the time of what we put into an image ourselves.
var epoch = time.Unix(0, 0).UTC()

// treeWriter writes the files of a template, and puts in what every template
// has.
type treeWriter struct {
	t    *tar.Writer
	seen map[string]bool // clean names, without a leading slash
}

// dir adds a folder.
func (w *treeWriter) dir(name string, mode int64, uid int) error {
	return w.header(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: uid, Gid: uid, ModTime: epoch})
}

// file adds a file.
func (w *treeWriter) file(name string, mode int64, data []byte) error {
	err := w.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), ModTime: epoch})
	if err == nil {
		_, err = w.t.Write(data)
	}
	return err
}

// link adds a symbolic link.
func (w *treeWriter) link(name, target string) error {
	return w.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: epoch})
}

// header adds an entry, whose data, if any, is written to w.t next.
func (w *treeWriter) header(h *tar.Header) error {
	h.Name = clean(h.Name)
	w.seen[h.Name] = true
	return w.t.WriteHeader(h)
}

// clean is a name without its leading slash or dot; "." for the root.
func clean(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}

// finish adds what every template has, where the recipe did not.
func (w *treeWriter) finish() error {
	for _, d := range []struct {
		name string
		mode int64
		uid  int
	}{
		{"proc", 0o555, 0}, {"sys", 0o555, 0}, {"dev", 0o755, 0}, {"run", 0o755, 0},
		{"tmp", 0o1777, 0}, {"var/tmp", 0o1777, 0}, {"root", 0o700, 0},
		{"home", 0o755, 0}, {Home, 0o755, UID}, {"work", 0o755, UID},
	} {
		if w.seen[clean(d.name)] {
			continue
		}
		if err := w.dir(d.name, d.mode, d.uid); err != nil {
			return err
		}
	}
	for _, f := range ownFiles {
		if w.seen[f.name] {
			continue
		}
		if err := w.file(f.name, f.mode, f.edit(nil)); err != nil {
			return err
		}
	}
	return nil
}

// ownFile is a file of which every template has a version of ours.
type ownFile struct {
	name     string
	mode     int64                   // of a new or replaced one
	edit     func(old []byte) []byte // old is nil where the template had none
	replaced bool                    // nothing of the old one stays
}

var ownFiles = []ownFile{
	{"etc/passwd", 0o644, addLine("root:x:0:0:root:/root:/bin/sh\n", User+":x:1000:1000:"+User+":"+Home+":/bin/sh\n"), false},
	{"etc/group", 0o644, addLine("root:x:0:\n", User+":x:1000:\n"), false},
	{"etc/shadow", 0o600, addLine("root:*:0:0:99999:7:::\n", User+":*:0:0:99999:7:::\n"), false},
	{"etc/hosts", 0o644, replaceWith("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n"), true},
	{"etc/hostname", 0o644, replaceWith("localhost\n"), true}, // the builder's name is nobody's business
	{"etc/resolv.conf", 0o644, replaceWith(""), true},
	{"etc/machine-id", 0o444, replaceWith(""), true},
}

func replaceWith(text string) func([]byte) []byte {
	return func([]byte) []byte { return []byte(text) }
}

// addLine adds a line, after first where the file is empty. A line of the
// same name stays what it is.
func addLine(first, line string) func([]byte) []byte {
	name, _, _ := strings.Cut(line, ":")
	return func(old []byte) []byte {
		if len(old) == 0 {
			old = []byte(first)
		}
		for l := range bytes.Lines(old) {
			if bytes.HasPrefix(l, []byte(name+":")) {
				return old
			}
		}
		if !bytes.HasSuffix(old, []byte("\n")) {
			old = append(slices.Clip(old), '\n')
		}
		return append(slices.Clip(old), line...)
	}
}

// maxOwnFile bounds what is read of a file that is edited.
const maxOwnFile = 1 << 20

// copyTar adds the files of an archive: devices and what stood in dev are left
// out, for the guest makes its own, and the files of ownFiles are edited.
// Files that are newer than day, those that the build itself wrote, get its
// time, so that two builds of a day agree. Older times stay what they are:
// Python compares them with what it noted in its compiled files.
func (w *treeWriter) copyTar(r io.Reader, day time.Time) error {
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
		name := clean(h.Name)
		if strings.HasPrefix(name, "dev/") || h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = clean(h.Linkname)
		}
		// Names of owners are the builder's, and of no use in an image.
		h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		if h.ModTime.After(day) && !strings.HasSuffix(name, ".py") {
			h.ModTime = day
		}
		if err := w.copyEntry(h, name, t); err != nil {
			return err
		}
	}
}

func (w *treeWriter) copyEntry(h *tar.Header, name string, data io.Reader) error {
	i := slices.IndexFunc(ownFiles, func(f ownFile) bool { return f.name == name })
	if i < 0 || h.Typeflag != tar.TypeReg {
		if i >= 0 { // a link where a file of ours has to be
			return nil
		}
		if err := w.header(h); err != nil {
			return err
		}
		_, err := io.Copy(w.t, data)
		return err
	}
	old, err := io.ReadAll(io.LimitReader(data, maxOwnFile+1))
	if err != nil {
		return err
	}
	if len(old) > maxOwnFile {
		return fault.New(fault.TooLarge, "/%s has more than %d bytes", name, maxOwnFile)
	}
	edited := ownFiles[i].edit(old)
	h.Size = int64(len(edited))
	if ownFiles[i].replaced {
		h.Mode, h.Uid, h.Gid, h.ModTime = ownFiles[i].mode, 0, 0, epoch
	}
	if err := w.header(h); err != nil {
		return err
	}
	_, err = w.t.Write(edited)
	return err
}
