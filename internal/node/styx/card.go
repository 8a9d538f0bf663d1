package styx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Want is what a sandbox's card is made from.
type Want struct {
	Contract sandbox.NetworkContract

	// Inside puts the TAP into a network namespace of its own, for a VMM that
	// opens it by name. Otherwise it comes as a descriptor.
	Inside bool

	// UID and GID may open the TAP in that namespace; 0 is root.
	UID, GID int
}

// Card is a sandbox's network card, on the host's side. Close it after
// Detach.
type Card struct {
	Name    string // of its port: what Detach takes, and what the journal keeps
	MAC     net.HardwareAddr
	Address netip.Prefix // of the guest, with the length of the network
	Gateway netip.Addr

	// TAP is the device without a header of virtio before each frame, so that
	// the kernel takes no offloads from a guest. nil with Namespace.
	TAP *os.File

	// Namespace holds the device named Device. nil with TAP.
	Namespace *os.File
	Device    string
}

// DeviceInside is the TAP's name in a namespace of its own.
const DeviceInside = "tap0"

// Close gives the descriptors back.
func (c *Card) Close() error {
	var errs []error
	for _, f := range []*os.File{c.TAP, c.Namespace} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Attach makes a card and puts its contract into force. When it fails nothing
// is left of it.
func (n *Network) Attach(ctx context.Context, w Want) (card *Card, err error) {
	grants, err := compile(w.Contract)
	if err != nil {
		return nil, err
	}
	err = n.alone(ctx, func() error {
		card, err = n.host.attach(w, grants)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attaching a network card: %w", err)
	}
	n.host.cfg.Logger.Debug("card attached", "port", card.Name, "address", card.Address)
	return card, nil
}

// Detach takes a card away, by the name of its port: its connections, its
// contract, the device. The VM must have ended. What is not there is no error.
func (n *Network) Detach(ctx context.Context, name string) error {
	s, ok := n.host.cfg.slotOfName(name)
	if !ok {
		return fault.Invalid("name", "give what Attach gave", "%q is no port of %s", name, n.host.cfg.Bridge)
	}
	b, err := n.host.bridge()
	if err != nil {
		return err
	}
	if b == nil { // all was taken back, but a device that somebody took off it
		return deleteLink(name)
	}
	return n.alone(ctx, func() error { return n.host.release(s) })
}

// Sweep removes what processes that died left: ports that nobody holds, and
// contracts without a port.
func (n *Network) Sweep(ctx context.Context) error {
	return n.ifUp(ctx, func() error {
		_, err := n.host.sweep()
		return err
	})
}

// ifUp calls f alone if there is a bridge; else nothing is touched.
func (n *Network) ifUp(ctx context.Context, f func() error) error {
	if b, err := n.host.bridge(); err != nil || b == nil {
		return err
	}
	return n.alone(ctx, func() error {
		if b, err := n.host.bridge(); err != nil || b == nil {
			return err
		}
		return f()
	})
}

// Close removes the bridge and the tables, unless a sandbox of this or another
// process is still on them: then the last one does.
func (n *Network) Close(ctx context.Context) error {
	return n.ifUp(ctx, func() error {
		left, err := n.host.sweep()
		if err != nil || len(left) > 0 {
			return err
		}
		return n.host.removeBase()
	})
}

// Traffic is what a sandbox received and sent through its port, in bytes.
func (n *Network) Traffic(name string) (rx, tx uint64, err error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, 0, fmt.Errorf("counting the traffic of %s: %w", name, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return 0, 0, nil
	}
	return s.TxBytes, s.RxBytes, nil // the port sends what the guest receives
}

// attach gives out a slot that nobody has.
func (h host) attach(w Want, grants []allow) (*Card, error) {
	bridge, err := h.ensure()
	if err != nil {
		return nil, err
	}
	taken, err := h.sweep()
	if err != nil {
		return nil, err
	}
	s, ok := h.pick(taken)
	if !ok {
		return nil, fault.New(fault.Unavailable, "all %d addresses for sandboxes are taken", h.cfg.lastSlot()-firstSlot+1).
			WithHint("wait for sandboxes to end, or choose a larger network")
	}
	card := &Card{
		Name: h.cfg.portName(s), Gateway: h.cfg.Gateway.Addr(),
		Address: netip.PrefixFrom(h.cfg.address(s), h.cfg.Gateway.Bits()), MAC: macOf(h.cfg.address(s)),
	}
	if err := h.plug(card, w, s, grants, bridge); err != nil {
		return nil, errors.Join(err, h.release(s), card.Close())
	}
	return card, nil
}

// pick begins anywhere, so that an address that was given back rests.
func (h host) pick(taken map[slot]port) (slot, bool) {
	n := int(h.cfg.lastSlot()-firstSlot) + 1
	from := rand.IntN(n)
	for i := range n {
		s := firstSlot + slot((from+i)%n)
		if _, is := taken[s]; !is {
			return s, true
		}
	}
	return 0, false
}

// plug makes the device, isolated, and only then lets it up: no frame passes
// before the contract is in force.
func (h host) plug(card *Card, w Want, s slot, grants []allow, bridge netlink.Link) (err error) {
	if w.Inside {
		card.Device = DeviceInside
		card.Namespace, err = makeInside(card.Name, w)
	} else {
		card.TAP, err = openTAP(card.Name, unix.IFF_TUN_EXCL)
	}
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(card.Name)
	if err != nil {
		return fmt.Errorf("looking for the device of the card: %w", err)
	}
	if err := noIPv6(card.Name); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("putting the card on the bridge: %w", err)
	}
	if err := netlink.LinkSetIsolated(link, true); err != nil {
		return fmt.Errorf("isolating the card: %w", err)
	}
	r, err := h.cfg.rules()
	if err != nil {
		return err
	}
	if err := r.add(s, grants); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// openTAP makes a TAP of that name and holds it: it ends with the last that
// does.
func openTAP(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	// To the poller it is a file without events until a device is on it.
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("making the TAP %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}
