package firecracker

import (
	"bytes"
	"fmt"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// LayerJail is the jailer's: a root that holds this VM's files alone, entered
// by pivot_root.
const LayerJail = "jail"

// LayerVMMSeccomp is Firecracker's own filters: on every thread of a VM that
// runs, and before that on those that listen.
const LayerVMMSeccomp = "vmm_seccomp"

// layers is an account of isolation that is being put together.
type layers struct{ sandbox.Isolation }

// note adds what is known of one layer; what was on or missing before stays
// so, but that a layer seen to be on is not missing.
func (l *layers) note(layer string, on bool, why string) {
	isIt := func(m string) bool { return strings.HasPrefix(m, layer+": ") }
	switch {
	case slices.Contains(l.Confinement, layer):
	case on:
		l.Confinement = append(l.Confinement, layer)
		l.Missing = slices.DeleteFunc(l.Missing, isIt)
	case !slices.ContainsFunc(l.Missing, isIt):
		l.Missing = append(l.Missing, layer+": "+why)
	}
}

// judgeIsolation finds out what confines the VMM: what the launcher did, and
// of what jailer and Firecracker did, what the kernel shows.
func (v *vm) judgeIsolation() error {
	l := layers{v.proc.Isolation()}
	l.Accelerator = accelerator
	inherited := 0
	if slices.Contains(l.Confinement, launcher.LayerSeccomp) {
		inherited = 1
	}
	seen, err := observe(v.proc.VMM().Pid, inherited)
	if err != nil {
		return fmt.Errorf("looking at the VMM: %w", err)
	}
	filtered := seen.filtered(v.boot.disks)
	if v.d.jailer != "" {
		v.noteJail(&l, seen)
		l.note(launcher.LayerSeccomp, filtered, "not all threads have a filter")
	} else {
		l.note(LayerJail, false, "the agent is not root")
	}
	l.note(LayerVMMSeccomp, filtered, "not all threads have a filter")
	if why := v.d.kind.Groupless(); why != "" {
		l.note(cgroup.LayerMemory, false, why)
	}
	v.isolation = l.Isolation
	for _, layer := range v.d.cfg.Require {
		if !slices.Contains(l.Confinement, layer) {
			return fault.New(fault.Unsupported, "the layer %s is required and cannot be had", layer).
				WithHint("run the agent with the rights for it, or lower the floor of isolation in the policy")
		}
	}
	return nil
}

func (v *vm) noteJail(l *layers, seen sight) {
	inside := false
	if d, err := v.openFolder(); err == nil { // only where its root is not ours
		inside = true
		d.close()
	}
	own := seen.uid == v.boot.spec.UID && seen.gid == v.boot.spec.GID && seen.groups == 0
	l.note(launcher.LayerOwnUID, own, "it does not run as the user that it was given")
	l.note(launcher.LayerCapabilities, seen.caps == 0, "it kept some")
	l.note(launcher.LayerPrivateRoot, inside, "it sees the host's files")
	l.note(LayerJail, inside, "it has not been entered")
	for _, layer := range []string{launcher.LayerLandlock, launcher.LayerBounding} {
		l.note(layer, false, "the jailer would not work with it")
	}
}

// sight is what the kernel shows of a process.
type sight struct {
	uid, gid  int    // -1 if its several ones differ
	groups    int    // how many others
	caps      uint64 // of all sets but the bounding one
	least     int    // filters of system calls, on the thread that has the fewest
	most      int    // and on the one that has the most
	inherited int    // those that it was born with
}

// filtered reports whether Firecracker's own filters are where they should be:
// on every thread once the guest runs.
func (s sight) filtered(running bool) bool {
	if running {
		return s.least > s.inherited
	}
	return s.most > s.inherited
}

func observe(pid, inherited int) (sight, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return sight{}, err
	}
	s := sight{uid: -1, gid: -1, inherited: inherited}
	for key, value := range fields(status) {
		switch key {
		case "Uid":
			s.uid = same(strings.Fields(value))
		case "Gid":
			s.gid = same(strings.Fields(value))
		case "Groups":
			s.groups = len(strings.Fields(value))
		case "CapInh", "CapPrm", "CapEff", "CapAmb":
			n, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return s, fmt.Errorf("%.80q is no set of capabilities", value)
			}
			s.caps |= n
		}
	}
	threads, err := os.ReadDir(dir + "/task")
	if err != nil {
		return s, err
	}
	for i, t := range threads {
		status, err := os.ReadFile(dir + "/task/" + t.Name() + "/status")
		if err != nil {
			return s, err
		}
		n := filters(status)
		if i == 0 || n < s.least {
			s.least = n
		}
		s.most = max(s.most, n)
	}
	return s, nil
}

// filters is how many filters of system calls a thread has. A kernel before
// 5.9 only tells whether there is one.
func filters(status []byte) int {
	n := 0
	for key, value := range fields(status) {
		switch {
		case key == "Seccomp" && value == "2" && n == 0:
			n = 1
		case key == "Seccomp_filters":
			n, _ = strconv.Atoi(value)
		}
	}
	return n
}

// fields are the lines of a status file.
func fields(status []byte) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for line := range bytes.Lines(status) {
			key, value, _ := strings.Cut(string(line), ":")
			if !yield(key, strings.TrimSpace(value)) {
				return
			}
		}
	}
}

// same is the number that all fields are, -1 if they differ.
func same(f []string) int {
	if len(f) == 0 || slices.ContainsFunc(f, func(x string) bool { return x != f[0] }) {
		return -1
	}
	n, err := strconv.Atoi(f[0])
	if err != nil {
		return -1
	}
	return n
}
