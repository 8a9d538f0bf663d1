package guestbundle

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// wanted are the modules that a guest needs, where the kernel has them not
// built in. What they depend on is found in them. The device for randomness is
// not among them: its driver asks for bytes ahead, so that all that go on from
// a snapshot would get the same ones. Init is given randomness instead.
var wanted = []struct {
	name     string
	required bool
}{
	{"virtio_mmio", true},
	{"virtio_blk", true},
	{"virtio_console", true},
	{"overlay", true},
	{"virtio_net", false},
	{"vmw_vsock_virtio_transport", false},
}

// maxModule bounds one unpacked module.
const maxModule = 64 << 20

// module is one kernel module, unpacked.
type module struct {
	Name string // with underscores, as the kernel tells it
	data []byte
}

// moduleSet is a kernel's modules as they lie in its package or folder:
// perhaps compressed, by name.
type moduleSet struct {
	files   map[string]moduleFile
	builtin map[string]bool
}

type moduleFile struct {
	ext string // ".ko", ".ko.xz", …
	raw []byte
}

func newModuleSet() *moduleSet {
	return &moduleSet{files: map[string]moduleFile{}, builtin: map[string]bool{}}
}

// moduleName splits the name of a module's file; ok is false for other files.
func moduleName(file string) (name, ext string, ok bool) {
	base := path.Base(file)
	for _, ext := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if n, ok := strings.CutSuffix(base, ext); ok {
			return strings.ReplaceAll(n, "-", "_"), ext, true
		}
	}
	return "", "", false
}

// addBuiltin reads a modules.builtin file.
func (s *moduleSet) addBuiltin(text []byte) {
	for line := range strings.Lines(string(text)) {
		if name, _, ok := moduleName(strings.TrimSpace(line)); ok {
			s.builtin[name] = true
		}
	}
}

// readModules reads a folder such as /lib/modules/RELEASE. "" is a kernel that
// has everything built in.
func readModules(dir string) (*moduleSet, error) {
	s := newModuleSet()
	if dir == "" {
		for _, w := range wanted {
			s.builtin[w.name] = true
		}
		return s, nil
	}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if d.Name() == "modules.builtin" {
			text, err := os.ReadFile(file)
			s.addBuiltin(text)
			return err
		}
		if name, ext, ok := moduleName(file); ok {
			raw, err := os.ReadFile(file)
			s.files[name] = moduleFile{ext: ext, raw: raw}
			return err
		}
		return nil
	})
	if err != nil {
		return nil, fault.Wrap(fault.InvalidArgument, err, "the folder of kernel modules cannot be read").
			WithHint("name a folder such as /lib/modules/6.1.0-56-cloud-amd64 by --modules")
	}
	return s, nil
}

// order returns the wanted modules with all they depend on, each after what it
// depends on.
func (s *moduleSet) order() ([]module, error) {
	var names []string
	for _, w := range wanted {
		if _, have := s.files[w.name]; have || w.required {
			names = append(names, w.name)
		}
	}
	return s.orderOf(names)
}

// orderOf is order for the modules of these names.
func (s *moduleSet) orderOf(names []string) ([]module, error) {
	var out []module
	state := map[string]int{} // 1: being visited, 2: in out
	var visit func(name string) error
	visit = func(name string) error {
		if s.builtin[name] || state[name] == 2 {
			return nil
		}
		if state[name] == 1 {
			return fault.New(fault.Unsupported, "the kernel's module %s depends on itself", name)
		}
		state[name] = 1
		f, ok := s.files[name]
		if !ok {
			return fault.New(fault.Unsupported, "the kernel has no module %s", name).
				WithHint("use a kernel that has it, or has it built in")
		}
		data, err := f.unpack()
		if err != nil {
			return fmt.Errorf("unpacking kernel module %s: %w", name, err)
		}
		deps, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("reading kernel module %s: %w", name, err)
		}
		for _, dep := range deps {
			if err := visit(dep); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, module{Name: name, data: data})
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (f moduleFile) unpack() ([]byte, error) {
	switch f.ext {
	case ".ko":
		return f.raw, nil
	case ".ko.xz":
		r, err := xz.NewReader(bytes.NewReader(f.raw), 0)
		if err != nil {
			return nil, err
		}
		return readBounded(r, maxModule)
	case ".ko.zst":
		z, err := zstd.NewReader(bytes.NewReader(f.raw), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return readBounded(z, maxModule)
	case ".ko.gz":
		r, err := gzip.NewReader(bytes.NewReader(f.raw))
		if err != nil {
			return nil, err
		}
		return readBounded(r, maxModule)
	}
	return nil, fault.New(fault.Unsupported, "unknown kind of file %q", f.ext)
}

// dependencies are the modules that a module needs before it, as its .modinfo
// section tells: strings "key=value", each with a zero byte behind it.
func dependencies(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fault.New(fault.Unsupported, "it has no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for _, item := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(item, "depends="); ok {
			for _, name := range strings.Split(list, ",") {
				if name != "" {
					deps = append(deps, strings.ReplaceAll(name, "-", "_"))
				}
			}
		}
	}
	slices.Sort(deps)
	return slices.Compact(deps), nil
}
