package templates

import (
	"bytes"
	"encoding/binary"
	"os"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// The fields of an ext4 file system that are read here
// (Documentation/filesystems/ext4 of the kernel), little endian.
const (
	superblock     = 1024
	superblockSize = 1024
	sbInodes       = 0x00 // 4 bytes
	sbBlockSize    = 0x18 // 4 bytes: 1024 << n
	sbPerGroup     = 0x28 // 4 bytes: inodes a group
	sbMagic        = 0x38 // 2 bytes
	ext4Magic      = 0xef53
	groupSize      = 32 // of a group descriptor, without the 64bit feature
	groupInodeMap  = 4  // 4 bytes: the block of the inode bitmap
)

// padInodeBitmaps sets the bits behind the last inode in every group's bitmap,
// which tar2ext4 leaves clear: no kernel minds, but e2fsck does.
func padInodeBitmaps(f *os.File) error {
	sb := make([]byte, superblockSize)
	if _, err := f.ReadAt(sb, superblock); err != nil {
		return err
	}
	inodes, perGroup := binary.LittleEndian.Uint32(sb[sbInodes:]), binary.LittleEndian.Uint32(sb[sbPerGroup:])
	shift := binary.LittleEndian.Uint32(sb[sbBlockSize:])
	if binary.LittleEndian.Uint16(sb[sbMagic:]) != ext4Magic || perGroup == 0 || perGroup%8 != 0 || shift != 2 {
		return fault.New(fault.Internal, "the image is not what the converter makes")
	}
	block := int64(1024) << shift
	used := int64(perGroup / 8)
	padding := bytes.Repeat([]byte{0xff}, int(block-used))
	for group := range (inodes + perGroup - 1) / perGroup {
		var where [4]byte
		if _, err := f.ReadAt(where[:], block+int64(group)*groupSize+groupInodeMap); err != nil {
			return err
		}
		at := int64(binary.LittleEndian.Uint32(where[:]))*block + used
		if _, err := f.WriteAt(padding, at); err != nil {
			return err
		}
	}
	return nil
}
