package rhadamanthus

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// private are the ranges that a grant reaches only where the policy names
// them: 0.0.0.0/0 in a policy means the public Internet.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("::1/128"),
}

// network refuses each grant that no entry of the policy covers whole. The
// grants of a resolved request are plain already: what passes is what the node
// enforces, above a floor of its own.
func network(c judges.Case) []sandbox.Reason {
	var out []sandbox.Reason
	for i, g := range c.Request.Network.Allow {
		covered := slices.ContainsFunc(c.Tenant.Network, func(allowed sandbox.Grant) bool { return covers(allowed, g) })
		if covered {
			continue
		}
		field, what := fmt.Sprintf("network.allow[%d].domain", i), g.Domain
		if g.CIDR != "" {
			field, what = fmt.Sprintf("network.allow[%d].cidr", i), g.CIDR
		}
		out = append(out, sandbox.Reason{
			Rule: "network", Field: field,
			Message: fmt.Sprintf("the policy does not allow %s %s on these ports", g.Protocol, what),
		})
	}
	return out
}

// covers reports whether the policy's entry allows all that g asks for.
func covers(allowed, g sandbox.Grant) bool {
	if allowed.Protocol != g.Protocol {
		return false
	}
	if len(allowed.Ports) > 0 && slices.ContainsFunc(g.Ports, func(p int) bool { return !slices.Contains(allowed.Ports, p) }) {
		return false
	}
	if g.Domain != "" {
		return coversDomain(allowed.Domain, g.Domain)
	}
	return coversCIDR(allowed.CIDR, g.CIDR)
}

func coversDomain(allowed, asked string) bool {
	if below, ok := strings.CutPrefix(allowed, "*"); ok {
		return strings.HasSuffix(asked, below) && asked != below
	}
	return allowed == asked
}

func coversCIDR(allowed, asked string) bool {
	a, err := netip.ParsePrefix(allowed)
	if err != nil {
		return false // a domain's entry
	}
	p, err := netip.ParsePrefix(asked)
	if err != nil || !within(a, p) {
		return false
	}
	for _, r := range private {
		// A grant that touches a private range must lie in it, as must the
		// entry that allows it.
		if r.Overlaps(p) && (!within(r, p) || !within(r, a)) {
			return false
		}
	}
	return true
}

// within reports whether inner is part of outer.
func within(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Overlaps(inner)
}
