package testkit

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// CopyFile copies what is in a file, for its owner alone; runs of zeros become
// holes, so that a snapshot's memory or an empty disk takes no room.
func CopyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyHoles(out, in), out.Close())
}

func copyHoles(out *os.File, in io.Reader) error {
	const block = 64 << 10
	buf, zeros := make([]byte, block), make([]byte, block)
	for at := int64(0); ; {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}
