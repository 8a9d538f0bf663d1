// Package sparse is the writing of files with holes: a block of zeros is not
// written, so that a guest's memory or an empty disk takes the room of what is
// in it.
package sparse

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// blockSize is what a hole is made of: the block of the file systems and the
// page of a guest's memory.
const blockSize = 4096

// Writer writes a new file without its blocks of zeros: where nothing was
// written a file reads as zeros, and most file systems keep nothing there.
type Writer struct {
	f     *os.File
	size  int64 // where the next byte belongs
	zeros [blockSize]byte
}

// NewWriter writes from the beginning of an empty file, which stays the
// caller's.
func NewWriter(f *os.File) *Writer { return &Writer{f: f} }

// Write implements io.Writer. What arrives need not begin or end with a
// block: the parts of one are judged by themselves.
func (w *Writer) Write(p []byte) (int, error) {
	from := 0 // p[from:to] waits to be written
	for to := 0; to < len(p); {
		end := min(to+blockSize-int((w.size+int64(to))%blockSize), len(p))
		if bytes.Equal(p[to:end], w.zeros[:end-to]) {
			if err := w.data(p, from, to); err != nil {
				return from, err
			}
			from = end
		}
		to = end
	}
	if err := w.data(p, from, len(p)); err != nil {
		return from, err
	}
	w.size += int64(len(p))
	return len(p), nil
}

func (w *Writer) data(p []byte, from, to int) error {
	if from == to {
		return nil
	}
	_, err := w.f.WriteAt(p[from:to], w.size+int64(from))
	return err
}

// End gives the file its size, which what was written last need not reach.
func (w *Writer) End() error { return w.f.Truncate(w.size) }

// chunk is what Copy reads at once.
const chunk = 1 << 20

// Copy gives an empty file the size, and what another holds, at the same
// places: holes of the other, and its blocks of zeros, become holes.
func Copy(to, from *os.File, size int64) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	w, buf := NewWriter(to), make([]byte, chunk)
	for w.size < size {
		begin, err := unix.Seek(int(from.Fd()), w.size, unix.SEEK_DATA)
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
		for w.size = begin; w.size < end; {
			part := buf[:min(int64(len(buf)), end-w.size)]
			if _, err := from.ReadAt(part, w.size); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
	}
	return nil
}
