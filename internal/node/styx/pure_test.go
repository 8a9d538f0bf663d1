package styx

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func contractOf(grants ...sandbox.Grant) sandbox.NetworkContract {
	return sandbox.NetworkContract{Allow: grants}
}

func drawAddr(t *rapid.T, label string) netip.Addr {
	b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)
	return netip.AddrFrom4([4]byte(b))
}

func drawPrefix(t *rapid.T, label string) netip.Prefix {
	return netip.PrefixFrom(drawAddr(t, label), rapid.IntRange(0, 32).Draw(t, label+" bits")).Masked()
}

// TestIntervals: the same addresses, in order, apart from each other.
func TestIntervals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var prefixes []netip.Prefix
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			prefixes = append(prefixes, drawPrefix(t, "prefix"))
		}
		got := intervals(prefixes)
		has := func(a netip.Addr) bool {
			return slices.ContainsFunc(got, func(i interval) bool {
				return i.first.Compare(a) <= 0 && (!i.end.IsValid() || a.Less(i.end))
			})
		}
		probes := []netip.Addr{drawAddr(t, "probe")}
		for _, p := range prefixes {
			probes = append(probes, p.Addr(), last(p))
			for _, a := range []netip.Addr{p.Addr().Prev(), last(p).Next()} {
				if a.IsValid() {
					probes = append(probes, a)
				}
			}
		}
		for _, a := range probes {
			want := slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
			if has(a) != want {
				t.Fatalf("%v in %v: %v, want %v", a, prefixes, !want, want)
			}
		}
		for i := 1; i < len(got); i++ {
			if !got[i-1].end.IsValid() || !got[i-1].end.Less(got[i].first) {
				t.Fatalf("%v are not apart", got)
			}
		}
	})
}

// TestSlots: name, address and MAC of a slot lead back to it, and to no other.
func TestSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(minBits, maxBits).Draw(t, "bits")
		base := rapid.SampledFrom([]string{"10.200.0.0", "172.16.0.0", "192.168.0.0"}).Draw(t, "base")
		network := netip.PrefixFrom(netip.MustParseAddr(base), bits)
		c := Config{Bridge: "abcdefgh9", Gateway: netip.PrefixFrom(network.Addr().Next(), bits)}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		s := slot(rapid.IntRange(int(firstSlot), int(c.lastSlot())).Draw(t, "slot"))
		name, a := c.portName(s), c.address(s)
		if back, ok := c.slotOfName(name); !ok || back != s || len(name) > 15 {
			t.Fatalf("%q leads to %d, %v", name, back, ok)
		}
		if back, ok := c.slotOfAddress(a); !ok || back != s {
			t.Fatalf("%v leads to %d, %v", a, back, ok)
		}
		if !network.Contains(a) || a == network.Addr() || a == c.Gateway.Addr() || a == last(network) {
			t.Fatalf("%v is given to a sandbox of %v", a, network)
		}
		if m := macOf(a); m[0]&3 != 2 {
			t.Fatalf("%v is no local MAC of one card", m)
		}
	})
}

func TestNamesThatAreNoPort(t *testing.T) {
	c := Config{}.withDefaults()
	for _, name := range []string{"", "tartarus0", "tartarus0p", "tartarus0p0", "tartarus0p1", "tartarus0p02", "tartarus0p+2", "tartarus0p65535",
		"tartarus0p-3", "tartarus01p5", "eth0", "tartarus0p2 "} {
		if s, ok := c.slotOfName(name); ok {
			t.Errorf("%q counts as port %d", name, s)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for field, c := range map[string]Config{
		"bridge":   {Bridge: "tartarus-one"},
		"gateway":  {Gateway: netip.MustParsePrefix("8.8.8.1/24")},
		"floor[0]": {Floor: []netip.Prefix{{}}},
		"lock":     {Lock: "lock"},
	} {
		if _, err := New(c); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, g := range []string{"172.16.0.2/16", "172.16.0.1/15", "172.16.0.1/30", "fd00::1/64", "172.16.5.1/16"} {
		if err := (Config{Gateway: netip.MustParsePrefix(g)}).Validate(); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("gateway %s: %v", g, err)
		}
	}
}

// FuzzCheck: whatever a contract says, what is compiled of it is sound.
func FuzzCheck(f *testing.F) {
	f.Add("203.0.113.0/24", "", "tcp", 443)
	f.Add("", "a.example", "udp", 53)
	f.Add("10.0.0.0/8", "", "", 0)
	f.Add("::/0", "", "", 1)
	f.Add("169.254.0.0/17", "", "", 1)
	f.Fuzz(func(t *testing.T, cidr, domain, proto string, port int) {
		grants, err := compile(contractOf(sandbox.Grant{CIDR: cidr, Domain: domain, Protocol: proto, Ports: []int{port}}))
		if err != nil {
			if !fault.Is(err, fault.InvalidArgument) && !fault.Is(err, fault.Unsupported) {
				t.Fatal(err)
			}
			return
		}
		for _, g := range grants {
			if !g.to.Addr().Is4() || g.to != g.to.Masked() || len(g.ports) != 1 || g.ports[0] == 0 || within(floor, g.to) || domain != "" {
				t.Fatalf("%q %q became %+v", cidr, domain, g)
			}
		}
	})
}
