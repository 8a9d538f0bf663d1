package vmproc

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopySparse: a copy reads the same, and takes no room for zeros, whether
// they were written or not.
func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	page := bytes.Repeat([]byte{7}, sparsePage)
	for name, c := range map[string]struct {
		size  int64
		write map[int64][]byte
		most  int64 // bytes that the copy may take
	}{
		"empty":      {0, nil, 0},
		"hole":       {8 << 20, nil, 0},
		"zeros":      {4 << 20, map[int64][]byte{0: make([]byte, 4<<20)}, 0},
		"dense":      {3 << 20, map[int64][]byte{0: bytes.Repeat([]byte{1}, 3<<20)}, 3 << 20},
		"islands":    {16 << 20, map[int64][]byte{0: make([]byte, 8<<20), 5 * sparsePage: page, sparseChunk - sparsePage: page, sparseChunk: page, 15 << 20: page}, 64 << 10},
		"odd end":    {2*sparsePage + 9, map[int64][]byte{2*sparsePage + 8: {1}}, sparsePage},
		"odd zeros":  {sparsePage + 9, map[int64][]byte{0: page, sparsePage: make([]byte, 9)}, sparsePage},
		"in between": {4 * sparsePage, map[int64][]byte{sparsePage - 1: {1, 1}}, 2 * sparsePage},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := open(name), open(name+" copied")
			if err := from.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			for _, at := range []int64{0, sparsePage - 1, sparsePage, 5 * sparsePage, 2*sparsePage + 8, sparseChunk - sparsePage, sparseChunk, 15 << 20} {
				if _, err := from.WriteAt(c.write[at], at); err != nil {
					t.Fatal(err)
				}
			}
			if err := CopySparse(to, from, c.size); err != nil {
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
