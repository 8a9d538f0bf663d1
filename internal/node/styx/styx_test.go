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
	for _, c := range []struct {
		grant sandbox.Grant
		want  fault.Kind
	}{
		{sandbox.Grant{Domain: "api.example.com", Ports: []int{443}}, fault.Unsupported},
		{sandbox.Grant{CIDR: "203.0.113.0/24", Protocol: "udp", Ports: []int{1, 65535}}, fault.Unsupported},
		{sandbox.Grant{CIDR: "2001:db8::/32"}, fault.Unsupported},
		{sandbox.Grant{}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", CIDR: "203.0.113.0/24"}, fault.InvalidArgument},
		{sandbox.Grant{CIDR: "203.0.113.7/24"}, fault.InvalidArgument},
		{sandbox.Grant{CIDR: "everywhere"}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", Protocol: "icmp"}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", Ports: []int{0}}, fault.InvalidArgument},
		{sandbox.Grant{Domain: "a.example", Ports: []int{65536}}, fault.InvalidArgument},
	} {
		err := Check(sandbox.NetworkContract{Allow: []sandbox.Grant{c.grant}})
		if !fault.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.grant, err, c.want)
		}
	}
}
