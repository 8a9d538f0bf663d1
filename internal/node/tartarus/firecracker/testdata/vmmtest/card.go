package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

const tun = "/dev/net/tun"

// makeTUN makes the device in a jail, as the jailer does.
func makeTUN(path string, uid, gid int) error {
	net := filepath.Dir(path)
	if err := os.MkdirAll(net, 0o700); err != nil {
		return err
	}
	if err := errorsOf(os.Chown(filepath.Dir(net), uid, gid), os.Chown(net, uid, gid)); err != nil {
		return err
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

// card is the guest's network card: it answers who asks for its address.
type card struct {
	tap  *os.File
	mac  net.HardwareAddr
	addr atomic.Pointer[[4]byte] // nil until the guest was told
}

// plug opens the TAP by its name, as the user that the VMM is.
func (m *vmm) plug(device, mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	fd, err := unix.Open(tun, unix.O_RDWR|unix.O_CLOEXEC, 0) // blocking: a poller would find no device on it yet
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("opening the TAP %s: %w", device, err)
	}
	c := &card{tap: os.NewFile(uintptr(fd), tun), mac: hw}
	m.card = c
	go c.answer()
	return nil
}

// setup is what the host tells the guest.
func (m *vmm) setup(s *guestwire.Setup) error {
	if m.card != nil && s.Network != nil {
		m.card.addr.Store(&s.Network.Address)
	}
	return nil
}

func (c *card) answer() {
	frame := make([]byte, 2048)
	for {
		n, err := c.tap.Read(frame)
		if err != nil {
			return
		}
		addr := c.addr.Load()
		const arpRequest = "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"
		if addr == nil || n < 42 || string(frame[12:22]) != arpRequest || !bytes.Equal(frame[38:42], addr[:]) {
			continue
		}
		asker, from := bytes.Clone(frame[22:28]), bytes.Clone(frame[28:32])
		reply := bytes.Join([][]byte{asker, c.mac, {8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, c.mac, addr[:], asker, from}, nil)
		if _, err := c.tap.Write(reply); err != nil {
			return
		}
	}
}
