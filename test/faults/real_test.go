package faults_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

var reals = 2 // cells on real VMs where not all are tried; each boots twenty

// TestReal is a sample of the cells on real VMs, and what only they have: their
// helpers can be killed.
func TestReal(t *testing.T) {
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
	if *only == "" && *full {
		*full = false // a sample of these, larger
		reals = 12
		defer func() { *full = true }()
	}
	runAll(t, append(choose(t, all, reals), helper))
}

// killHelpers kills processes of VMs, launchers and VMMs alike, one at a time.
func killHelpers(c *cell, s *server) error {
	for range 3 {
		if err := c.untilRunning(s); err != nil {
			return err
		}
		pids, err := helpers(c.state, s.cmd.Process.Pid)
		if err != nil || len(pids) == 0 {
			return fmt.Errorf("no helper is to be found: %w", err)
		}
		_ = syscall.Kill(pids[c.random.IntN(len(pids))], syscall.SIGKILL) // it may have ended just now
		if slices.ContainsFunc(c.jobs, func(j *job) bool { return j.kill && j.rec.ended() }) {
			return nil
		}
	}
	return nil
}

// helpers are the processes that name the state, but for its server.
func helpers(state string, server int) ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	var out []int
	for _, d := range dirs {
		pid, perr := strconv.Atoi(d.Name())
		if perr != nil || pid == server {
			continue
		}
		cmdline, rerr := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if rerr == nil && strings.Contains(string(cmdline), state) {
			out = append(out, pid)
		}
	}
	return out, err
}
