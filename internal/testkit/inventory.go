package testkit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
)

// Inventory is what a host has of what a run may leave: one line a thing,
// sorted.
type Inventory []string

// Scope is where an Inventory looks.
type Scope struct {
	// Mark stands in the command line of the processes that count. "" is for a
	// host of the test's own: there all processes count, with their users and
	// namespaces, and all mounts and firewall rules.
	Mark string

	Dirs []string // whose files count, and mounts in them
}

// TakeInventory looks once. Cgroups count whose path contains "tartarus";
// network links do everywhere. What vanishes while it looks is not there.
func TakeInventory(s Scope) (Inventory, error) {
	t := &taking{scope: s}
	for _, take := range []func() error{t.processes, t.mounts, t.links, t.groups, t.files, t.rules} {
		if err := take(); err != nil {
			return nil, fmt.Errorf("taking an inventory: %w", err)
		}
	}
	slices.Sort(t.inv)
	return slices.Compact(t.inv), nil
}

// More is what inv has and before had not.
func (inv Inventory) More(before Inventory) []string {
	var out []string
	for _, line := range inv {
		if _, found := slices.BinarySearch(before, line); !found {
			out = append(out, line)
		}
	}
	return out
}

type taking struct {
	scope Scope
	inv   Inventory
}

func (t *taking) add(format string, args ...any) { t.inv = append(t.inv, fmt.Sprintf(format, args...)) }

// processes but for this one and the kernel's threads, which have no command
// line.
func (t *taking) processes() error {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", d.Name())
		cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err != nil || len(cmdline) == 0 || !strings.Contains(string(cmdline), t.scope.Mark) {
			continue
		}
		t.add("process %s %q", d.Name(), strings.ReplaceAll(string(cmdline), "\x00", " "))
		if t.scope.Mark == "" {
			t.particulars(proc)
		}
	}
	return nil
}

// particulars are users and namespaces: each but once, however many processes
// have it.
func (t *taking) particulars(proc string) {
	if status, err := os.ReadFile(filepath.Join(proc, "status")); err == nil {
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
				t.add("user %s", strings.Fields(ids)[0])
			}
		}
	}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		if ns, err := os.Readlink(filepath.Join(proc, "ns", kind)); err == nil {
			t.add("namespace %s", ns)
		}
	}
}

func (t *taking) mounts() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		in := func(dir string) bool { return strings.HasPrefix(f[4], dir) }
		if len(f) > 4 && (t.scope.Mark == "" || slices.ContainsFunc(t.scope.Dirs, in)) {
			t.add("mount %s", f[4])
		}
	}
	return nil
}

func (t *taking) links() error {
	links, err := os.ReadDir("/sys/class/net")
	for _, l := range links {
		t.add("link %s", l.Name())
	}
	return err
}

func (t *taking) groups() error {
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "tartarus") {
			t.add("cgroup %s", path)
		}
		return nil
	})
}

func (t *taking) files() error {
	for _, dir := range t.scope.Dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				t.add("file %s", path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rules are the firewall's, of this process's network namespace.
func (t *taking) rules() error {
	if t.scope.Mark != "" || os.Geteuid() != 0 {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := c.ListChains()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	for _, tb := range tables {
		t.add("table %s", tb.Name)
		sets, serr := c.GetSets(tb)
		for _, s := range sets {
			t.add("set %s %s", tb.Name, s.Name)
		}
		err = errors.Join(err, serr)
	}
	for _, ch := range chains {
		rules, rerr := c.GetRules(ch.Table, ch)
		t.add("chain %s %s with %d rules", ch.Table.Name, ch.Name, len(rules))
		err = errors.Join(err, rerr)
	}
	return err
}
