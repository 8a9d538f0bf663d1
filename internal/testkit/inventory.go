package testkit

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Inventory is what a host has of what a run may leave: one line a thing.
type Inventory []string

// TakeInventory lists every other process that mark
// stands in the command line of, mounts below dirs, network links, cgroups
// whose path contains "tartarus", and the files below dirs.
func TakeInventory(mark string, dirs ...string) (Inventory, error) {
	var inv Inventory
	add := func(kind, what string) { inv = append(inv, kind+" "+what) }
	procs, err := processes(mark)
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		add("process", p)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 4 && slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(f[4], d) }) {
			add("mount", f[4])
		}
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		add("link", l.Name())
	}
	for _, dir := range append([]string{"/sys/fs/cgroup"}, dirs...) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil //nolint:nilerr // it went away meanwhile
			case dir != "/sys/fs/cgroup":
				add("file", path)
			case d.IsDir() && strings.Contains(path, "tartarus"):
				add("cgroup", path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(inv)
	return inv, nil
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

func processes(mark string) ([]string, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil || !strings.Contains(string(b), mark) {
			continue
		}
		out = append(out, fmt.Sprintf("%s %q", d.Name(), strings.ReplaceAll(string(b), "\x00", " ")))
	}
	return out, nil
}
