package guestbundle

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/nyx/distro"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/memblobs"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// makeELF makes an ELF file with one section and one note segment.
func makeELF(section string, data, notes []byte) []byte {
	var b bytes.Buffer
	names := "\x00" + section + "\x00.shstrtab\x00"
	const head, phdr, shdr = 64, 56, 64
	notesAt := head + phdr
	dataAt := notesAt + len(notes)
	namesAt := dataAt + len(data)
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: head, Phentsize: phdr, Phnum: 1, Phoff: head,
		Shentsize: shdr, Shnum: 3, Shstrndx: 2, Shoff: uint64(namesAt + len(names)),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	write := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	write(h)
	write(elf.Prog64{Type: uint32(elf.PT_NOTE), Off: uint64(notesAt), Filesz: uint64(len(notes))})
	b.Write(notes)
	b.Write(data)
	b.WriteString(names)
	write(elf.Section64{})
	write(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: uint64(dataAt), Size: uint64(len(data))})
	write(elf.Section64{Name: uint32(2 + len(section)), Type: uint32(elf.SHT_STRTAB), Off: uint64(namesAt), Size: uint64(len(names))})
	return b.Bytes()
}

func note(name string, typ uint32) []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, []uint32{uint32(len(name) + 1), 5, typ})
	b.WriteString(name + "\x00")
	b.Write(make([]byte, (4-(len(name)+1)%4)%4))
	b.Write(make([]byte, 8)) // 5 bytes of description, padded
	return b.Bytes()
}

// fakeKernel is a kernel that looks as if it could be booted.
func fakeKernel() []byte {
	return makeELF(".text", []byte("\x00Linux version %s\x00Linux version 6.6.6-fake (x@y)\x00"), slices.Concat(note("Linux", 3), note("Xen", xenNotePVH)))
}

func fakeModule(deps ...string) []byte {
	return makeELF(".modinfo", []byte("license=GPL\x00depends="+strings.Join(deps, ",")+"\x00name=x\x00"), nil)
}

// bzImage packs a payload as the x86 boot protocol says.
func bzImage(payload []byte) []byte {
	const setup = 2
	b := make([]byte, (setup+1)*sector+100)
	b[bootSetupSects] = setup
	copy(b[bootMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[bootVersion:], 0x20f)
	binary.LittleEndian.PutUint32(b[bootPayloadOffset:], 100)
	binary.LittleEndian.PutUint32(b[bootPayloadLength:], uint32(len(payload)))
	return append(append(b, payload...), "what follows"...)
}

func pack(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		w, err = zstd.NewWriter(&b)
	case "lz4":
		l := lz4.NewWriter(&b)
		err = l.Apply(lz4.LegacyOption(true))
		w = l
	}
	if err == nil {
		_, err = w.Write(data)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if how != "gzip" {
		b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(data))))
	}
	return b.Bytes()
}

// xzELF is an ELF file's beginning, packed by xz with the x86 filter as
// kernels are.
const xzELF = "fd377a585a0000016922de3602010400210110008b216f490100417f454c46207061636b6564207769746820787a2c20616e64206c6f6e6720656e6f75676820666f7220746865207838362066696c74657220746f206c6f6f6b20617400000019ced0c800015642456fb5549042990d010000000001595a"

func TestVmlinux(t *testing.T) {
	t.Parallel()
	kernel := append(fakeKernel(), bytes.Repeat([]byte("some code "), 100_000)...)
	for _, how := range []string{"gzip", "zstd", "lz4"} {
		got, err := Vmlinux(bzImage(pack(t, how, kernel)))
		if err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, %v", how, len(got), err)
		}
		_, err = Vmlinux(bzImage(pack(t, how, []byte("no ELF at all"))))
		if !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s without an ELF file: %v", how, err)
		}
	}
	packed, err := hex.DecodeString(xzELF)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Vmlinux(bzImage(append(packed, 0, 0, 0, 0)))
	if err != nil || !bytes.HasPrefix(got, []byte("\x7fELF packed with xz")) {
		t.Errorf("xz: %q, %v", got, err)
	}
	if got, err := Vmlinux(kernel); err != nil || !bytes.Equal(got, kernel) {
		t.Errorf("an ELF file: %d bytes, %v", len(got), err)
	}
	whole := bzImage(pack(t, "gzip", kernel))
	for _, bad := range [][]byte{nil, []byte("MZ"), make([]byte, 4096), whole[:len(whole)/2], bzImage([]byte("unknown"))} {
		if _, err := Vmlinux(bad); err == nil {
			t.Errorf("%d bytes of nonsense are a kernel", len(bad))
		}
	}
}

func FuzzVmlinux(f *testing.F) {
	f.Add(bzImage(pack(f, "gzip", fakeKernel())))
	f.Add(bzImage(pack(f, "lz4", fakeKernel())))
	f.Add(fakeKernel())
	f.Fuzz(func(t *testing.T, image []byte) {
		if got, err := Vmlinux(image); err == nil {
			if !bytes.HasPrefix(got, []byte(elf.ELFMAG)) {
				t.Errorf("accepted without being an ELF file")
			}
			_ = CheckPVH(got)
			_ = releaseOf(got)
		}
	})
}

