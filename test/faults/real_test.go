package faults_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Cells on real VMs: how many are sampled, where not all are tried and where
// they are.
const reals, manyReals = 1, 12

// TestReal is a sample of the cells on real VMs, and what only they have: their
// helpers can be killed.
func TestReal(t *testing.T) {
	t.Parallel()
	learn(t)
	var all []*cell
	for _, c := range cellsOfSteps() {
		if c.deadly || c.outcome == stillb {
			c.row, c.real = "real VMs: "+c.row+", "+c.column, true
			c.column = once
			all = append(all, c)
		}
	}
	helper := &cell{row: "real VMs: helpers killed", column: once, real: true, during: killHelpers, also: []string{"guest_lost", "start_failed"}}
	n := reals
	if *full {
		n = manyReals // each boots ten VMs or more
	}
	for _, c := range append(sample(t, all, n), helper) {
		runAll(t, []*cell{c})
	}
}

// killHelpers kills processes of VMs, launchers and VMMs alike, one at a time.
func killHelpers(c *cell, s *server) error {
	for n := range 3 {
		if err := c.untilRunning(s); err != nil {
			return err
		}
		pids, err := c.helpers()
		if err == nil && len(pids) == 0 && n > 0 {
			return nil // the ones before were the last
		}
		if err != nil || len(pids) == 0 {
			return fmt.Errorf("no helper is to be found: %w", errors.Join(err, os.ErrNotExist))
		}
		_ = syscall.Kill(pids[c.random.IntN(len(pids))], syscall.SIGKILL) // it may have ended just now
		if slices.ContainsFunc(c.jobs, func(j *job) bool { return j.kill && j.rec.ended() }) {
			return nil
		}
	}
	return nil
}

// helpers are the processes that name a sandbox.
func (c *cell) helpers() ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	var out []int
	for _, d := range dirs {
		pid, perr := strconv.Atoi(d.Name())
		if perr != nil {
			continue
		}
		cmdline, rerr := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		names := func(j *job) bool { return j.id != "" && strings.Contains(string(cmdline), j.id) }
		if rerr == nil && slices.ContainsFunc(c.jobs, names) {
			out = append(out, pid)
		}
	}
	return out, err
}
