package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// watched are folders in which nothing should stay.
var watched = []string{"/tmp", "/var/tmp", "/dev/shm", "/run", "/srv", "/srv/jailer"}

// inventory is what the lab holds that a command could leave behind: each item
// in words, with the process ID of a process, else 0. What vanishes while it
// looks is not there.
func inventory() map[string]int {
	items := map[string]int{}
	addProcesses(items)
	if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 4 {
				items["mount "+f[4]+" (number "+f[0]+")"] = 0
			}
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			items["cgroup "+path] = 0
		}
		return nil
	})
	for kind, dirs := range map[string][]string{"link": {"/sys/class/net"}, "file": watched} {
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			if err != nil {
				continue // it is not there
			}
			for _, e := range entries {
				items[kind+" "+filepath.Join(dir, e.Name())] = 0
			}
		}
	}
	return items
}

// addProcesses adds the processes but for this one, process 1 and the
// kernel's own threads.
func addProcesses(items map[string]int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		if name, ok := userProcess(string(stat)); ok {
			items[fmt.Sprintf("process %s (%d)", name, pid)] = pid
		}
	}
}

// kernelThreads is the parent of the kernel's threads, itself one.
const kernelThreads = 2

// userProcess reads /proc/PID/stat: PID (NAME) STATE PARENT …; the name may
// have anything in it.
func userProcess(stat string) (name string, ok bool) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", false
	}
	rest := strings.Fields(stat[end+1:])
	if len(rest) < 2 {
		return "", false
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(stat[:open]))
	parent, err2 := strconv.Atoi(rest[1])
	if err1 != nil || err2 != nil || pid == kernelThreads || parent == kernelThreads {
		return "", false
	}
	return stat[open+1 : end], true
}