func FuzzModule(f *testing.F) {
	f.Add(fakeModule("a", "b-c"))
	f.Fuzz(func(t *testing.T, ko []byte) {
		deps, err := dependencies(ko)
		if err == nil && slices.Contains(deps, "") {
			t.Error("a module without a name")
		}
	})
}

func TestCheckPVH(t *testing.T) {
	t.Parallel()
	if err := CheckPVH(fakeKernel()); err != nil {
		t.Error(err)
	}
	for name, notes := range map[string][]byte{
		"none": nil, "another type": note("Xen", 17), "another name": note("Nex", xenNotePVH), "cut short": note("Xen", xenNotePVH)[:13],
		"too long": slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 18, 0, 0, 0}, make([]byte, 40)),
	} {
		if err := CheckPVH(makeELF(".text", nil, notes)); !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// setOf makes modules that depend on each other.
func setOf(deps map[string][]string) *moduleSet {
	s := newModuleSet()
	for name, d := range deps {
		s.files[name] = moduleFile{ext: ".ko", raw: fakeModule(d...)}
	}
	return s
}

// debianLike are the modules that a kernel like Debian's has.
func debianLike() map[string][]string {
	return map[string][]string{
		"virtio_ring": nil, "virtio": {"virtio_ring"}, "virtio_mmio": {"virtio", "virtio_ring"}, "virtio_blk": {"virtio", "virtio_ring"},
		"virtio_console": {"virtio"}, "overlay": nil, "unwanted": {"virtio"},
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	got, err := setOf(debianLike()).order()
	if err != nil {
		t.Fatal(err)
	}
	want := "virtio_ring virtio virtio_mmio virtio_blk virtio_console overlay"
	if names := strings.Join(moduleNames(got), " "); names != want {
		t.Errorf("order %s, want %s", names, want)
	}
	builtin := setOf(map[string][]string{"overlay": nil})
	builtin.addBuiltin([]byte("kernel/drivers/virtio/virtio-mmio.ko\nkernel/drivers/block/virtio_blk.ko\nkernel/drivers/char/virtio_console.ko\n"))
	if got, err := builtin.order(); err != nil || strings.Join(moduleNames(got), " ") != "overlay" {
		t.Errorf("nearly all built in: %v, %v", moduleNames(got), err)
	}
	for _, w := range wanted {
		less := debianLike()
		delete(less, w.name)
		if _, err := setOf(less).order(); (err != nil) != w.required {
			t.Errorf("without %s: %v", w.name, err)
		}
	}
	circle := debianLike()
	circle["virtio_ring"] = []string{"virtio"}
	if _, err := setOf(circle).order(); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a circle: %v", err)
	}
}

// Whatever depends on whatever, each module comes once, after all it needs.
func TestOrderProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		deps := map[string][]string{}
		var names []string
		for i := range rapid.IntRange(0, 12).Draw(t, "others") {
			names = append(names, fmt.Sprintf("m%d", i))
		}
		for _, w := range wanted {
			names = append(names, w.name)
		}
		for i, n := range names { // only on earlier ones: no circles
			if i > 0 {
				deps[n] = rapid.SliceOfNDistinct(rapid.SampledFrom(names[:i]), 0, min(i, 4), rapid.ID[string]).Draw(t, n)
			} else {
				deps[n] = nil
			}
		}
		got, err := setOf(deps).order()
		if err != nil {
			t.Fatal(err)
		}
		done := map[string]bool{}
		for _, m := range got {
			if done[m.Name] {
				t.Fatalf("%s twice", m.Name)
			}
			for _, d := range deps[m.Name] {
				if !done[d] {
					t.Fatalf("%s before %s", m.Name, d)
				}
			}
			done[m.Name] = true
		}
		for _, w := range wanted {
			if !done[w.name] {
				t.Fatalf("%s is not loaded", w.name)
			}
		}
	})
}

func TestCompressedModules(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := fakeModule("virtio-ring")
	zst := pack(t, "zstd", plain)
	for name, data := range map[string][]byte{
		"virtio-ring.ko": fakeModule(), "a/virtio_mmio.ko.zst": zst[:len(zst)-4], "a/b/virtio_blk.ko.gz": pack(t, "gzip", plain),
		"virtio_console.ko": plain, "overlay.ko": fakeModule(), "modules.builtin": nil, "modules.dep": []byte("ignored"),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700), os.WriteFile(filepath.Join(dir, name), data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	set, err := readModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := set.order()
	if err != nil || strings.Join(moduleNames(got), " ") != "virtio_ring virtio_mmio virtio_blk virtio_console overlay" {
		t.Fatalf("%v, %v", moduleNames(got), err)
	}
	for _, m := range got[1:4] {
		if !bytes.Equal(m.data, plain) {
			t.Errorf("%s was not unpacked", m.Name)
		}
	}
}

// readCPIO reads an archive with somebody else's reader.
func readCPIO(t testing.TB, archive []byte) (names []string, data map[string]string) {
	t.Helper()
	data = map[string]string{}
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, data
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s %o", h.Name, h.Mode))
		data[h.Name] = string(b)
	}
}

