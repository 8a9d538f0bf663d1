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
// apartVar says that it is in namespaces of its own.
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
	if os.Geteuid() == 0 && os.Getenv(apartVar) == "" {
		os.Exit(goApart())
	}
	if os.Geteuid() == 0 {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "making a place apart:", err)
			os.Exit(1)
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

// goApart runs these tests once more, in a mount and a network namespace of
// their own: what they mount, and whatever of links and rules is left, is
// theirs and ends with them.
func goApart() int {
	runtime.LockOSThread() // whose death Pdeathsig tells
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), apartVar+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil && c.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return c.ProcessState.ExitCode()
}

// furnish makes the place apart one's own: the links that /sys shows, the locks
// in /run, and memory for all states.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
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
