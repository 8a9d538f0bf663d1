package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Identity names one process for ever; a pid alone may have been reused.
type Identity struct {
	Pid       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // clock ticks after boot: field 22 of /proc/PID/stat
	BootID    string `json:"boot_id"`
}

// ErrGone says that the process named does not exist any more.
var ErrGone = errors.New("the process is gone")

// Identify is the identity of a running process; ErrGone without one.
func Identify(pid int) (Identity, error) {
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	st, err := readStat(pid)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Pid: pid, StartTime: st.start, BootID: boot}, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

type stat struct {
	state byte
	ppid  int
	start uint64
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return stat{}, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	return parseStat(b)
}

// parseStat reads what is needed of /proc/PID/stat. The second field is the
// process's own choice and may hold anything, so the fields count from the
// last parenthesis.
func parseStat(b []byte) (stat, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, fmt.Errorf("no name in a line of %d bytes", len(b))
	}
	f := strings.Fields(string(b[i+1:]))
	const state, ppid, start = 0, 1, 19 // fields 3, 4, 22
	if len(f) <= start || len(f[state]) != 1 {
		return stat{}, fmt.Errorf("%d fields after the name", len(f))
	}
	p, err := strconv.Atoi(f[ppid])
	if err != nil {
		return stat{}, fmt.Errorf("parent: %w", err)
	}
	s, err := strconv.ParseUint(f[start], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("start time: %w", err)
	}
	return stat{state: f[state][0], ppid: p, start: s}, nil
}

// open opens a pidfd of exactly that process; ErrGone if it has ended, zombies
// included.
func (id Identity) open() (int, error) {
	boot, err := bootID()
	if err != nil {
		return -1, err
	}
	if id.Pid <= 0 || id.BootID != boot {
		return -1, fmt.Errorf("process %d of another boot: %w", id.Pid, ErrGone)
	}
	fd, err := unix.PidfdOpen(id.Pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, fmt.Errorf("process %d: %w", id.Pid, ErrGone)
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d: %w", id.Pid, err)
	}
	st, err := readStat(id.Pid) // after the open: this pid cannot be another's while the descriptor is
	if err == nil && (st.start != id.StartTime || st.state == 'Z' || st.state == 'X') {
		err = fmt.Errorf("process %d: %w", id.Pid, ErrGone)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Alive reports whether exactly that process still runs.
func (id Identity) Alive() bool {
	fd, err := id.open()
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// KillLeftover ends a launcher that an earlier agent started, with its VMM,
// and waits until both are gone. It is no error when they are already, or when
// the pid is another's by now.
func KillLeftover(ctx context.Context, id Identity) error {
	vmms, err := children(id)
	if err != nil {
		return err
	}
	for _, v := range vmms {
		if err := killAndWait(ctx, v); err != nil {
			return err
		}
	}
	return endOuter(ctx, id)
}

// endOuter waits until an outer stage whose VMM is gone has written down how,
// and ends one that does not.
func endOuter(ctx context.Context, id Identity) error {
	fd, err := id.open()
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	patience, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	if waitPidfd(patience, fd) == nil {
		return nil
	}
	return killAndWait(ctx, id)
}

// KillLeftoverIn does the same for the launcher whose folder dir is, if there
// was one.
func KillLeftoverIn(ctx context.Context, dir string) error {
	l, err := readLaunch(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := KillLeftover(ctx, l.Outer); err != nil {
		return err
	}
	if l.VMM.Pid == 0 {
		return nil
	}
	return killAndWait(ctx, l.VMM)
}

// children are the identities of a process's children.
func children(parent Identity) ([]Identity, error) {
	if !parent.Alive() {
		return nil, nil
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var out []Identity
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if st, err := readStat(pid); err == nil && st.ppid == parent.Pid {
			out = append(out, Identity{Pid: pid, StartTime: st.start, BootID: parent.BootID})
		}
	}
	if !parent.Alive() {
		return nil, nil // the children listed may be another's
	}
	return out, nil
}

// killAndWait kills one process and waits for its end.
func killAndWait(ctx context.Context, id Identity) error {
	fd, err := id.open()
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := killPidfd(fd); err != nil {
		return fmt.Errorf("killing process %d: %w", id.Pid, err)
	}
	if err := waitPidfd(ctx, fd); err != nil {
		return fmt.Errorf("waiting for process %d to end: %w", id.Pid, err)
	}
	return nil
}

func killPidfd(fd int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// The files of a launcher in its VM's folder.
const (
	launchFile = "launch.json"
	exitFile   = "exit.json"
	stderrFile = "stderr"
)

// launch is launch.json: what a later agent needs to find the two processes.
type launch struct {
	Outer Identity `json:"outer"`
	VMM   Identity `json:"vmm"`
}

func readLaunch(dir string) (launch, error) {
	var l launch
	err := readJSON(filepath.Join(dir, launchFile), &l)
	return l, err
}

// Exit tells how a VMM ended.
type Exit struct {
	At         time.Time `json:"at"`
	Code       int       `json:"code"`                  // exit status; -1 if a signal ended it or it is unknown
	Signal     int       `json:"signal"`                // 0 if none
	ByLifeline bool      `json:"by_lifeline,omitempty"` // its lifeline ended
	Unknown    bool      `json:"unknown,omitempty"`     // the outer stage was killed: nobody saw it end
}

// ReadExit is what the launcher wrote of its VMM's end into dir;
// fs.ErrNotExist if it wrote nothing.
func ReadExit(dir string) (Exit, error) {
	var e Exit
	err := readJSON(filepath.Join(dir, exitFile), &e)
	return e, err
}

// ReadStderr is the last bytes of the VMM's standard error, at most
// StderrBytes, raw: whoever took over the VMM wrote them.
func ReadStderr(dir string) (string, error) {
	var out []byte
	for _, n := range []string{stderrFile + ".old", stderrFile} {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("reading the VMM's last words: %w", err)
		}
		out = append(out, b...)
	}
	return string(out[max(0, len(out)-StderrBytes):]), nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("parsing %s: %w", filepath.Base(path), err)
	}
	return nil
}

// writeJSON writes a file so that a reader sees all of it or nothing.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	return nil
}