func TestInitrd(t *testing.T) {
	t.Parallel()
	entries := initrdEntries([]byte("\x7fELF init"), []module{{"b", []byte("bb")}, {"a", []byte("a")}})
	var one, two bytes.Buffer
	if err := errors.Join(writeCPIO(&one, entries), writeCPIO(&two, entries)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) || one.Len()%512 != 0 {
		t.Error("the same files make another archive, or one that is not aligned")
	}
	names, data := readCPIO(t, one.Bytes())
	want := []string{
		"dev 40755", "dev/console 20600", "dev/null 20666", "etc 40755", "etc/tartarus 40755", "etc/tartarus/modules 100644", "init 100755",
		"modules 40755", "modules/a.ko 100644", "modules/b.ko 100644", "proc 40755", "run 40755", "sys 40755",
	}
	if !slices.Equal(names, want) {
		t.Errorf("%q\nwant %q", names, want)
	}
	if data["init"] != "\x7fELF init" || data["etc/tartarus/modules"] != "b\na\n" || data["modules/b.ko"] != "bb" {
		t.Errorf("%q", data)
	}
	// The reader does not tell devices: 5, 1 of the console.
	at := bytes.Index(one.Bytes(), []byte("dev/console\x00"))
	if got := string(one.Bytes()[at-32 : at-16]); got != "0000000500000001" {
		t.Errorf("the console is device %s", got)
	}
}

func fileConfig(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	kernel := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(kernel, fakeKernel(), 0o600); err != nil {
		t.Fatal(err)
	}
	return Config{
		Init: []byte("\x7fELF init"), CacheDir: filepath.Join(dir, "cache"), Blobs: memblobs.New(memblobs.Config{}),
		Host: distro.Host{ID: "debian", Arch: "amd64"}, Kernel: kernel,
	}
}

func TestBuildFromFile(t *testing.T) {
	t.Parallel()
	c := fileConfig(t)
	d, m, err := Build(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if m.Release != "6.6.6-fake" || m.MadeFrom != "file vmlinux" || m.Kernel != erebus.Digest(fakeKernel()) || m.Init != erebus.Digest(c.Init) || len(m.Modules) != 0 {
		t.Errorf("%+v", m)
	}
	if again, _, err := Build(t.Context(), c); err != nil || again != d {
		t.Errorf("the same again is %s, %v; was %s", again, err, d)
	}
	read, err := Read(t.Context(), c.Blobs, d)
	if err != nil || read.Initrd != m.Initrd {
		t.Errorf("%+v, %v", read, err)
	}
	c.Init = []byte("\x7fELF another init")
	if other, _, err := Build(t.Context(), c); err != nil || other == d {
		t.Errorf("another init makes %s, %v", other, err)
	}
	for _, bad := range []sandbox.Digest{m.Kernel, m.Initrd} {
		if _, err := Read(t.Context(), c.Blobs, bad); err == nil {
			t.Error("a blob that is no manifest was read as one")
		}
	}
	if left, err := filepath.Glob(filepath.Join(c.CacheDir, "*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*Config)
		kind fault.Kind
	}{
		"no init":              {func(c *Config) { c.Init = nil }, fault.InvalidArgument},
		"a script as init":     {func(c *Config) { c.Init = []byte("#!/bin/sh") }, fault.InvalidArgument},
		"no cache":             {func(c *Config) { c.CacheDir = "" }, fault.InvalidArgument},
		"no blobs":             {func(c *Config) { c.Blobs = nil }, fault.InvalidArgument},
		"no such kernel":       {func(c *Config) { c.Kernel += "x" }, fault.InvalidArgument},
		"modules alone":        {func(c *Config) { c.Kernel, c.Modules = "", "/" }, fault.InvalidArgument},
		"no such modules":      {func(c *Config) { c.Modules = "/nowhere" }, fault.InvalidArgument},
		"too few modules":      {func(c *Config) { c.Modules = filepath.Dir(c.Kernel) }, fault.Unsupported},
		"unknown host":         {func(c *Config) { c.Kernel = ""; c.Host.ID = "plan9" }, fault.Unsupported},
		"full store":           {func(c *Config) { c.Blobs = memblobs.New(memblobs.Config{MaxBytes: 100}) }, fault.Unavailable},
		"a kernel that is not": {func(c *Config) { c.Kernel = "/etc/passwd" }, fault.Unsupported},
	} {
		cfg := fileConfig(t)
		c.edit(&cfg)
		if _, _, err := Build(t.Context(), cfg); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
