package guestd

import (
	"errors"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// cardName is what the kernel calls the first card.
const cardName = "eth0"

// virtioNet is the kind of a network card, as the kernel's virtio bus tells
// it.
const virtioNet = "0x0001"

// maxVirtio is more than there are devices of virtio in a guest.
const maxVirtio = 16

// hasCard reports whether the machine has a network card. The bus numbers its
// devices from 0.
func hasCard() bool {
	for i := range maxVirtio {
		kind, err := readFile("/sys/bus/virtio/devices/virtio"+strconv.Itoa(i)+"/device", 64)
		if err != nil {
			return false
		}
		if len(kind) >= len(virtioNet) && kind[:len(virtioNet)] == virtioNet {
			return true
		}
	}
	return false
}

// route is the kernel's struct rtentry on machines of 64 bits.
type route struct {
	_       uint64
	dst     sockaddr
	gateway sockaddr
	mask    sockaddr
	flags   uint16
	_       [3]uint16
	_       [7]uint64
}

// sockaddr is an IPv4 address as struct sockaddr.
type sockaddr struct {
	family uint16
	_      uint16
	addr   [4]byte
	_      [8]byte
}

func sockaddrOf(a [4]byte) sockaddr { return sockaddr{family: unix.AF_INET, addr: a} }

// setCard gives the card its address, its network and the way out. IPv6 is
// off: the host would drop it.
func setCard(n *guestwire.Network) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return wrap("setting the network card up", err)
	}
	defer unix.Close(fd)
	if err := checkMAC(fd, n.MAC); err != nil {
		return err
	}
	if f, err := unix.Open("/proc/sys/net/ipv6/conf/"+cardName+"/disable_ipv6", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		_, _ = unix.Write(f, []byte("1"))
		unix.Close(f)
	}
	var mask [4]byte
	for i := range int(n.Bits) {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	for _, set := range [...]struct {
		request uint
		fill    func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(n.Address[:]) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask[:]) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	} {
		r, err := unix.NewIfreq(cardName)
		if err == nil {
			err = set.fill(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, set.request, r)
		}
		if err != nil {
			return wrap("setting the network card up", err)
		}
	}
	out := route{dst: sockaddrOf([4]byte{}), mask: sockaddrOf([4]byte{}), gateway: sockaddrOf(n.Gateway), flags: unix.RTF_UP | unix.RTF_GATEWAY}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&out))); e != 0 {
		return wrap("adding the route out", e)
	}
	return nil
}

// checkMAC makes sure that the card is the one that the host means.
func checkMAC(fd int, want [6]byte) error {
	var r struct {
		name   [unix.IFNAMSIZ]byte
		family uint16
		mac    [6]byte
		_      [16]byte
	}
	copy(r.name[:], cardName)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&r))); e != 0 {
		return wrap("looking for the network card", e)
	}
	if r.mac != want {
		return errors.New("the network card is another one than the host means")
	}
	return nil
}
