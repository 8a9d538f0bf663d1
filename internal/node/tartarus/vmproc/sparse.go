package vmproc

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// CopySparse gives an empty file the size, and what another holds, at the same
// places: holes of the other, and its pages of zeros, become holes.
func CopySparse(to, from *os.File, size int64) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, sparseChunk)
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			return nil // nothing but a hole is left
		}
		if err != nil {
			return os.NewSyscallError("seek", err)
		}
		end, err := unix.Seek(int(from.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("seek", err)
		}
		end = min(end, size)
		for at = begin; at < end; {
			part := buf[:min(int64(len(buf)), end-at)]
			if _, err := from.ReadAt(part, at); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			if err := writePages(to, part, at); err != nil {
				return err
			}
			at += int64(len(part))
		}
	}
	return nil
}

const (
	sparseChunk = 1 << 20
	sparsePage  = 4 << 10
)

// writePages writes a part of a file but for its pages of zeros, each run of
// other pages at once.
func writePages(to *os.File, part []byte, at int64) error {
	var zeros [sparsePage]byte
	run := 0 // where the pages that are to be written begin
	for page := 0; page < len(part); page += sparsePage {
		next := min(page+sparsePage, len(part))
		if !bytes.Equal(part[page:next], zeros[:next-page]) {
			continue
		}
		if run < page {
			if _, err := to.WriteAt(part[run:page], at+int64(run)); err != nil {
				return err
			}
		}
		run = next
	}
	if run == len(part) {
		return nil
	}
	_, err := to.WriteAt(part[run:], at+int64(run))
	return err
}
