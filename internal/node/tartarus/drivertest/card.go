package drivertest

import (
	"bytes"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// mac is that of the guest's card in these cases, address the guest's on it,
// and host what the suite plays.
var (
	mac     = net.HardwareAddr{2, 0x74, 172, 16, 7, 2}
	address = [4]byte{172, 16, 7, 2}
	host    = [4]byte{172, 16, 7, 1}
	hostMAC = net.HardwareAddr{2, 0x74, 172, 16, 7, 1}
)

// card: a VM with a network card sends and receives frames through it, and its
// guest has the address it was told.
func card(t *testing.T, k *kit) {
	i := k.driver.Info()
	s := k.spec(t)
	if !i.CanNetwork {
		s.NIC = &tartarus.NIC{MAC: mac, TAP: os.Stdin}
		if vm, err := k.driver.Start(k.ctx(t), s); err == nil {
			k.kill(t, vm)
			t.Error("Info says that it takes no card, and it did")
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Log("an ordinary user makes no network devices")
		return
	}
	if i.CardByName {
		s.UID, s.GID = cardUser, cardUser // who may open the device must be known
	}
	nic, wire := plug(t, i.CardByName, s.UID)
	s.NIC = nic
	k.setup.Network = &guestwire.Network{MAC: [6]byte(mac), Address: address, Bits: 24, Gateway: host}
	defer func() { k.setup.Network = nil }()
	vm, _ := k.open(t, s)
	who := slices.Concat(net.HardwareAddr{255, 255, 255, 255, 255, 255}, hostMAC, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1},
		hostMAC, host[:], make([]byte, 6), address[:], make([]byte, 18))
	me := slices.Concat(hostMAC, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, mac, address[:], hostMAC, host[:])
	frame := make([]byte, 2048)
	for deadline := time.Now().Add(k.h.Timeout); ; {
		if time.Now().After(deadline) {
			t.Fatal("the guest does not say who it is")
		}
		if _, err := wire.Write(who); err != nil {
			t.Fatal(err)
		}
		if n := readSoon(t, wire, frame); bytes.HasPrefix(frame[:n], me) {
			break
		}
	}
	k.kill(t, vm)
	if _, err := wire.Write(who); err != nil {
		t.Errorf("the device is the caller's, and was taken along: %v", err)
	}
}

// readSoon is how much of a frame came within a moment, 0 for none.
func readSoon(t *testing.T, wire *os.File, frame []byte) int {
	t.Helper()
	if err := wire.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := wire.Read(frame)
	if err != nil {
		return 0
	}
	return n
}

// cardUser is nobody's on the host.
const cardUser = 54_320

// device is the name of the card's host side.
const device = "tap0"

// plug makes the host's side of a card in a network namespace of the test's,
// and a socket that sends and hears on it.
func plug(t *testing.T, byName bool, uid int) (nic *tartarus.NIC, wire *os.File) {
	t.Helper()
	done := make(chan error)
	nic = &tartarus.NIC{MAC: mac}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		done <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			tap, err := openTAP(byName, uid)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = tap.Close() })
			if wire, err = listen(); err != nil {
				return err
			}
			t.Cleanup(func() { _ = wire.Close() })
			if !byName {
				nic.TAP = tap
				return nil
			}
			nic.Device = device
			if nic.Namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
				return err
			}
			t.Cleanup(func() { _ = nic.Namespace.Close() })
			return tap.Close()
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return nic, wire
}

func openTAP(stays bool, uid int) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	ifr, err := unix.NewIfreq(device)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil && stays {
		err = errors.Join(unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// listen is a socket on the device, which it lets up.
func listen() (*os.File, error) {
	const all = 0x0300 // ETH_P_ALL, in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(device)
	if err == nil {
		ifr.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(ifr.Uint32())})
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}
