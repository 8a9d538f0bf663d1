package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

const (
	period  = 100_000 // µs; of the CPU limit
	mebi    = 1 << 20
	noLimit = "no limit was asked for"
)

// limit writes the limits and reads them back. What the tree cannot limit is
// missing; what it should be able to and does not is an error.
func (g *Group) limit(l Limits) error {
	steps := []struct {
		controller, layer string
		asked             bool
		apply             func(dir string) error
	}{
		{"memory", LayerMemory, l.MemoryMiB > 0, func(dir string) error { return g.limitMemory(dir, l.MemoryMiB*mebi) }},
		{"cpu", LayerCPU, l.CPUs > 0, func(dir string) error { return g.limitCPU(dir, l.CPUs) }},
		{"pids", LayerPids, l.Pids > 0, func(dir string) error { return set(dir, "pids.max", int64(l.Pids)) }},
	}
	for _, s := range steps {
		parent, usable := g.tree.parents[s.controller]
		switch {
		case !usable:
			g.missing = append(g.missing, [2]string{s.layer, g.tree.why[s.controller]})
		case !s.asked:
			g.missing = append(g.missing, [2]string{s.layer, noLimit})
		default:
			if err := s.apply(parent + "/" + g.name); err != nil {
				return fmt.Errorf("limiting %s of the cgroup %s: %w", s.controller, g.name, err)
			}
			g.on = append(g.on, s.layer)
		}
	}
	return nil
}

func (g *Group) limitMemory(dir string, bytes int64) error {
	limit, swap, swapValue := "memory.max", "memory.swap.max", int64(0)
	if g.tree.version == 1 {
		// Here the second counts memory and swap together.
		limit, swap, swapValue = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes
	}
	if err := set(dir, limit, bytes); err != nil {
		return err
	}
	err := set(dir, swap, swapValue)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		g.missing = append(g.missing, [2]string{LayerSwapOff, "the kernel does not account swap (" + swap + ")"})
	case err != nil:
		return err
	default:
		g.on = append(g.on, LayerSwapOff)
	}
	return nil
}

func (g *Group) limitCPU(dir string, cpus float64) error {
	quota := int64(cpus * period)
	if g.tree.version == 1 {
		return errors.Join(set(dir, "cpu.cfs_period_us", period), set(dir, "cpu.cfs_quota_us", quota))
	}
	want := fmt.Sprintf("%d %d", quota, period)
	if err := put(dir, "cpu.max", want); err != nil {
		return err
	}
	if have, err := get(dir, "cpu.max"); err != nil || have != want {
		return errors.Join(err, fmt.Errorf("cpu.max is %q after %q was written", have, want))
	}
	return nil
}

// set writes a number and checks that it holds.
func set(dir, file string, value int64) error {
	if err := put(dir, file, strconv.FormatInt(value, 10)); err != nil {
		return err
	}
	have, err := getInt(dir, file)
	if err != nil {
		return err
	}
	if have != value {
		return fmt.Errorf("%s is %d after %d was written", file, have, value)
	}
	return nil
}

// Stat is what a group used so far. A field that this host does not count is 0.
type Stat struct {
	CPUSeconds      float64
	MemoryBytes     int64 // now, page cache included
	MemoryPeakBytes int64
	OOMKills        int64
}

// Stat reads the group's counters; fs.ErrNotExist when it is gone.
func (g *Group) Stat() (Stat, error) {
	var s Stat
	var cpu int64
	read := func(dst *int64, controller, file, key string) error {
		parent, ok := g.tree.parents[controller]
		if !ok {
			return nil
		}
		dir := parent + "/" + g.name
		var err error
		if key == "" {
			*dst, err = getInt(dir, file)
		} else {
			*dst, err = field(dir, file, key)
		}
		if err != nil {
			return fmt.Errorf("reading the cgroup %s: %w", g.name, err)
		}
		return nil
	}
	if g.tree.version == 1 {
		err := errors.Join(
			read(&cpu, "cpuacct", "cpuacct.usage", ""),
			read(&s.MemoryBytes, "memory", "memory.usage_in_bytes", ""),
			read(&s.MemoryPeakBytes, "memory", "memory.max_usage_in_bytes", ""),
			read(&s.OOMKills, "memory", "memory.oom_control", "oom_kill"))
		s.CPUSeconds = float64(cpu) / 1e9
		return s, err
	}
	err := errors.Join(
		read(&cpu, "cpu", "cpu.stat", "usage_usec"),
		read(&s.MemoryBytes, "memory", "memory.current", ""),
		read(&s.OOMKills, "memory", "memory.events", "oom_kill"))
	s.CPUSeconds = float64(cpu) / 1e6
	if perr := read(&s.MemoryPeakBytes, "memory", "memory.peak", ""); perr != nil && !strings.Contains(perr.Error(), "memory.peak") {
		err = errors.Join(err, perr) // memory.peak came with Linux 5.19
	}
	return s, err
}
