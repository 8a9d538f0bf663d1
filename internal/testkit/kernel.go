package testkit

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// FakeKernel is an ELF file with the note that makes it a guest kernel, for
// hosts whose VMs are fakes.
func FakeKernel() []byte {
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Phentsize: 56, Phnum: 1, Phoff: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	for _, part := range []any{h, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: 20}, []uint32{4, 4, 18}} {
		_ = binary.Write(&b, binary.LittleEndian, part) // to memory
	}
	b.WriteString("Xen\x00\x00\x00\x00\x00Linux version 6.6.6 x")
	return b.Bytes()
}
