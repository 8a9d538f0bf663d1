package styx

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// datagram is "hello" by UDP in IPv4, from port 9 to port 80.
func datagram(from, to netip.Addr) []byte {
	b := []byte{0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0}
	b = append(append(b, bytes4(from)...), bytes4(to)...)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return append(b, 0, 9, 0, 80, 0, 13, 0, 0, 'h', 'e', 'l', 'l', 'o')
}

func frame(from, to net.HardwareAddr, kind []byte, content []byte) []byte {
	return slices.Concat(to, from, kind, content)
}

// arp is an answer that says that an address is at a MAC.
func arp(mac net.HardwareAddr, a, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac, bytes4(a), make([]byte, 6), bytes4(target))
}

// TestSpoofedFramesAreDropped: root in the guest writes any frame, and what
// carries another's MAC or address goes nowhere.
func TestSpoofedFramesAreDropped(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	victim := w.guest(everything()...)
	card := w.attach(Want{Contract: contractOf(everything()...)})
	me, him, gateway := card.Address.Addr(), victim.card.Address.Addr(), card.Gateway
	to, host := netip.MustParseAddr("198.51.100.10"), macOf(gateway)
	ip, arpKind, ip6 := []byte{8, 0}, []byte{8, 6}, []byte{0x86, 0xdd}
	good := frame(card.MAC, host, ip, datagram(me, to))

	send := func(f []byte) {
		t.Helper()
		if _, err := card.TAP.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	// arrived sends the good frame until the server has it.
	arrived := func() int64 {
		t.Helper()
		before := w.servers.came.Load()
		for deadline := time.Now().Add(trust); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			send(good)
			if n := w.servers.came.Load(); n != before {
				time.Sleep(10 * time.Millisecond) // for those behind it
				return w.servers.came.Load()
			}
		}
		t.Fatal("not even a good frame arrives")
		return 0
	}
	arrived()
	for name, bad := range map[string][]byte{
		"another's address":         frame(card.MAC, host, ip, datagram(him, to)),
		"an address of nobody":      frame(card.MAC, host, ip, datagram(netip.MustParseAddr("172.16.255.9"), to)),
		"a public address":          frame(card.MAC, host, ip, datagram(netip.MustParseAddr("198.51.100.99"), to)),
		"the host's address":        frame(card.MAC, host, ip, datagram(gateway, to)),
		"another's MAC":             frame(victim.card.MAC, host, ip, datagram(me, to)),
		"another's MAC and address": frame(victim.card.MAC, host, ip, datagram(him, to)),
		"the host's MAC":            frame(host, host, ip, datagram(me, to)),
		"a VLAN":                    frame(card.MAC, host, []byte{0x81, 0, 0, 0, 8, 0}, datagram(me, to)),
		"a VLAN twice":              frame(card.MAC, host, []byte{0x88, 0xa8, 0, 0, 0x81, 0, 0, 0, 8, 0}, datagram(me, to)),
		"IPv4 called IPv6":          frame(card.MAC, host, ip6, datagram(me, to)),
		"a packet cut off":          good[:20],
	} {
		before := w.servers.came.Load()
		for range 20 {
			send(bad)
		}
		time.Sleep(20 * time.Millisecond)
		if n := w.servers.came.Load() - before; n != 0 {
			t.Errorf("%s: %d arrived", name, n)
		}
	}
	arrived()

	// Nor can it say that it is somebody else, or that the gateway is, or that
	// somebody else's MAC is behind its port.
	if err := writeSysctl("net/ipv4/neigh/"+DefaultBridge+"/locktime", "0"); err != nil {
		t.Fatal(err)
	}
	victim.can("tcp", "198.51.100.10:80")
	send(frame(card.MAC, host, arpKind, arp(card.MAC, me, gateway)))
	everyone := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	for name, f := range map[string][]byte{
		"another's address":            frame(card.MAC, host, arpKind, arp(card.MAC, him, gateway)),
		"another's address, asked":     frame(card.MAC, everyone, arpKind, arp(card.MAC, him, gateway)),
		"another's MAC":                frame(card.MAC, host, arpKind, arp(victim.card.MAC, me, gateway)),
		"another's MAC on the frame":   frame(victim.card.MAC, host, arpKind, arp(card.MAC, me, gateway)),
		"another's MAC and address":    frame(victim.card.MAC, host, arpKind, arp(victim.card.MAC, him, gateway)),
		"the gateway's address":        frame(card.MAC, everyone, arpKind, arp(card.MAC, gateway, him)),
		"the gateway's, to him":        frame(card.MAC, victim.card.MAC, arpKind, arp(card.MAC, gateway, him)),
		"another's address by IPv4":    frame(card.MAC, host, ip, datagram(him, to)),
		"another's MAC in a broadcast": frame(victim.card.MAC, everyone, ip, datagram(me, to)),
	} {
		time.Sleep(50 * time.Millisecond) // until the victim, which would set things right, is quiet
		for range 3 {
			send(f)
		}
		arrived()
		whoIsWho(t, name, card, victim.card)
		victim.can("tcp", "198.51.100.10:80")
	}
	hears(t, card)
}

// whoIsWho fails when the host has a wrong idea of a card's address or port.
func whoIsWho(t *testing.T, after string, cards ...*Card) {
	t.Helper()
	neighbours, err := netlink.NeighList(link(t, DefaultBridge).Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	forwarding, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		seen := 0
		for _, n := range neighbours {
			if n.IP.Equal(net.IP(bytes4(c.Address.Addr()))) && len(n.HardwareAddr) > 0 {
				seen++
				if !slices.Equal(n.HardwareAddr, c.MAC) {
					t.Errorf("after %s: the host takes %v for %v", after, n.HardwareAddr, c.Address)
				}
			}
		}
		for _, n := range forwarding {
			if slices.Equal(n.HardwareAddr, c.MAC) {
				seen++
				if n.LinkIndex != link(t, c.Name).Attrs().Index {
					t.Errorf("after %s: the bridge looks for %v behind another port than %s", after, n.HardwareAddr, c.Name)
				}
			}
		}
		if seen < 2 {
			t.Errorf("after %s: the host does not know %s at all", after, c.Name)
		}
	}
}

// hears fails when frames reached the card that were not for it.
func hears(t *testing.T, card *Card) {
	t.Helper()
	b := make([]byte, 2048)
	for {
		if err := card.TAP.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := card.TAP.Read(b)
		if err != nil {
			return
		}
		f := b[:n]
		kind := binary.BigEndian.Uint16(f[12:])
		switch {
		case kind == 0x806 && slices.Equal(f[28:32], bytes4(card.Gateway)): // the gateway looks for somebody
		case kind == 0x800 && slices.Equal(f[:6], card.MAC) && slices.Equal(f[30:34], bytes4(card.Address.Addr())):
		default:
			t.Errorf("the card hears % x", f)
		}
	}
}
