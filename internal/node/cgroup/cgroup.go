// Package cgroup is the host's bound on one VM: memory, CPU and processes,
// through control groups of version 1 or 2.
//
// A Tree is where an agent's groups are made; Detect finds it or says why there
// is none. A Group is made before its first process, with limits that are read
// back; whatever could not be limited is told by name, never left out in
// silence.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// The layers of confinement that a group adds, by the names that records show.
const (
	LayerMemory  = "cgroup_memory"
	LayerSwapOff = "cgroup_swap_off"
	LayerCPU     = "cgroup_cpu"
	LayerPids    = "cgroup_pids"
)

// controllers are those used, in order; the layer each stands for.
var controllers = []struct{ name, layer string }{{"memory", LayerMemory}, {"cpu", LayerCPU}, {"pids", LayerPids}}

// Config says where to look; the zero value is right for every host.
type Config struct {
	// Parent is where groups are made, as a path below the hierarchy's mount;
	// it is created if need be. "" with version 1: "tartarus" below the
	// agent's own group, so that limits on the agent bind its VMs too. "" with
	// version 2: the group above the agent's own if that is called "agent" (a
	// systemd unit with Delegate=yes and DelegateSubgroup=agent), else
	// /tartarus.
	Parent string

	Mountinfo string // "": /proc/self/mountinfo
	Self      string // "": /proc/self/cgroup
}

// Limits bound one group; a zero field bounds nothing.
type Limits struct {
	MemoryMiB int64
	CPUs      float64 // of CPU time, 0.01 and up
	Pids      int     // processes and threads
}

// Validate says which limit makes no sense, as fault.InvalidArgument.
func (l Limits) Validate() error {
	const most = 1 << 30
	switch {
	case l.MemoryMiB < 0 || l.MemoryMiB > most:
		return fault.Invalid("memory_mib", "give 1 or more", "%d MiB is no limit", l.MemoryMiB)
	case l.CPUs != 0 && !(l.CPUs >= 0.01 && l.CPUs <= 1<<16):
		return fault.Invalid("cpus", "give 0.01 or more", "%v CPUs is no limit", l.CPUs)
	case l.Pids < 0 || l.Pids > most:
		return fault.Invalid("pids", "give 1 or more", "%d processes is no limit", l.Pids)
	}
	return nil
}

// Tree is where groups are made. Its methods may be called at once.
type Tree struct {
	version int
	parents map[string]string // by controller; with version 2 all the same; "cpuacct" too with version 1
	why     map[string]string // controller that cannot be used: why

	mu   sync.Mutex      // held while the parent is made or removed
	made map[string]bool // parents that this tree made, under mu

	// The kernel's part, replaced where a test has no hierarchy of a version.
	mkdir, rmdir func(path string) error
}

// Version is that of the hierarchy: 1 or 2.
func (t *Tree) Version() int { return t.version }

// Missing are the layers that no group of this tree can have, each with why.
func (t *Tree) Missing() []string {
	var out []string
	for _, c := range controllers {
		if w, ok := t.why[c.name]; ok {
			out = append(out, c.layer+": "+w)
		}
	}
	return out
}

