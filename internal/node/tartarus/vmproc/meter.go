package vmproc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// ticksPerSecond is the unit of times in /proc/PID/stat: USER_HZ, 100 on
// every architecture that Linux and Go share.
const ticksPerSecond = 100

// Meter reads what a VMM uses from /proc, and keeps the last it saw. Its
// methods may be called at once, and after the VMM's end.
type Meter struct {
	pid     int
	scratch string
	group   *cgroup.Group // nil without cgroups
	blocks0 int64         // bytes that scratch held at the start

	mu   sync.Mutex
	seen tartarus.Sample // guarded by mu
	has  bool            // guarded by mu
}

// NewMeter is the meter of the VMM that is process pid, with the disk scratch
// and, if it has one, that cgroup.
func NewMeter(pid int, scratch string, group *cgroup.Group) *Meter {
	m := &Meter{pid: pid, scratch: scratch, group: group, blocks0: allocated(scratch)}
	m.Sample() //nolint:errcheck // so that there is one however soon it ends
	return m
}

// Sample reads once. After the VMM's end it is the last one read, with what
// the group has counted to the end.
func (m *Meter) Sample() (tartarus.Sample, error) {
	s, err := m.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if !m.has {
			return tartarus.Sample{}, err
		}
		s = m.seen
	}
	m.count(&s)
	s.MemoryPeakBytes = max(s.MemoryBytes, m.seen.MemoryPeakBytes)
	s.DiskWritten = max(s.DiskWritten, m.seen.DiskWritten)
	s.CPUSeconds = max(s.CPUSeconds, m.seen.CPUSeconds)
	s.OOMKills = max(s.OOMKills, m.seen.OOMKills)
	m.seen, m.has = s, true
	return s, nil
}

// count adds what the group knows better. Its memory is none of it: it has the
// page cache in it, which is no use of the VM's.
func (m *Meter) count(s *tartarus.Sample) {
	if m.group == nil {
		return
	}
	if c, err := m.group.Stat(); err == nil {
		s.CPUSeconds = max(s.CPUSeconds, c.CPUSeconds)
		s.OOMKills = max(s.OOMKills, c.OOMKills)
	}
}

func (m *Meter) read() (tartarus.Sample, error) {
	s := tartarus.Sample{At: time.Now()}
	dir := "/proc/" + strconv.Itoa(m.pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return s, err
	}
	if s.CPUSeconds, err = cpuSeconds(stat); err != nil {
		return s, err
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return s, err
	}
	anon, ok1 := field(status, "RssAnon:")
	shmem, ok2 := field(status, "RssShmem:")
	if !ok1 || !ok2 {
		return s, errors.New("the VMM has no memory: it has ended")
	}
	s.MemoryBytes = (anon + shmem) << 10
	s.DiskWritten = allocated(m.scratch) - m.blocks0
	// Readable for root only where the VMM runs as another user; without it
	// the disk's growth has to do.
	if io, err := os.ReadFile(dir + "/io"); err == nil {
		if n, ok := field(io, "write_bytes:"); ok {
			s.DiskWritten = max(s.DiskWritten, n)
		}
	}
	return s, nil
}

// cpuSeconds is utime and stime of a /proc/PID/stat. A zombie's count no more.
func cpuSeconds(stat []byte) (float64, error) {
	end := bytes.LastIndexByte(stat, ')') // the name in brackets may hold anything
	f := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(f) < 13 {
		return 0, fmt.Errorf("%.80q is no process status", stat)
	}
	if f[0] == "Z" || f[0] == "X" {
		return 0, errors.New("the VMM has ended")
	}
	var sum int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%.80q is no process status", stat)
		}
		sum += n
	}
	return float64(sum) / ticksPerSecond, nil
}

// field is the number after name in a file of lines.
func field(b []byte, name string) (int64, bool) {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			f := bytes.Fields(rest)
			if len(f) == 0 {
				return 0, false
			}
			n, err := strconv.ParseInt(string(f[0]), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// allocated is what a sparse file really takes.
func allocated(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Blocks * 512
}
