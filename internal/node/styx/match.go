package styx

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// part is a piece of a rule: a match, or what is done with what matched.
type part []expr.Any

// The verdicts.
var (
	accept = part{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = part{&expr.Verdict{Kind: expr.VerdictDrop}}
)

func goTo(chain string) part {
	return part{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// The kernel's registers: one of 16 bytes for single fields, and the same
// bytes by fours for fields side by side.
const (
	reg1      = unix.NFT_REG_1
	reg32     = unix.NFT_REG32_00
	ifnameLen = 16
)

// field is something of a packet that can be compared.
type field struct {
	bytes uint32
	load  func(reg uint32) expr.Any
}

func meta(key expr.MetaKey, bytes uint32) field {
	return field{bytes, func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }}
}

func payload(base expr.PayloadBase, offset, bytes uint32) field {
	return field{bytes, func(reg uint32) expr.Any {
		return &expr.Payload{Base: base, Offset: offset, Len: bytes, DestRegister: reg}
	}}
}

// The fields. Types of frames are read from the frame itself: a tag of a VLAN
// is then a type of its own.
var (
	iifname = meta(expr.MetaKeyIIFNAME, ifnameLen)
	oifname = meta(expr.MetaKeyOIFNAME, ifnameLen)
	l4proto = meta(expr.MetaKeyL4PROTO, 1)

	etherTarget = payload(expr.PayloadBaseLLHeader, 0, 6)
	etherSource = payload(expr.PayloadBaseLLHeader, 6, 6)
	etherType   = payload(expr.PayloadBaseLLHeader, 12, 2)

	ipSource = payload(expr.PayloadBaseNetworkHeader, 12, 4)
	ipTarget = payload(expr.PayloadBaseNetworkHeader, 16, 4)

	arpHead      = payload(expr.PayloadBaseNetworkHeader, 0, 6)
	arpSenderMAC = payload(expr.PayloadBaseNetworkHeader, 8, 6)
	arpSenderIP  = payload(expr.PayloadBaseNetworkHeader, 14, 4)
	arpTargetIP  = payload(expr.PayloadBaseNetworkHeader, 24, 4)

	icmpType   = payload(expr.PayloadBaseTransportHeader, 0, 1)
	targetPort = payload(expr.PayloadBaseTransportHeader, 2, 2)
)

var (
	isIPv4 = etherType.is([]byte{0x08, 0x00})
	isARP  = append(etherType.is([]byte{0x08, 0x06}),
		arpHead.is([]byte{0, 1, 0x08, 0x00, 6, 4})...) // Ethernet, IPv4
)

// is matches a field that begins with b.
func (f field) is(b []byte) part   { return f.compare(expr.CmpOpEq, b) }
func (f field) isNo(b []byte) part { return f.compare(expr.CmpOpNeq, b) }

func (f field) compare(op expr.CmpOp, b []byte) part {
	return part{f.load(reg1), &expr.Cmp{Op: op, Register: reg1, Data: b}}
}

// whole is an interface's name as it is compared with all of the field.
func whole(name string) []byte {
	b := make([]byte, ifnameLen)
	copy(b, name)
	return b
}

// in matches what set has, of one field or of some side by side.
func in(set *nftables.Set, fields ...field) part {
	var p part
	reg := uint32(reg32)
	for _, f := range fields {
		p = append(p, f.load(reg))
		reg += (f.bytes + 3) / 4
	}
	return append(p, &expr.Lookup{SourceRegister: reg32, SetName: set.Name, SetID: set.ID})
}

// within4 matches an address that lies in p.
func within4(f field, p netip.Prefix) part {
	if p.Bits() == 0 {
		return nil
	}
	var mask [4]byte
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return part{
		f.load(reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: mask[:], Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: bytes4(p.Masked().Addr())},
	}
}

// belongs matches packets of connections that are there already, and errors
// about them.
func belongs() part {
	bits := nativeU32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return part{
		&expr.Ct{Register: reg1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

// notElsewhere matches what is not on its way to one machine beyond this host:
// the host's own addresses, broadcast, multicast, no route.
func notElsewhere() part {
	return part{
		&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: nativeU32(unix.RTN_UNICAST)},
	}
}
