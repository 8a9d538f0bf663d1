package styx

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Check reports whether a node with a network can hold a contract; nil for the
// empty one. A contract that is malformed is InvalidArgument, a good one that
// is beyond this form of the network Unsupported.
func Check(c sandbox.NetworkContract) error {
	_, err := compile(c)
	return err
}

// allow is a grant as the kernel is told it.
type allow struct {
	to      netip.Prefix
	proto   uint8 // IPPROTO_TCP or IPPROTO_UDP
	ports   []uint16
	private bool // to lies in a private range
}

// compile puts a contract into the kernel's words. Grants in private ranges
// come first.
func compile(c sandbox.NetworkContract) ([]allow, error) {
	var out []allow
	for _, g := range c.Allow {
		a, err := compileGrant(g)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	slices.SortStableFunc(out, func(a, b allow) int {
		switch {
		case a.private == b.private:
			return 0
		case a.private:
			return -1
		}
		return 1
	})
	return out, nil
}

func compileGrant(g sandbox.Grant) (allow, error) {
	const hint = "this comes from the control plane: look at the policy that made it"
	malformed := func(what string) (allow, error) {
		return allow{}, fault.Invalid("network.allow", hint, "a grant's %s", what)
	}
	if (g.Domain == "") == (g.CIDR == "") {
		return allow{}, fault.Invalid("network.allow", hint, "a grant is either a domain or a CIDR")
	}
	a := allow{proto: unix.IPPROTO_TCP}
	switch g.Protocol {
	case "", "tcp":
	case "udp":
		a.proto = unix.IPPROTO_UDP
	default:
		return malformed("protocol is neither tcp nor udp")
	}
	for _, p := range g.Ports {
		if p < 1 || p > 65535 {
			return malformed("port is not between 1 and 65535")
		}
		a.ports = append(a.ports, uint16(p))
	}
	if len(a.ports) == 0 {
		return malformed("ports are missing")
	}
	slices.Sort(a.ports)
	a.ports = slices.Compact(a.ports)
	if g.Domain != "" {
		return allow{}, unsupported("grants by name are not held yet, and %q is one", "grant addresses by cidr, as in 203.0.113.7/32", g.Domain)
	}
	var err error
	if a.to, err = netip.ParsePrefix(g.CIDR); err != nil || a.to != a.to.Masked() || a.to.Addr().Is4In6() {
		return malformed("CIDR is malformed")
	}
	if !a.to.Addr().Is4() {
		return allow{}, unsupported("sandboxes have no IPv6 yet, and %s is a grant of it", "grant IPv4 addresses", g.CIDR)
	}
	if within(floor, a.to) {
		return allow{}, unsupported("no sandbox may reach %s, whatever is granted", "leave it out: the node's floor is not the policy's to lower", g.CIDR)
	}
	a.private = within(private, a.to)
	return a, nil
}

func unsupported(format, hint, what string) error {
	return fault.New(fault.Unsupported, format, what).WithHint("%s", hint)
}
