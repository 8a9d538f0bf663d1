// Package faults holds the tests of what must hold whatever dies or fails: a
// server in a process of its own is killed, or has a step fail, at each named
// step, at random moments and in a failing environment. After each, nothing
// that was admitted is lost, nothing ran twice, the record tells a true cause,
// and nothing is left. docs/faults.md says how to run and reproduce it.
package faults_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/node/launcher"
)

var (
	full    = flag.Bool("full", os.Getenv("FAULTS") == "full", "all cells, and not a sample that the seed chooses")
	seed    = flag.Uint64("seed", 0, "what is chosen, and when; 0: another each time")
	only    = flag.String("cell", "", "a regular expression: only cells with such a name, and all of them")
	kills   = flag.Int("kills", 30, "how often a server under load is killed")
	verbose = flag.Bool("servers", false, "show what servers log")
)

// roleVar makes this binary play the server, with the plan that it holds;
// apartVar says that it is in namespaces of its own, as their first process or
// as what that runs.
const (
	roleVar  = "TARTARUS_FAULTS_SERVER"
	apartVar = "TARTARUS_FAULTS_APART"
)

func TestMain(m *testing.M) {
	launcher.Main()
	if plan := os.Getenv(roleVar); plan != "" {
		os.Exit(serve(plan))
	}
	flag.Parse()
	if os.Geteuid() == 0 {
		switch os.Getenv(apartVar) {
		case "":
			os.Exit(goApart())
		case "first":
			os.Exit(first())
		}
	}
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue { // they wait most of the time
		_ = f.Value.Set("4")
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())%1_000_000 + 1
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := errors.Join(noLocks(), tidy()); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL", err)
			code = 1
		}
		table.print(os.Stdout)
		os.Exit(code)
	}))
}

// goApart runs these tests once more, in namespaces of their own: what they
// mount, whatever of links and rules is left, and every process, is theirs and
// ends with them, however that is.
func goApart() int {
	runtime.LockOSThread() // whose death Pdeathsig tells
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), apartVar+"=first")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil && c.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return c.ProcessState.ExitCode()
}

// first is the first process of the place: it runs the tests and reaps whoever
// loses its parent, as a host's does. What is left when it ends, the kernel
// ends.
func first() int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "the place apart has a first process already")
		return 1
	}
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, "making a place apart:", err)
		return 1
	}
	if err := os.Setenv(apartVar, "inside"); err != nil { // of two in an environment the first counts
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	tests, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "waiting for the tests:", err)
			return 1
		case pid == tests.Pid && status.Exited():
			return status.ExitStatus()
		case pid == tests.Pid:
			fmt.Fprintln(os.Stderr, "the tests were ended by", status.Signal())
			return 1
		}
	}
}

// furnish makes the place apart one's own: the links that /sys shows, the locks
// in /run, and memory for all states.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := unix.Mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	for dir, fs := range map[string]string{sysDir: "sysfs", roomDir: "tmpfs"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := unix.Mount(fs, dir, fs, unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return err
		}
	}
	if err := unix.Mount(filepath.Join(sysDir, "class/net"), "/sys/class/net", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

const (
	sysDir  = "/run/sys"
	roomDir = "/run/room"
)
