package guestd

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	portName   = "tartarus.guest"
	portsClass = "/sys/class/virtio-ports"
)

// channelOption on the kernel's command line says over what the host speaks.
const channelOption = "tartarus.channel="

// The channels.
const (
	channelSerial = "virtio-serial" // without the option
	channelVsock  = "vsock"
)

// channel is the one that the kernel's command line names.
func channel() (string, error) {
	line, err := readFile("/proc/cmdline", 1<<16)
	if err != nil {
		return "", err
	}
	kind := channelSerial
	for word := range strings.FieldsSeq(line) {
		if v, ok := strings.CutPrefix(word, channelOption); ok {
			kind = v
		}
	}
	return kind, nil
}

func openPort() (Port, error) {
	kind, err := channel()
	if err != nil {
		return nil, err
	}
	switch kind {
	case channelSerial:
		return openSerial()
	case channelVsock:
		return openVsock()
	}
	return nil, errors.New("unknown channel " + kind)
}

// serial is a named port of virtio-serial. The device is opened once; hosts
// come and go behind it, and the driver tells of that by waking whoever waits
// for it, which is why it is watched edge triggered.
type serial struct{ fd int }

// openSerial waits until the port is there: the driver hears of its ports in
// messages after its start, and nothing but the file system tells.
func openSerial() (*serial, error) {
	const pause, patience = 500e3, 10e9 // nanoseconds
	for waited := 0.0; waited < patience; waited += pause {
		if dev := findSerial(); dev != "" {
			fd, err := unix.Open("/dev/"+dev, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err == nil {
				return &serial{fd}, nil
			}
			if err != unix.ENOENT {
				return nil, wrap("opening /dev/"+dev, err)
			}
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: pause}, nil)
	}
	return nil, errors.New("there is no virtio-serial port " + portName)
}

// findSerial is the device of our port, or "".
func findSerial() string {
	fd, err := unix.Open(portsClass, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(fd, buf)
	if err != nil {
		return ""
	}
	_, _, names := unix.ParseDirent(buf[:n], -1, nil)
	for _, dev := range names {
		if name, err := readAt(fd, dev+"/name", 4096); err == nil && strings.TrimSpace(name) == portName {
			return dev
		}
	}
	return ""
}

func (p *serial) Register(epfd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET&0xffffffff, Fd: int32(p.fd)}
	return unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, p.fd, &ev)
}

func (p *serial) Ready(fd int) bool { return fd == p.fd }

// Read: 0 bytes mean that no host is there.
func (p *serial) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil || n <= 0:
			return 0, errAgain
		default:
			return n, nil
		}
	}
}

func (p *serial) Write(b []byte) (int, error) {
	for {
		n, err := unix.Write(p.fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil || n <= 0:
			return 0, errAgain
		default:
			return n, nil
		}
	}
}
