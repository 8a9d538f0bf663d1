package bench

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Process is what the kernel tells of a process.
type Process struct {
	CPU time.Duration // of all its threads, not of its children
	RSS int64         // bytes
}

// ticks a second, as /proc counts CPU time on Linux.
const ticks = 100

// Look reads what the kernel tells of a process.
func Look(pid int) (p Process, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 22 {
		return p, fmt.Errorf("/proc/%d/stat says %q", pid, b)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	pages, err3 := strconv.ParseInt(f[21], 10, 64)
	p.CPU = time.Duration(user+system) * time.Second / ticks
	p.RSS = pages * int64(os.Getpagesize())
	return p, errors.Join(err1, err2, err3)
}
