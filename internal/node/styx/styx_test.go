package styx

import (
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestCheck(t *testing.T) {
	if err := Check(sandbox.NetworkContract{}); err != nil {
		t.Errorf("no network: %v", err)
	}
	const ok = fault.Kind(-1)
	ports := []int{443}
	for _, c := range []struct {
		grant sandbox.Grant
		want  fault.Kind
	}{
		{sandbox.Grant{CIDR: "203.0.113.0/24", Protocol: "udp", Ports: []int{1, 65535}}, ok},
		{sandbox.Grant{CIDR: "203.0.113.7/32", Ports: ports}, ok},
		{sandbox.Grant{CIDR: "0.0.0.0/0", Ports: ports}, ok},
		{sandbox.Grant{CIDR: "10.1.0.0/16", Ports: ports}, ok},
		{sandbox.Grant{Domain: "api.example.com", Ports: ports}, fault.Unsupported},
		{sandbox.Grant{CIDR: "2001:db8::/32", Ports: ports}, fault.Unsupported},
		{sandbox.Grant{CIDR: "169.254.169.254/32", Ports: ports}, fault.Unsupported},
		{sandbox.Grant{CIDR: "127.0.0.0/8", Ports: ports}, fault.Unsupported},
		{sandbox.Grant{CIDR: "168.63.129.16/32", Ports: ports}, fault.Unsupported},
		{sandbox.Grant{CIDR: "224.0.0.0/4", Ports: ports}, fault.Unsupported},
		{sandbox.Grant{}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", CIDR: "203.0.113.0/24", Ports: ports}, fault.InvalidArgument},
		{sandbox.Grant{CIDR: "203.0.113.7/24", Ports: ports}, fault.InvalidArgument},
		{sandbox.Grant{CIDR: "::ffff:203.0.113.0/120", Ports: ports}, fault.InvalidArgument},
		{sandbox.Grant{CIDR: "everywhere", Ports: ports}, fault.InvalidArgument},
		{sandbox.Grant{CIDR: "203.0.113.0/24"}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", Protocol: "icmp", Ports: ports}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", Ports: []int{0}}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", Ports: []int{65536}}, fault.InvalidArgument},
	} {
		err := Check(sandbox.NetworkContract{Allow: []sandbox.Grant{c.grant}})
		if c.want == ok && err != nil || c.want != ok && !fault.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.grant, err, c.want)
		}
	}
}
