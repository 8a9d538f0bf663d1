package launcher

import (
	"io"
	"os"
	"path/filepath"
)

// drain keeps the end of what r brings in two files of Dir, each of at most
// StderrBytes: when one is full it becomes the old one. It never stops
// reading, so the writer never blocks, and nothing it does stops the VMM.
func drain(r io.Reader, dir string) {
	path := filepath.Join(dir, stderrFile)
	var f *os.File
	var size int
	defer func() {
		if f != nil {
			_ = f.Close()
		}
	}()
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && size+n > StderrBytes {
			_ = f.Close()
			_ = os.Rename(path, path+".old")
			f, size = nil, 0
		}
		if n > 0 && f == nil {
			f, _ = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		}
		if n > 0 {
			_, _ = f.Write(buf[:n]) // a nil or full file takes nothing: the words are lost, the VM lives
			size += n
		}
		if err != nil {
			return
		}
	}
}
