package lethe

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// clone makes out, an empty file, equal to in, a file of size bytes, with the
// same holes. Where the file system can share blocks, it does.
func clone(ctx context.Context, out, in *os.File, size int64) error {
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return checkSize(out, size)
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole is left
			break
		}
		if err != nil {
			return err
		}
		to, err := unix.Seek(int(in.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := copyRange(out, in, from, min(to, size)); err != nil {
			return err
		}
		at = to
	}
	return checkSize(out, size)
}

// copyRange copies what lies between two offsets, inside the kernel where it
// can.
func copyRange(out, in *os.File, from, to int64) error {
	for from < to {
		src, dst := from, from
		n, err := unix.CopyFileRange(int(in.Fd()), &src, int(out.Fd()), &dst, int(to-from), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || err != nil {
			if full(err) {
				return err
			}
			return copyPlain(out, in, from, to)
		}
		from += int64(n)
	}
	return nil
}

func full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

func copyPlain(out, in *os.File, from, to int64) error {
	n, err := io.Copy(io.NewOffsetWriter(out, from), io.NewSectionReader(in, from, to-from))
	if err == nil && n != to-from {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func checkSize(f *os.File, size int64) error {
	st, err := f.Stat()
	if err == nil && st.Size() != size {
		err = fault.New(fault.Internal, "a scratch disk came out with %d bytes instead of %d", st.Size(), size)
	}
	return err
}
