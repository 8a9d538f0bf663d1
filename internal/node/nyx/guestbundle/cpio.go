package guestbundle

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// entry is a file of the initramfs.
type entry struct {
	name         string // without a leading slash
	mode         uint32 // type and permissions, as in stat
	data         []byte
	major, minor uint32 // of a device
}

const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeChar = 0o020000
)

// writeCPIO writes entries as a "newc" archive, the parents of each first.
// The same entries give the same bytes: all times are 0, all owners root.
func writeCPIO(w io.Writer, entries []entry) error {
	c := &cpioWriter{w: w}
	for _, e := range withParents(entries) {
		c.entry(e)
	}
	c.entry(entry{name: "TRAILER!!!"})
	c.pad(512) // the kernel wants the next archive, if any, aligned
	return c.err
}

// withParents adds the folders that are not among the entries.
func withParents(entries []entry) []entry {
	var out []entry
	seen := map[string]bool{}
	var folder func(string)
	folder = func(dir string) {
		if dir == "." || seen[dir] {
			return
		}
		folder(path.Dir(dir))
		seen[dir] = true
		out = append(out, entry{name: dir, mode: modeDir | 0o755})
	}
	sorted := slices.SortedFunc(slices.Values(entries), func(a, b entry) int { return strings.Compare(a.name, b.name) })
	for _, e := range sorted {
		folder(path.Dir(e.name))
		if e.mode&modeDir != 0 {
			seen[e.name] = true
		}
		out = append(out, e)
	}
	return out
}

// cpioWriter keeps the first error.
type cpioWriter struct {
	w     io.Writer
	inode int
	n     int64
	err   error
}

func (c *cpioWriter) entry(e entry) {
	c.inode++
	links := 1
	if e.mode&modeDir != 0 {
		links = 2
	}
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, len(e.name)+1, 0)
	c.write([]byte(header + e.name + "\x00"))
	c.pad(4)
	c.write(e.data)
	c.pad(4)
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.err = err
}

func (c *cpioWriter) pad(to int64) {
	if rest := c.n % to; rest != 0 {
		c.write(make([]byte, to-rest))
	}
}
