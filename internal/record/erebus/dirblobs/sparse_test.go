package dirblobs_test

import (
	"bytes"
	"os"
	"syscall"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/record/erebus"
)

// What is zero takes no disk, and the file is as long as what came.
func TestHoles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := make([]byte, 16<<20+1234) // it ends in zeros, and not with a block
	copy(data[5<<20+77:], "a little")
	copy(data[9<<20:], bytes.Repeat([]byte("something"), 1000))
	d, err := open(t, dir).Put(t.Context(), bytes.NewReader(data))
	if err != nil || d != erebus.Digest(data) {
		t.Fatal(d, err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(file(dir, d), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != int64(len(data)) {
		t.Errorf("a file of %d bytes for %d", st.Size, len(data))
	}
	if used := st.Blocks * 512; used == 0 || used > 256<<10 {
		t.Errorf("a file with 9 kB that are not zero takes %d bytes of the disk", used)
	}
	if got, err := os.ReadFile(file(dir, d)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d other bytes, %v", len(got), err)
	}
}
