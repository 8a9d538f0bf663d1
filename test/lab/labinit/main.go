// Command labinit is the first process of the lab: it makes a small Linux host
// out of the disk that it finds, runs what it is ordered to over a virtio
// port, and reports.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// workerArg makes this program the process that runs the commands. Process 1
// only reaps: waiting for every child and for one of them do not go together.
const workerArg = "worker"

func main() {
	if len(os.Args) == 2 && os.Args[1] == workerArg {
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, "labinit:", err)
			os.Exit(1)
		}
		return
	}
	err := live()
	fmt.Fprintln(os.Stderr, "labinit:", err)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	time.Sleep(time.Hour) // process 1 must not end: the kernel would panic
}

// live makes the host and runs the worker; it returns when the lab is over.
func live() error {
	if err := firstStage(); err != nil {
		return err
	}
	vm, err := keepQuiet()
	if err != nil {
		return err
	}
	defer vm.Close()
	return reap()
}

// reap starts the worker and buries every process until the worker is dead.
func reap() error {
	worker, err := os.StartProcess("/proc/self/exe", []string{"labinit", workerArg}, &os.ProcAttr{
		Dir: "/root", Env: environment(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case pid == worker.Pid:
			return fmt.Errorf("the worker ended: status %d, signal %d", status.ExitStatus(), status.Signal())
		}
	}
}

// environment is what commands start with.
func environment() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "SHELL=/bin/sh",
		"LANG=C.UTF-8", "TERM=dumb", "TARTARUS_LAB=1",
	}
}
