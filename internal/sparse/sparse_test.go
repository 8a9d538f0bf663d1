package sparse

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopy: a copy reads the same, and takes no room for zeros, whether
// they were written or not.
func TestCopy(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	page := bytes.Repeat([]byte{7}, blockSize)
	for name, c := range map[string]struct {
		size  int64
		write map[int64][]byte
		most  int64 // bytes that the copy may take
	}{
		"empty":      {0, nil, 0},
		"hole":       {8 << 20, nil, 0},
		"zeros":      {4 << 20, map[int64][]byte{0: make([]byte, 4<<20)}, 0},
		"dense":      {3 << 20, map[int64][]byte{0: bytes.Repeat([]byte{1}, 3<<20)}, 3 << 20},
		"islands":    {16 << 20, map[int64][]byte{0: make([]byte, 8<<20), 5 * blockSize: page, chunk - blockSize: page, chunk: page, 15 << 20: page}, 64 << 10},
		"odd end":    {2*blockSize + 9, map[int64][]byte{2*blockSize + 8: {1}}, blockSize},
		"odd zeros":  {blockSize + 9, map[int64][]byte{0: page, blockSize: make([]byte, 9)}, blockSize},
		"in between": {4 * blockSize, map[int64][]byte{blockSize - 1: {1, 1}}, 2 * blockSize},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := open(name), open(name+" copied")
			if err := from.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			for _, at := range []int64{0, blockSize - 1, blockSize, 5 * blockSize, 2*blockSize + 8, chunk - blockSize, chunk, 15 << 20} {
				if _, err := from.WriteAt(c.write[at], at); err != nil {
					t.Fatal(err)
				}
			}
			if err := Copy(to, from, c.size); err != nil {
				t.Fatal(err)
			}
			want, err1 := os.ReadFile(from.Name())
			got, err2 := os.ReadFile(to.Name())
			if err1 != nil || err2 != nil || !bytes.Equal(want, got) {
				t.Errorf("the copy differs (%v, %v)", err1, err2)
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(to.Fd()), &st); err != nil || st.Blocks*512 > c.most {
				t.Errorf("the copy takes %d bytes, and %d would do (%v)", st.Blocks*512, c.most, err)
			}
		})
	}
}
