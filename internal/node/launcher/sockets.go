package launcher

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A VMM that makes its sockets itself needs a little more than the others.

// socketFolders is Sockets as a list of one or none.
func (pl *plan) socketFolders() []string {
	if pl.Sockets == "" {
		return nil
	}
	return []string{pl.Sockets}
}

// enterSockets makes the folder of sockets the working folder: a path relative
// to it is short enough for a socket's name however deep it lies.
func (in *inner) enterSockets() error {
	if in.plan.Sockets == "" {
		return nil
	}
	if err := unix.Chdir(in.plan.Sockets); err != nil {
		return fmt.Errorf("entering the folder of sockets: %w", err)
	}
	return nil
}

// vcpuKick is the signal by which a VMM takes a vCPU out of the guest: the
// first real-time signal of the C library that Firecracker is linked with.
const vcpuKick = 35

// socketRules let a VMM with a folder for sockets make Unix sockets and bind
// them, and interrupt its own threads. Not connect: it serves, it calls nobody.
func (in *inner) socketRules() []rule {
	if in.plan.Sockets == "" {
		return nil
	}
	out := []rule{
		{name: "socket", when: oneOf(0, unix.AF_UNIX), then: allow, otherwise: refuse},
		{name: "bind", then: allow},
		{name: "listen", then: allow},
		{name: "accept4", then: allow},
	}
	if in.plan.OwnNS { // the thread named can only be one of its own
		out = append(out, rule{name: "tkill", when: oneOf(1, vcpuKick, uint64(unix.SIGABRT)), then: allow, otherwise: refuse})
	}
	return out
}
