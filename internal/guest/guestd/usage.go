package guestd

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Usage reads the counters of the commands' cgroup and of the scratch disk. A
// file that a kernel does not have counts as 0.
func (v *vm) Usage() guestwire.Usage {
	var u guestwire.Usage
	u.MemoryPeak = v.number("memory.peak")
	u.MemoryCurrent = v.number("memory.current")
	u.Processes = v.number("pids.current")
	u.CPUMicros = v.field("cpu.stat", "usage_usec")
	u.OOMKills = v.field("memory.events", "oom_kill")
	u.ForksRefused = v.field("pids.events", "max")
	if v.scratch != "" {
		u.DiskWritten = diskWritten(v.scratch)
		var st unix.Statfs_t
		if err := unix.Statfs("/", &st); err == nil && full(&st) {
			u.DiskFull = 1
		}
	}
	return u
}

// fullBytes is how little room counts as none: a file system cannot hand out
// the last of it, and keeps back what it may need for its own tables.
const fullBytes = 64 << 10

func full(st *unix.Statfs_t) bool {
	return st.Bavail*uint64(st.Bsize) < fullBytes || st.Files > 0 && st.Ffree == 0
}

func (v *vm) number(file string) int64 {
	text, _ := readAt(v.box, file, 4096)
	return parseCount(strings.TrimSpace(text))
}

// field is the number behind key in a file of "key number" lines.
func (v *vm) field(file, key string) int64 {
	text, _ := readAt(v.box, file, 1<<16)
	return keyed(text, key)
}

func keyed(text, key string) int64 {
	for line := range strings.SplitSeq(text, "\n") {
		if k, n, ok := strings.Cut(line, " "); ok && k == key {
			return parseCount(n)
		}
	}
	return 0
}

func parseCount(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > guestwire.MaxOffset {
		return 0
	}
	return n
}

// diskWritten is how many bytes were written to a block device: the seventh
// field of its stat, in sectors of 512 bytes.
func diskWritten(device string) int64 {
	text, _ := readFile("/sys/block/"+device+"/stat", 4096)
	f := strings.Fields(text)
	if len(f) < 7 {
		return 0
	}
	return min(parseCount(f[6]), guestwire.MaxOffset/512) * 512
}
