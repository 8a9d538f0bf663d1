package styx

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// slot numbers a port of the bridge, from 2 on. Name, address and MAC follow
// from it: whoever finds one of them knows the others.
type slot int

const firstSlot slot = 2 // 0 is the network's address, 1 the gateway's

// lastSlot is the last whose address is not the network's broadcast.
func (c Config) lastSlot() slot { return slot(1)<<(32-c.Gateway.Bits()) - 2 }

// portPrefix begins the names of the bridge's ports, and of nothing else.
func (c Config) portPrefix() string { return c.Bridge + "p" }

func (c Config) portName(s slot) string { return c.portPrefix() + strconv.Itoa(int(s)) }

// slotOfName is the slot of a port; false for what is no port's name.
func (c Config) slotOfName(name string) (slot, bool) {
	digits, ok := strings.CutPrefix(name, c.portPrefix())
	n, err := strconv.Atoi(digits)
	s := slot(n)
	return s, ok && err == nil && c.has(s) && c.portName(s) == name
}

func (c Config) has(s slot) bool { return s >= firstSlot && s <= c.lastSlot() }

func (c Config) address(s slot) netip.Addr {
	b := c.Gateway.Masked().Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(s))
	return netip.AddrFrom4(b)
}

// slotOfAddress is the slot of a sandbox's address.
func (c Config) slotOfAddress(a netip.Addr) (slot, bool) {
	if !a.Is4() || !c.Gateway.Contains(a) {
		return 0, false
	}
	first, b := c.Gateway.Masked().Addr().As4(), a.As4()
	s := slot(binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(first[:]))
	return s, c.has(s)
}

// macOf is a locally administered address that holds the IPv4 one.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x74, b[0], b[1], b[2], b[3]}
}
