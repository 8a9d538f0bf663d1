package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Layers are the layers of confinement of a process as the kernel tells of
// them, by the names that records have: true for those that are on. agent is
// the process that it was started by. What the kernel does not tell (Landlock)
// is not there.
func Layers(pid, agent int) (map[string]bool, error) {
	st, err := procStatus(pid)
	if err != nil {
		return nil, err
	}
	of, err := procStatus(agent)
	if err != nil {
		return nil, err
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	sid, err := unix.Getsid(pid)
	if err != nil {
		return nil, err
	}
	agents, err := unix.Getsid(agent)
	if err != nil {
		return nil, err
	}
	const none = "0000000000000000"
	out := map[string]bool{
		"session":         sid != agents,
		"rlimits":         strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0 bytes"),
		"no_new_privs":    st["NoNewPrivs"] == "1",
		"no_capabilities": st["CapInh"] == none && st["CapPrm"] == none && st["CapEff"] == none && st["CapAmb"] == none,
		"empty_bounding":  st["CapBnd"] == none,
		"own_uid":         firstWord(st["Uid"]) != firstWord(of["Uid"]),
		"seccomp":         st["Seccomp"] == "2" && st["Seccomp_filters"] != of["Seccomp_filters"],
		"private_root":    false,
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == "/" {
			out["private_root"] = strings.HasPrefix(f[5], "ro")
		}
	}
	for kind, layer := range map[string]string{
		"user": "user_namespace", "pid": "pid_namespace", "net": "network_namespace", "ipc": "ipc_namespace", "uts": "uts_namespace", "mnt": "mount_namespace",
	} {
		have, err := os.Readlink(filepath.Join("/proc", fmt.Sprint(pid), "ns", kind))
		if err != nil {
			return nil, err
		}
		agents, err := os.Readlink(filepath.Join("/proc", fmt.Sprint(agent), "ns", kind))
		if err != nil {
			return nil, err
		}
		out[layer] = have != agents
	}
	return out, nil
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, "\t")
	return word
}

func procStatus(pid int) (map[string]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.TrimSpace(v)
	}
	return out, nil
}
