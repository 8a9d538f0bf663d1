package launcher

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// plan is what travels to the stages, over a descriptor.
type plan struct {
	Argv     []string
	Env      []string
	Dir      string
	ReadOnly []string
	Devices  []string
	Writable []string
	Sockets  string
	OwnFiles bool
	Jail     *Jail
	Syscalls []string
	UID, GID int
	Limits   Limits
	Require  []string

	Files    int  // how many follow
	Hold     int  // how many more follow, for the outer stage itself
	Lifeline bool // a descriptor follows
	Network  bool // a descriptor follows
	Cgroups  int  // how many cgroup.procs files follow

	// The outer stage fills these in for the inner one.
	On      []string
	Missing [][2]string // name, why
	OwnNS   bool        // the inner stage was born in new namespaces
}

// The outer stage's descriptors: these, then the lifeline, the network
// namespace, the cgroup.procs files, the VMM's files and those to hold.
const (
	fdPlan = 3 + iota
	fdReport
	fdGo
	fdRest
)

// The inner stage's descriptors are the VMM's, then these.
const (
	innerPlan = iota
	innerReport
	innerGate
	innerCount
)

const firstFile = 3 // of the VMM

// report is a line from a stage to the agent. The agent reads them until all
// writers are gone: the inner stage's descriptor closes by its exec.
type report struct {
	Ready   bool        `json:",omitempty"` // launch.json is written; the outer stage waits for the word to go on
	VMM     *Identity   `json:",omitempty"` // the inner stage exists
	Exec    bool        `json:",omitempty"` // the next thing is exec
	On      []string    `json:",omitempty"`
	Missing [][2]string `json:",omitempty"`
	ABI     int         `json:",omitempty"` // of Landlock
	Err     string      `json:",omitempty"`
	Kind    string      `json:",omitempty"` // fault code of Err
	Hint    string      `json:",omitempty"`
}

// sendReport writes one line in one write.
func sendReport(fd int, r report) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("reporting to the agent: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// planFile makes an anonymous file of p, so that a stage that dies early
// blocks nobody.
func planFile(p *plan) (int, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return -1, err
	}
	if len(b) > maxPlan {
		return -1, fmt.Errorf("the plan is larger than %d bytes", maxPlan)
	}
	fd, err := unix.MemfdCreate("launch-plan", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making the plan's file: %w", err)
	}
	for off := 0; off < len(b); {
		n, err := unix.Pwrite(fd, b[off:], int64(off))
		if err != nil && err != unix.EINTR {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("writing the plan: %w", err)
		}
		off += max(n, 0)
	}
	return fd, nil
}

// readPlan reads the plan from a descriptor, and closes it.
func readPlan(fd int) (*plan, error) {
	f := os.NewFile(uintptr(fd), "plan")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not open", fd)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxPlan))
	if err != nil {
		return nil, fmt.Errorf("reading the plan: %w", err)
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("parsing the plan: %w", err)
	}
	return &p, nil
}
