package styx

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// host is the network of the calling thread's namespace. Its methods are
// called by one goroutine of one process at a time.
type host struct {
	cfg Config
}

// The bridge tells by its alias which form of us made it, and what
// net.ipv4.ip_forward was before: for whoever comes after a crash.
const (
	aliasForm = "tartarus 1, ip_forward was "
	sysctlFwd = "net/ipv4/ip_forward"
)

// port is a port of the bridge.
type port struct {
	slot  slot
	index int
	alive bool // somebody holds its other end
}

// bridge is the bridge, nil if there is none.
func (h host) bridge() (netlink.Link, error) {
	l, err := netlink.LinkByName(h.cfg.Bridge)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the bridge: %w", err)
	}
	if l.Type() != "bridge" || !strings.HasPrefix(l.Attrs().Alias, aliasForm) {
		return nil, fault.New(fault.Conflict, "the network device %s is there, and is not of this version of Tartarus", h.cfg.Bridge).
			WithHint("end the sandboxes of the other version and remove it by `ip link del %s`, or name another bridge", h.cfg.Bridge)
	}
	return l, nil
}

// ports are what is on the bridge, by slot.
func (h host) ports() (map[slot]port, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the network's devices: %w", err)
	}
	out := map[slot]port{}
	for _, l := range links {
		if s, ok := h.cfg.slotOfName(l.Attrs().Name); ok {
			// A device has a carrier for as long as its other end is held.
			out[s] = port{slot: s, index: l.Attrs().Index, alive: l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0}
		}
	}
	return out, nil
}

// ensure makes what all sandboxes share, where it is not there.
func (h host) ensure() (netlink.Link, error) {
	b, err := h.bridge()
	if err != nil {
		return nil, err
	}
	if b == nil {
		if b, err = h.makeBridge(); err != nil {
			return nil, err
		}
	}
	r, err := h.cfg.rules()
	if err != nil {
		return nil, err
	}
	ready, err := r.ready()
	if err != nil {
		return nil, err
	}
	if !ready { // somebody emptied the ruleset, or a process died here
		if err := r.make(); err != nil {
			return nil, err
		}
	}
	// Only with the rules in place are packets forwarded.
	if err := writeSysctl(sysctlFwd, "1"); err != nil {
		return nil, err
	}
	return b, netlink.LinkSetUp(b)
}

func (h host) makeBridge() (_ netlink.Link, err error) {
	if err := h.free(); err != nil {
		return nil, err
	}
	before, err := readSysctl(sysctlFwd)
	if err != nil {
		return nil, err
	}
	no := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = h.cfg.Bridge, macOf(h.cfg.Gateway.Addr())
	b := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &no}
	if err := netlink.LinkAdd(b); err != nil {
		return nil, fmt.Errorf("making the bridge: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, netlink.LinkDel(b))
		}
	}()
	err = errors.Join(
		netlink.LinkSetAlias(b, aliasForm+before),
		noIPv6(h.cfg.Bridge),
		netlink.AddrAdd(b, &netlink.Addr{IPNet: ipNet(h.cfg.Gateway)}))
	if err != nil {
		return nil, fmt.Errorf("setting the bridge up: %w", err)
	}
	return b, nil
}

// free refuses a network that the host has a use for already: its route would
// be taken over.
func (h host) free() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing the routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if ok && bits > 0 && netip.PrefixFrom(a, bits).Overlaps(h.cfg.Gateway) {
			return fault.New(fault.Conflict, "the sandboxes' network %s overlaps the host's route to %s", h.cfg.Gateway.Masked(), r.Dst).
				WithHint("choose another private network for sandboxes")
		}
	}
	return nil
}

// removeBase undoes ensure.
func (h host) removeBase() error {
	b, err := h.bridge()
	if err != nil {
		return err
	}
	var errs []error
	if b != nil && strings.TrimPrefix(b.Attrs().Alias, aliasForm) == "0" {
		errs = append(errs, writeSysctl(sysctlFwd, "0"))
	}
	r, err := h.cfg.rules()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, r.remove())
	if b != nil && errors.Join(errs...) == nil { // the last: it is the record
		errs = append(errs, netlink.LinkDel(b))
	}
	return errors.Join(errs...)
}

// sweep removes what nobody holds any more, and returns the ports that stay.
func (h host) sweep() (map[slot]port, error) {
	ports, err := h.ports()
	if err != nil {
		return nil, err
	}
	r, err := h.cfg.rules()
	if err != nil {
		return nil, err
	}
	held := map[slot]bool{}
	if ready, err := r.ready(); err != nil {
		return nil, err
	} else if ready {
		if held, err = r.held(); err != nil {
			return nil, err
		}
	}
	for s, p := range ports {
		if !p.alive {
			held[s] = true
		} else {
			delete(held, s)
		}
	}
	for s := range held {
		if err := h.release(s); err != nil {
			return nil, err
		}
		delete(ports, s)
	}
	return ports, nil
}

// release takes a slot back, whatever there is of it. Connections go before
// the rules and the rules before the port, so that whoever finds a port's name
// free finds nothing else of it.
func (h host) release(s slot) error {
	if err := h.forget(s); err != nil {
		return err
	}
	r, err := h.cfg.rules()
	if err != nil {
		return err
	}
	if ready, err := r.ready(); err != nil {
		return err
	} else if ready {
		held, err := r.held()
		if err != nil {
			return err
		}
		if held[s] {
			if err := r.drop(s); err != nil {
				return err
			}
		}
	}
	return deleteLink(h.cfg.portName(s))
}

// forget removes the connections of a slot's address from the kernel.
func (h host) forget(s slot) error {
	var mine netlink.ConntrackFilter
	if err := mine.AddIP(netlink.ConntrackOrigSrcIP, net.IP(bytes4(h.cfg.address(s)))); err != nil {
		return err
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, &mine); err != nil {
		return fmt.Errorf("forgetting a sandbox's connections: %w", err)
	}
	return nil
}

func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing the network device %s: %w", name, err)
	}
	return nil
}

func noIPv6(link string) error {
	err := writeSysctl("net/ipv6/conf/"+link+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil // the kernel has none
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(bytes4(p.Addr())), Mask: net.CIDRMask(p.Bits(), 32)}
}

// sysctls are of the network namespace of the thread that opens them.
func readSysctl(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + name)
	return strings.TrimSpace(string(b)), err
}

// writeSysctl leaves alone what is as it should be: writing some of them has
// effects of its own.
func writeSysctl(name, value string) error {
	now, err := readSysctl(name)
	if err != nil || now == value {
		return err
	}
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}
