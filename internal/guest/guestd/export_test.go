package guestd

import "golang.org/x/sys/unix"

// ErrAgain lets the tests' ports say that nothing can be moved.
var ErrAgain = errAgain

// Accepting is the port of vsock, on any socket.
type Accepting = accepting

// ListenOn makes one of a bound socket, as openVsock does.
func ListenOn(fd int) (*Accepting, error) { return listenOn(fd) }

// Distrust has it refuse everybody whom trusted does not name.
func (p *Accepting) Distrust(trusted func(unix.Sockaddr) bool) { p.trusted = trusted }

// Close lets go of both sockets.
func (p *Accepting) Close() {
	p.hangUp()
	unix.Close(p.listener)
}
