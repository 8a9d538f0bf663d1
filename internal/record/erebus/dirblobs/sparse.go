package dirblobs

import (
	"bytes"
	"os"
)

// blockSize is what a hole is made of: the block of the file systems and the
// page of a guest's memory.
const blockSize = 4096

// sparse writes a new file without its blocks of zeros: where nothing was
// written a file reads as zeros, and most file systems keep nothing there.
type sparse struct {
	f     *os.File // empty at first
	size  int64    // of what came so far
	zeros [blockSize]byte
}

// Write implements io.Writer. What arrives need not begin or end with a
// block: the parts of one are judged by themselves.
func (w *sparse) Write(p []byte) (int, error) {
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

func (w *sparse) data(p []byte, from, to int) error {
	if from == to {
		return nil
	}
	_, err := w.f.WriteAt(p[from:to], w.size+int64(from))
	return err
}

// end gives the file its size, which what was written last need not reach.
func (w *sparse) end() error { return w.f.Truncate(w.size) }
