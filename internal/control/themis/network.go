package themis

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	maxPort        = 65535
	maxDomainBytes = 253
	maxDomainLabel = 63
)

// plainContract is the contract in normal form: names in lower case, protocol
// said, ports sorted, each once.
func plainContract(c sandbox.NetworkContract) (sandbox.NetworkContract, error) {
	var out sandbox.NetworkContract
	if len(c.Allow) > MaxGrants {
		return out, fault.Invalid("network.allow", fmt.Sprintf("Ask for at most %d destinations.", MaxGrants), "there are %d grants", len(c.Allow))
	}
	for i, g := range c.Allow {
		plain, err := plainGrant(g, fmt.Sprintf("network.allow[%d]", i))
		if err != nil {
			return out, err
		}
		out.Allow = append(out.Allow, plain)
	}
	return out, nil
}

func plainGrant(g sandbox.Grant, field string) (sandbox.Grant, error) {
	switch {
	case g.Domain == "" && g.CIDR == "":
		return g, fault.Invalid(field, `Name a domain or a cidr, as in {"domain": "api.example.com", "ports": [443]}.`, "the grant has no destination")
	case g.Domain != "" && g.CIDR != "":
		return g, fault.Invalid(field, "Use one grant for the domain and another for the cidr.", "the grant has two destinations")
	}
	if g.Domain != "" {
		g.Domain = strings.ToLower(g.Domain)
		if err := checkDomain(g.Domain); err != nil {
			return g, fault.Invalid(field+".domain", "Give a full DNS name without a trailing dot, as in api.example.com; addresses go into cidr.", "%v", err)
		}
	} else if err := checkCIDR(g.CIDR); err != nil {
		return g, fault.Invalid(field+".cidr", "Give a network with no bits set behind its prefix, as in 203.0.113.0/24, or 203.0.113.7/32 for one address.", "%v", err)
	}
	switch g.Protocol {
	case "":
		g.Protocol = "tcp"
	case "tcp", "udp":
	default:
		return g, fault.Invalid(field+".protocol", "Use tcp or udp, or leave it out for tcp.", "the protocol is not known")
	}
	if len(g.Ports) == 0 || len(g.Ports) > MaxPorts {
		return g, fault.Invalid(field+".ports", fmt.Sprintf("List 1 to %d ports, as in [443].", MaxPorts), "there are %d ports", len(g.Ports))
	}
	for i, p := range g.Ports {
		if p < 1 || p > maxPort {
			return g, fault.Invalid(fmt.Sprintf("%s.ports[%d]", field, i), "A port is 1 to 65535.", "%d is no port", p)
		}
	}
	g.Ports = slices.Compact(slices.Sorted(slices.Values(g.Ports)))
	return g, nil
}

// plainPolicyGrant is the normal form of what a policy allows: as in a
// request, but a domain may begin with "*.", and no ports mean any.
func plainPolicyGrant(g sandbox.Grant) (sandbox.Grant, error) {
	anyPort := len(g.Ports) == 0
	if anyPort {
		g.Ports = []int{1}
	}
	slices.Sort(g.Ports)
	g.Ports = slices.Compact(g.Ports)
	if len(g.Ports) > MaxPorts {
		return g, errors.New("too many ports")
	}
	below := strings.HasPrefix(g.Domain, "*.")
	g.Domain = strings.TrimPrefix(g.Domain, "*.")
	g, err := plainGrant(g, "")
	if below {
		g.Domain = "*." + g.Domain
	}
	if anyPort {
		g.Ports = nil
	}
	return g, err
}

func checkDomain(name string) error {
	if len(name) > maxDomainBytes {
		return fmt.Errorf("the name has more than %d bytes", maxDomainBytes)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("an address is no name")
	}
	labels := strings.Split(name, ".")
	if len(labels) < 2 {
		return errors.New("the name has only one part")
	}
	for _, l := range labels {
		if l == "" || len(l) > maxDomainLabel || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return fmt.Errorf("a part of the name is empty, longer than %d, begins or ends with '-', or has a character that names cannot have", maxDomainLabel)
		}
	}
	if _, err := strconv.Atoi(labels[len(labels)-1]); err == nil {
		return errors.New("the last part of the name is a number")
	}
	return nil
}

func checkCIDR(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return errors.New("it is no network of the form address/bits")
	}
	if p.Addr().Is4In6() {
		return errors.New("an IPv4 address in IPv6 form is not taken")
	}
	if p.Masked() != p {
		return fmt.Errorf("bits are set behind the prefix; the network is %s", p.Masked())
	}
	if p.String() != s {
		return fmt.Errorf("it is not in canonical form, which is %s", p)
	}
	return nil
}
