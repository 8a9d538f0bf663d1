package guestbundle

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// maxVmlinux bounds what a compressed kernel may unfold to.
const maxVmlinux = 256 << 20

// The fields of the x86 boot protocol's header that are read here
// (Documentation/arch/x86/boot.rst).
const (
	bootSetupSects    = 0x1f1 // 1 byte: sectors of the real-mode code after the first
	bootMagic         = 0x202 // "HdrS"
	bootVersion       = 0x206 // 2 bytes; the payload is told from 2.08 on
	bootPayloadOffset = 0x248 // 4 bytes, from the end of the real-mode code
	bootPayloadLength = 0x24c // 4 bytes
	bootHeaderEnd     = 0x250
	sector            = 512
)

// Vmlinux is the ELF kernel in image, which is one already or a bzImage.
func Vmlinux(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return image, nil
	}
	payload, err := bzPayload(image)
	if err != nil {
		return nil, err
	}
	vmlinux, err := unpack(payload)
	if err != nil {
		return nil, fmt.Errorf("unpacking the kernel: %w", err)
	}
	if !bytes.HasPrefix(vmlinux, []byte(elf.ELFMAG)) {
		return nil, fault.New(fault.Unsupported, "the kernel image holds no ELF kernel")
	}
	return vmlinux, nil
}

// bzPayload is the compressed kernel in a bzImage.
func bzPayload(image []byte) ([]byte, error) {
	bad := func(why string) error {
		return fault.New(fault.Unsupported, "the kernel image %s", why).WithHint("name an ELF kernel (vmlinux) or a bzImage")
	}
	if len(image) < bootHeaderEnd || string(image[bootMagic:bootMagic+4]) != "HdrS" {
		return nil, bad("is neither an ELF file nor a bzImage")
	}
	if binary.LittleEndian.Uint16(image[bootVersion:]) < 0x208 {
		return nil, bad("is of a boot protocol before 2.08")
	}
	setup := int64(image[bootSetupSects])
	if setup == 0 {
		setup = 4 // as the boot protocol says
	}
	from := (setup+1)*sector + int64(binary.LittleEndian.Uint32(image[bootPayloadOffset:]))
	to := from + int64(binary.LittleEndian.Uint32(image[bootPayloadLength:]))
	if to > int64(len(image)) {
		return nil, bad("is shorter than its header says")
	}
	return image[from:to], nil
}

// unpack tells the compression by its magic and undoes it. All but gzip are
// followed by four bytes of the unpacked length, which are no part of them.
func unpack(b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	body := b[:max(0, len(b)-4)]
	switch {
	case bytes.HasPrefix(b, []byte{0x02, 0x21, 0x4c, 0x18}): // the old frame of lz4
		r = lz4.NewReader(bytes.NewReader(body))
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return unzstd(body)
	case bytes.HasPrefix(b, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, err = xz.NewReader(bytes.NewReader(body), 0)
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		var gz *gzip.Reader
		if gz, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			gz.Multistream(false) // the length follows here too on some kernels
			r = gz
		}
	default:
		return nil, fault.New(fault.Unsupported, "the kernel is compressed in a way that is not known (lz4, zstd, xz and gzip are)")
	}
	if err != nil {
		return nil, err
	}
	return readBounded(r, maxVmlinux)
}

// unzstd undoes zstd within the bound.
func unzstd(b []byte) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return readBounded(z, maxVmlinux)
}

// readBounded reads all of r, which may be at most limit.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(out)) > limit {
		err = fault.New(fault.TooLarge, "it unfolds to more than %d MiB", limit>>20)
	}
	return out, err
}

// xenNotePVH is the type of the ELF note with the kernel's 32-bit entry point
// (XEN_ELFNOTE_PHYS32_ENTRY): what a VMM needs to boot an ELF kernel without
// firmware.
const xenNotePVH = 18

// CheckPVH reports by an error that vmlinux, an ELF file, cannot be booted
// directly. Only x86 kernels need the note.
func CheckPVH(vmlinux []byte) error {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "the kernel is a broken ELF file")
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return nil
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(io.LimitReader(p.Open(), 1<<20))
		if err != nil {
			return fault.Wrap(fault.Unsupported, err, "the kernel is a broken ELF file")
		}
		if hasNote(notes, "Xen", xenNotePVH) {
			return nil
		}
	}
	return fault.New(fault.Unsupported, "the kernel has no PVH entry point").WithHint("use a kernel built with CONFIG_PVH=y, as Debian's and Ubuntu's are")
}

// hasNote looks through a PT_NOTE segment, whose parts are padded to 4 bytes.
func hasNote(b []byte, name string, typ uint32) bool {
	pad := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		nameLen, descLen := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		size := 12 + pad(nameLen) + pad(descLen)
		if size > uint64(len(b)) {
			return false
		}
		if binary.LittleEndian.Uint32(b[8:]) == typ && string(bytes.TrimRight(b[12:12+nameLen], "\x00")) == name {
			return true
		}
		b = b[size:]
	}
	return false
}
