// Package guestd is the guest's init: it boots a VM's user space, then obeys
// the host over guestwire.
//
// One thread does everything in a loop of epoll, for under emulation every
// hand-over between threads costs more than the work: a command's output is
// read and passed on by the same turn of the loop. Only waiting for children
// has a thread of its own. The loop never blocks on a command or on the host.
//
// The loop is apart from the machine that it runs on (Machine), so that it can
// be tested without a VM. Everything a command does is expected to be hostile,
// up to root in the guest; what init says is only a claim to the host.
package guestd

import (
	"errors"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Machine is what the commands run on. The loop calls it from one goroutine.
type Machine interface {
	// Setup does what the host's first request asks for. It is called until it
	// succeeds, and never again.
	Setup(s *guestwire.Setup) error

	// Account finds a user: a name or number, with :group if wanted.
	Account(user string) (Account, error)

	// Cage makes the cage for one process and all it starts.
	Cage(proc uint32) (Cage, error)

	// Usage is what all commands used so far.
	Usage() guestwire.Usage

	// PowerOff ends the machine. It returns only where there is none to end.
	PowerOff()
}

// Cage holds one process and its descendants.
type Cage interface {
	// CgroupFD is the cgroup to start the process in, or -1.
	CgroupFD() int

	// Kill kills all that live in the cage. It does not wait.
	Kill(pid int)

	// Empty reports whether nothing lives in it any more. Events is a
	// descriptor with an exceptional condition when that changes, or -1.
	Empty() bool
	Events() int

	// Close removes the cage.
	Close()
}

// Account is a user of the template.
type Account struct {
	Name   string
	Home   string
	UID    uint32
	GID    uint32
	Groups []uint32
	Switch bool // become this user; false keeps init's own identity
}

// Port is the byte stream to the host. It never ends: when the host goes away
// it waits for the next. Nothing blocks.
type Port interface {
	// Register adds what has to be watched to the epoll instance, edge
	// triggered, with the port's own descriptors as data.
	Register(epfd int) error

	// Ready takes note of an event on one of its descriptors; false if fd is
	// none of them.
	Ready(fd int) bool

	// Read and Write move what can be moved. errAgain: nothing now, an event
	// will come. Bytes written may be lost when the host goes away.
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
}

// errAgain says that nothing can be moved until the next event.
var errAgain = errors.New("try again")
