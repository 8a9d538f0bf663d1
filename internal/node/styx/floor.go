package styx

import (
	"net/netip"
	"slices"
)

// floor is what no sandbox reaches, whatever is granted: the host itself and
// the sandboxes' own network are added by rule.
var floor = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),    // carriers' NAT, and some clouds' metadata
	netip.MustParsePrefix("127.0.0.0/8"),      // loopback
	netip.MustParsePrefix("168.63.129.16/32"), // a cloud's host
	netip.MustParsePrefix("169.254.0.0/16"),   // link-local, with the clouds' metadata
	netip.MustParsePrefix("192.0.0.0/24"),     // protocol assignments
	netip.MustParsePrefix("198.18.0.0/15"),    // benchmarks
	netip.MustParsePrefix("224.0.0.0/4"),      // multicast
	netip.MustParsePrefix("240.0.0.0/4"),      // reserved, and broadcast
}

// private are ranges that a grant reaches only if it lies in one of them:
// 0.0.0.0/0 is the public Internet.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
}

// within reports whether p lies in one of ranges.
func within(ranges []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) })
}

// interval is the addresses from first up to, but without, end; end is invalid
// where the last address there is belongs to it.
type interval struct{ first, end netip.Addr }

// intervals are the IPv4 prefixes in order, those that overlap or touch made
// one.
func intervals(prefixes []netip.Prefix) []interval {
	var all []interval
	for _, p := range prefixes {
		if p.Addr().Is4() {
			p = p.Masked()
			all = append(all, interval{p.Addr(), last(p).Next()})
		}
	}
	slices.SortFunc(all, func(a, b interval) int { return a.first.Compare(b.first) })
	var out []interval
	for _, i := range all {
		if n := len(out) - 1; n >= 0 && (!out[n].end.IsValid() || i.first.Compare(out[n].end) <= 0) {
			if out[n].end.IsValid() && (!i.end.IsValid() || i.end.Compare(out[n].end) > 0) {
				out[n].end = i.end
			}
			continue
		}
		out = append(out, i)
	}
	return out
}

// last is the last address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}
