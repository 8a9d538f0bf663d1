package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// ownFolder is what is made for all groups, where nothing else is given.
const ownFolder = "tartarus"

// mount is one hierarchy.
type mount struct {
	point       string
	root        string   // which of its groups is at point
	controllers []string // nil: version 2
}

// Detect finds where this process can make groups. With version 2 it needs the
// memory controller there; else version 1 is used. The error is
// fault.Unsupported and says what is missing; a controller that alone is
// missing is in Tree.Missing.
//
// It makes the parent of all groups, so that rights are known by trying.
func Detect(cfg Config) (*Tree, error) {
	if cfg.Mountinfo == "" {
		cfg.Mountinfo = "/proc/self/mountinfo"
	}
	if cfg.Self == "" {
		cfg.Self = "/proc/self/cgroup"
	}
	info, err := os.ReadFile(cfg.Mountinfo)
	if err != nil {
		return nil, unusable("mounts cannot be read: %v", err)
	}
	self, err := os.ReadFile(cfg.Self)
	if err != nil {
		return nil, unusable("the agent's own cgroup cannot be read: %v", err)
	}
	t := &Tree{
		parents: make(map[string]string), why: make(map[string]string), made: make(map[string]bool),
		mkdir: func(p string) error { return os.Mkdir(p, 0o755) }, rmdir: unix.Rmdir,
	}
	if err := t.settle(parseMounts(string(info)), cfg.Parent, parseSelf(string(self))); err != nil {
		return nil, err
	}
	return t, nil
}

// settle finds the parents and makes them.
func (t *Tree) settle(mounts []mount, parent string, self map[string]string) error {
	if len(mounts) == 0 {
		return unusable("no cgroup hierarchy is mounted")
	}
	t.version = 1
	if m, ok := unified(mounts); ok {
		t.version = 2
		t.place2(m, parent, self[""])
	} else {
		t.place1(mounts, parent, self)
	}
	for dir, err := range t.makeParents() {
		for c, p := range t.parents {
			if p == dir {
				delete(t.parents, c)
				t.why[c] = fmt.Sprintf("no groups can be made in %s: %v", dir, err)
			}
		}
	}
	if t.version == 2 {
		t.checkEnabled()
	}
	if !slices.ContainsFunc(controllers, func(c struct{ name, layer string }) bool { _, ok := t.parents[c.name]; return ok }) {
		return unusable("version %d: %s", t.version, strings.Join(t.Missing(), "; "))
	}
	return nil
}

func unusable(format string, args ...any) error {
	return fault.New(fault.Unsupported, "cgroups cannot be used: "+format, args...).
		WithHint("run the agent as root, or as a systemd unit with Delegate=yes and DelegateSubgroup=agent")
}

// unified is the hierarchy of version 2 if it has the memory controller.
func unified(mounts []mount) (mount, bool) {
	for _, m := range mounts {
		if m.controllers != nil {
			continue
		}
		if s, err := get(m.point, "cgroup.controllers"); err == nil && slices.Contains(strings.Fields(s), "memory") {
			return m, true
		}
	}
	return mount{}, false
}

// below is the folder of a group, "" if it is out of sight of the mount.
func (m mount) below(group string) string {
	rel, err := filepath.Rel(m.root, group)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return ""
	}
	return filepath.Join(m.point, rel)
}

func (t *Tree) place2(m mount, parent, self string) {
	dir := filepath.Join(m.point, filepath.Clean("/"+parent))
	if parent == "" {
		dir = filepath.Join(m.point, ownFolder)
		if own := m.below(self); own != "" && filepath.Base(own) == "agent" {
			dir = filepath.Dir(own)
		}
	}
	for _, c := range controllers {
		t.parents[c.name] = dir
	}
}

func (t *Tree) place1(mounts []mount, parent string, self map[string]string) {
	for _, c := range []string{"memory", "cpu", "pids", "cpuacct"} {
		i := slices.IndexFunc(mounts, func(m mount) bool { return slices.Contains(m.controllers, c) })
		if i < 0 {
			t.why[c] = "no hierarchy with it is mounted"
			continue
		}
		dir := filepath.Join(mounts[i].point, filepath.Clean("/"+parent))
		if parent == "" {
			own := mounts[i].below(self[c])
			if own == "" {
				own = mounts[i].point
			}
			dir = filepath.Join(own, ownFolder)
		}
		t.parents[c] = dir
	}
}

// makeParents makes the parents of all groups, and says which could not be.
// The caller holds mu, or has the tree for itself.
func (t *Tree) makeParents() map[string]error {
	failed := make(map[string]error)
	for _, dir := range t.dirs("") {
		err := t.mkdir(dir)
		if err == nil {
			t.made[dir] = true
		}
		if err == nil || errors.Is(err, fs.ErrExist) {
			err = unix.Access(dir, unix.W_OK)
		}
		if err == nil && t.version == 2 {
			err = t.enable(dir)
		}
		if err != nil {
			failed[dir] = err
		}
	}
	return failed
}

// enable hands the controllers down to the groups in dir, from as far up as
// it takes. One controller that is not there does not keep the others away.
func (t *Tree) enable(dir string) error {
	var chain []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "cgroup.subtree_control")); err != nil {
			break // above the mount
		}
		chain = append(chain, d)
	}
	slices.Reverse(chain)
	for _, d := range chain {
		have, err := get(d, "cgroup.subtree_control")
		if err != nil {
			return err
		}
		for _, c := range controllers {
			if !slices.Contains(strings.Fields(have), c.name) {
				_ = put(d, "cgroup.subtree_control", "+"+c.name) // checkEnabled tells
			}
		}
	}
	return nil
}

// checkEnabled drops the controllers that groups would not have.
func (t *Tree) checkEnabled() {
	for _, c := range controllers {
		dir, usable := t.parents[c.name]
		if !usable {
			continue
		}
		have, err := get(dir, "cgroup.subtree_control")
		if err != nil || !slices.Contains(strings.Fields(have), c.name) {
			delete(t.parents, c.name)
			t.why[c.name] = "it is not handed down to " + dir
		}
	}
}

// parseMounts reads the cgroup mounts of mountinfo.
func parseMounts(info string) []mount {
	var out []mount
	for line := range strings.Lines(info) {
		pre, post, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, g := strings.Fields(pre), strings.Fields(post)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		m := mount{root: unescape(f[3]), point: unescape(f[4])}
		switch g[0] {
		case "cgroup2":
			out = append(out, m)
		case "cgroup":
			m.controllers = strings.Split(g[2], ",")
			out = append(out, m)
		}
	}
	return out
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// parseSelf is the agent's own group by controller; "" is version 2.
func parseSelf(s string) map[string]string {
	out := make(map[string]string)
	for line := range strings.Lines(s) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			out[c] = f[2]
		}
	}
	return out
}
