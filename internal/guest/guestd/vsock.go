package guestd

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// accepting is a port behind a listening socket: a new connection takes the
// place of the one before, as a returning host does on virtio-serial.
type accepting struct {
	listener int
	conn     int // -1 without a host
	epfd     int
	trusted  func(unix.Sockaddr) bool // whom to serve; nil: everybody
}

// openVsock listens for the host. Commands may use vsock too, but nobody of
// them comes from the host's address.
func openVsock() (*accepting, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, wrap("making a vsock socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: guestwire.VsockPort}); err != nil {
		unix.Close(fd)
		return nil, wrap("binding the vsock socket", err)
	}
	p, err := listenOn(fd)
	if err == nil {
		p.trusted = isHost
	}
	return p, err
}

func isHost(a unix.Sockaddr) bool {
	vm, ok := a.(*unix.SockaddrVM)
	return ok && vm.CID == unix.VMADDR_CID_HOST
}

// listenOn makes a port of a bound socket, which it closes when it fails.
func listenOn(fd int) (*accepting, error) {
	const backlog = 8
	if err := unix.Listen(fd, backlog); err != nil {
		unix.Close(fd)
		return nil, wrap("listening for the host", err)
	}
	return &accepting{listener: fd, conn: -1}, nil
}

func (p *accepting) Register(epfd int) error {
	p.epfd = epfd
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.listener)}
	return unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, p.listener, &ev)
}

func (p *accepting) Ready(fd int) bool {
	if fd == p.listener {
		p.accept()
		return true
	}
	return fd == p.conn
}

// accept takes one connection; the listener is watched level triggered, so
// that the loop comes back for the next.
func (p *accepting) accept() {
	conn, from, err := unix.Accept4(p.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	if p.trusted != nil && !p.trusted(from) {
		unix.Close(conn)
		return
	}
	p.hangUp()
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(conn)}
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, conn, &ev); err != nil {
		unix.Close(conn)
		return
	}
	p.conn = conn
}

func (p *accepting) hangUp() {
	if p.conn >= 0 {
		unix.Close(p.conn)
	}
	p.conn = -1
}

func (p *accepting) Read(b []byte) (int, error) {
	if p.conn < 0 {
		return 0, errAgain
	}
	for {
		n, err := unix.Read(p.conn, b)
		if err != unix.EINTR {
			return p.moved(n, err)
		}
	}
}

func (p *accepting) Write(b []byte) (int, error) {
	if p.conn < 0 {
		return 0, errAgain
	}
	for {
		n, err := unix.SendmsgN(p.conn, b, nil, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return p.moved(n, err)
		}
	}
}

// moved judges a read or write. A connection that has ended is let go of.
func (p *accepting) moved(n int, err error) (int, error) {
	if err == nil && n > 0 {
		return n, nil
	}
	if !errors.Is(err, unix.EAGAIN) {
		p.hangUp()
	}
	return 0, errAgain
}
