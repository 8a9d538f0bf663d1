// Package styx is the network of a sandbox: the NetworkContract, held on the
// node.
//
// This form of it gives no sandbox a network card, which is the safest
// contract of all, and says so to whoever asks for one.
package styx

import (
	"net/netip"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Check reports whether this node can hold a contract: nil for the empty one.
// A contract that is malformed is InvalidArgument, a good one is Unsupported
// for want of a network card.
func Check(c sandbox.NetworkContract) error {
	if c.Empty() {
		return nil
	}
	for _, g := range c.Allow {
		if err := checkGrant(g); err != nil {
			return err
		}
	}
	return fault.New(fault.Unsupported, "this node gives sandboxes no network card, and %d network grants were asked for", len(c.Allow)).
		WithHint("leave network.allow empty, or bring what the command needs in as files")
}

func checkGrant(g sandbox.Grant) error {
	const hint = "this comes from the control plane: look at the policy that made it"
	if (g.Domain == "") == (g.CIDR == "") {
		return fault.Invalid("network.allow", hint, "a grant is either a domain or a CIDR")
	}
	if g.CIDR != "" {
		if p, err := netip.ParsePrefix(g.CIDR); err != nil || p != p.Masked() {
			return fault.Invalid("network.allow", hint, "a grant's CIDR is malformed")
		}
	}
	if g.Protocol != "" && g.Protocol != "tcp" && g.Protocol != "udp" {
		return fault.Invalid("network.allow", hint, "a grant's protocol is neither tcp nor udp")
	}
	for _, p := range g.Ports {
		if p < 1 || p > 65535 {
			return fault.Invalid("network.allow", hint, "a grant's port is not between 1 and 65535")
		}
	}
	return nil
}
