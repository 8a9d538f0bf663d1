package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kill ends all processes of the group and waits for them, or until ctx ends.
// Where processes are counted, none can be born any more.
func (g *Group) Kill(ctx context.Context) error {
	for {
		pids, err := g.pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if slices.Contains(pids, os.Getpid()) {
			return fmt.Errorf("the cgroup %s holds the agent itself", g.name)
		}
		if p, ok := g.tree.parents["pids"]; ok {
			_ = put(filepath.Join(p, g.name), "pids.max", "0") // so that a fork bomb cannot outrun what follows
		}
		if g.tree.version == 2 {
			for _, d := range g.tree.dirs(g.name) {
				_ = put(d, "cgroup.kill", "1") // since Linux 5.14, and all at once
			}
		}
		if err := g.killAll(ctx, pids); err != nil {
			return fmt.Errorf("ending the processes of the cgroup %s: %w", g.name, err)
		}
	}
}

// killAll kills the processes and waits for each.
func (g *Group) killAll(ctx context.Context, pids []int) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	// Descriptors first, then the list again: who is in both is in the group,
	// and cannot have become another.
	still, err := g.pids()
	if err != nil {
		return err
	}
	for _, fd := range fds {
		if pid := pidOf(fd); !slices.Contains(still, pid) {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if err := waitEnd(ctx, fd); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// pidOf is the process of a pidfd, -1 when it has ended.
func pidOf(fd int) int {
	n, err := field("/proc/self/fdinfo", strconv.Itoa(fd), "Pid:")
	if err != nil {
		return -1
	}
	return int(n)
}

// waitEnd waits for the end of a process, or of ctx.
func waitEnd(ctx context.Context, fd int) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		// A killed process ends within a moment; the bound is for ctx's sake.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

// pids are the group's processes.
func (g *Group) pids() ([]int, error) {
	var out []int
	for _, d := range g.tree.dirs(g.name) {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing the cgroup %s: %w", g.name, err)
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil || pid == 0 { // 0: of a pid namespace that we cannot see
				return nil, fmt.Errorf("the cgroup %s holds the process %q", g.name, f)
			}
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// removeDir removes one folder. A group stays busy for a moment after its last
// process has ended, and nothing tells when that is over.
func (t *Tree) removeDir(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := t.rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(wait):
		}
	}
}