// dirs are the folders that make up a group of that name.
func (t *Tree) dirs(name string) []string {
	var out []string
	for _, c := range append(slices.Clone(controllers), struct{ name, layer string }{"cpuacct", ""}) {
		if p, ok := t.parents[c.name]; ok {
			out = append(out, filepath.Join(p, name))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// Create makes a group with limits. On error nothing is left. A group of that
// name that is there already is fault.Conflict.
func (t *Tree) Create(name string, l Limits) (*Group, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	if !nameForm.MatchString(name) {
		return nil, fault.Invalid("name", "use letters, digits, dot, dash and underscore", "%q cannot name a cgroup", name)
	}
	g := &Group{tree: t, name: name}
	if err := t.make(name); err != nil {
		return nil, err
	}
	if err := g.limit(l); err != nil {
		for _, d := range t.dirs(name) {
			_ = t.rmdir(d) // empty, and nobody else's
		}
		return nil, err
	}
	return g, nil
}

// make makes a group's folders, the parent's too where need be. Another
// process may remove the parent between the two, so it tries again.
func (t *Tree) make(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var made []string
	var err error
	for range 10 {
		if err = errors.Join(slices.Collect(maps.Values(t.makeParents()))...); err != nil {
			break
		}
		for _, d := range t.dirs(name)[len(made):] {
			if err = t.mkdir(d); err != nil {
				break
			}
			made = append(made, d)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err == nil {
		return nil
	}
	for _, d := range made {
		_ = t.rmdir(d)
	}
	if errors.Is(err, fs.ErrExist) {
		return fault.Wrap(fault.Conflict, err, "there is a cgroup %s already", name).WithHint("remove what is left of an earlier run")
	}
	return fmt.Errorf("making the cgroup %s: %w", name, err)
}

// Open is a group that is there, made by an earlier agent perhaps; nil if there
// is none.
func (t *Tree) Open(name string) *Group {
	if !nameForm.MatchString(name) {
		return nil
	}
	for _, d := range t.dirs(name) {
		if _, err := os.Stat(d); err == nil {
			return &Group{tree: t, name: name}
		}
	}
	return nil
}

// Names are the groups that are there.
func (t *Tree) Names() ([]string, error) {
	var out []string
	for _, p := range t.dirs("") {
		entries, err := os.ReadDir(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && nameForm.MatchString(e.Name()) {
				out = append(out, e.Name())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Close removes what the tree made for all groups, unless groups are left.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, d := range t.dirs("") {
		if t.version == 2 && filepath.Base(d) != ownFolder && !t.made[d] {
			continue // it was given to us: systemd's, or the operator's
		}
		err := t.rmdir(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Group is one control group. Its methods may be called at once, and after its
// removal.
type Group struct {
	tree    *Tree
	name    string
	on      []string
	missing [][2]string
}

// Name is what it was created with.
func (g *Group) Name() string { return g.name }

// On are the layers that it adds.
func (g *Group) On() []string { return slices.Clone(g.on) }

// Missing are the layers that were asked for and are not there, as name and
// why.
func (g *Group) Missing() [][2]string { return slices.Clone(g.missing) }

// Join is how a process is born in a group. Whoever got it closes the files.
type Join struct {
	Dir     *os.File    // version 2: for syscall.SysProcAttr.CgroupFD; nil with version 1
	Procs   []*os.File  // version 1: the process writes "0" to each
	On      []string    // layers
	Missing [][2]string // layers, and why
}

// Join opens the group for a process about to be born.
func (g *Group) Join() (Join, error) {
	j := Join{On: g.On(), Missing: g.Missing()}
	for _, d := range g.tree.dirs(g.name) {
		if g.tree.version == 2 {
			f, err := os.Open(d)
			if err != nil {
				return Join{}, fmt.Errorf("opening the cgroup: %w", err)
			}
			j.Dir = f
			return j, nil
		}
		f, err := os.OpenFile(filepath.Join(d, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			for _, p := range j.Procs {
				_ = p.Close()
			}
			return Join{}, fmt.Errorf("opening the cgroup: %w", err)
		}
		j.Procs = append(j.Procs, f)
	}
	return j, nil
}

// Remove ends whatever is left in the group and removes it. It is no error
// when it is gone already. ctx bounds the wait for processes that linger.
func (g *Group) Remove(ctx context.Context) error {
	if err := g.Kill(ctx); err != nil {
		return err
	}
	var errs []error
	for _, d := range g.tree.dirs(g.name) {
		errs = append(errs, g.tree.removeDir(ctx, d))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the cgroup %s: %w", g.name, err)
	}
	return nil
}

// put writes one value to a file of a group.
func put(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// get reads a file of a group, without its last newline.
func get(dir, file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(b)), err
}

// getInt reads a number; "max" and v1's "no limit" are very large.
func getInt(dir, file string) (int64, error) {
	s, err := get(dir, file)
	if err != nil {
		return 0, err
	}
	if s == "max" {
		return 1<<63 - 1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s says %q: %w", file, s, err)
	}
	return n, nil
}

// field is the number after a key in a file of "key number" lines; 0 without.
func field(dir, file, key string) (int64, error) {
	s, err := get(dir, file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(s) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, nil
}
