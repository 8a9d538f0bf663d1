package styx

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makeInside makes a network namespace with a TAP in it, joined to a port of
// that name out here. Nothing keeps the namespace but the file that is
// returned and whoever enters it: TAP and port end with them.
func makeInside(port string, w Want) (*os.File, error) {
	outside, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer outside.Close()
	var inside *os.File
	err = inNewNamespace(func() error {
		if inside, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return fillInside(port, outside, w)
	})
	if err != nil && inside != nil {
		err = errors.Join(err, inside.Close())
		inside = nil
	}
	if err != nil {
		return nil, fmt.Errorf("making a network namespace for the VMM: %w", err)
	}
	return inside, nil
}

// fillInside runs in the new namespace: a bridge without an address joins the
// TAP and the way out.
func fillInside(port string, outside *os.File, w Want) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "join0"
	no := false
	join := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &no}
	attrs = netlink.NewLinkAttrs()
	attrs.Name = "out0"
	out := netlink.NewVeth(attrs)
	out.PeerName, out.PeerNamespace = port, netlink.NsFd(int(outside.Fd()))
	attrs = netlink.NewLinkAttrs()
	attrs.Name = DeviceInside
	tap := &netlink.Tuntap{
		LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
		Owner: uint32(w.UID), Group: uint32(w.GID),
	}
	for _, l := range []netlink.Link{join, out, tap} {
		if err := netlink.LinkAdd(l); err != nil {
			return fmt.Errorf("making %s: %w", l.Attrs().Name, err)
		}
		if err := noIPv6(l.Attrs().Name); err != nil {
			return err
		}
	}
	return errors.Join(netlink.LinkSetMaster(out, join), netlink.LinkSetMaster(tap, join),
		netlink.LinkSetUp(join), netlink.LinkSetUp(out), netlink.LinkSetUp(tap))
}

// inNewNamespace calls f on a thread that is in a network namespace of its
// own, and ends with f. It is never the process's first thread, which the
// process would be judged by, and which never ends.
func inNewNamespace(f func() error) error {
	result := make(chan error)
	go func() { result <- onFreshThread(f) }()
	return <-result
}

func onFreshThread(f func() error) error {
	runtime.LockOSThread() // and never unlock: the thread ends with its goroutine
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return inNewNamespace(f) // on another one, for this one is held
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("leaving the host's network: %w", err)
	}
	return f()
}
