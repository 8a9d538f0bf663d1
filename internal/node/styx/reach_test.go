package styx

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// TestOnlyWhatIsGranted: the granted address, protocol and port, and no other.
func TestOnlyWhatIsGranted(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	g := w.guest(tcp("198.51.100.10/32", 80))
	g.can("tcp", "198.51.100.10:80")
	g.cannot("tcp", "198.51.100.10:81")
	g.cannot("udp", "198.51.100.10:80")
	g.cannot("tcp", "198.51.100.11:80")
	g.cannot("tcp", "10.7.0.1:80")
	other := w.guest(udp("198.51.100.0/24", 81, 82), tcp("10.7.0.0/16", 80, 81))
	other.can("udp", "198.51.100.10:81")
	other.can("udp", "198.51.100.11:81")
	other.can("tcp", "10.7.0.1:80")
	other.can("tcp", "10.7.0.1:81")
	other.cannot("tcp", "198.51.100.10:80")
	other.cannot("udp", "10.7.0.1:80")
	g.can("tcp", "198.51.100.10:80")
}

// TestRefusalIsTold: what is not granted fails soon, and says why.
func TestRefusalIsTold(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	g := w.guest(tcp("198.51.100.10/32", 80))
	for _, to := range []string{"198.51.100.11:80", "192.0.2.1:80", "172.16.0.1:80"} {
		if err := g.do(func() error { return hello("tcp", to, trust) }); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// TestTheFloor: whatever is granted, a sandbox reaches neither the host on any
// of its addresses nor what is closed to all; 0.0.0.0/0 is not private ranges.
func TestTheFloor(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	if err := up("lo", "203.0.113.200/32"); err != nil {
		t.Fatal(err)
	}
	all := w.guest(everything()...)
	all.can("tcp", "198.51.100.10:80")
	all.can("udp", "10.7.0.1:81")
	for _, network := range []string{"tcp", "udp"} {
		for _, host := range []string{"172.16.0.1:80", "192.0.2.1:80", "203.0.113.200:80"} {
			all.cannot(network, host)
		}
		for _, closed := range []string{"169.254.169.254:80", "168.63.129.16:80", "100.64.0.1:80", "192.0.0.5:80", "198.18.0.1:80",
			"203.0.113.9:80", "192.0.2.255:80", "255.255.255.255:80", "224.0.0.1:80", "240.0.0.1:80"} {
			all.cannot(network, closed)
		}
	}
	public := w.guest(tcp("0.0.0.0/0", 80))
	public.can("tcp", "198.51.100.11:80")
	public.cannot("tcp", "10.7.0.1:80")
	public.cannot("tcp", "192.168.7.1:80")
	if err := netlink.AddrDel(link(t, "lo"), &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("203.0.113.200"), Mask: net.CIDRMask(32, 32)}}); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestSandboxesDoNotMeet: neither as neighbours nor through the gateway.
func TestSandboxesDoNotMeet(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	a, b := w.guest(everything()...), w.guest(everything()...)
	b.must(func() error { return w.servers.serve(t, 80, "0.0.0.0") })
	// What is bridged is held back by itself, not by rules about IP.
	if err := writeSysctl("net/bridge/bridge-nf-call-iptables", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if p, err := netlink.LinkGetProtinfo(link(t, a.card.Name)); err != nil || !p.Isolated {
		t.Errorf("the port is not isolated: %+v, %v", p, err)
	}
	to := b.card.Address.Addr().String() + ":80"
	a.cannot("tcp", to)
	neighbour := func(mac net.HardwareAddr) {
		a.must(func() error {
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link(t, "eth0").Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: net.IP(bytes4(b.card.Address.Addr())), HardwareAddr: mac,
			})
		})
	}
	for _, mac := range []net.HardwareAddr{b.card.MAC, link(t, DefaultBridge).Attrs().HardwareAddr, {255, 255, 255, 255, 255, 255}} {
		neighbour(mac)
		a.cannot("tcp", to)
		a.cannot("udp", to)
	}
}

// TestOthersNATOpensNothing: destination NAT of somebody else on the host leads
// neither from what a sandbox may not reach to what it may, nor to what it may
// never reach.
func TestOthersNATOpensNothing(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	a, b := w.guest(everything()...), w.guest(everything()...)
	b.must(func() error { return w.servers.serve(t, 80, "0.0.0.0") })
	a.can("tcp", "198.51.100.10:80")
	for _, c := range []struct{ from, to string }{
		{"198.51.100.10", b.card.Address.Addr().String()},
		{"198.51.100.10", "169.254.169.254"},
		{"198.51.100.10", "192.0.2.1"},       // the host
		{"192.0.2.1", "198.51.100.11"},       // a port that the host publishes
		{"172.16.0.1", "198.51.100.11"},      // on the bridge too
		{"169.254.169.254", "198.51.100.11"}, // a stand-in for the metadata
	} {
		redirect(t, c.from, netip.MustParseAddr(c.to).AsSlice())
		a.cannot("tcp", c.from+":80")
		a.cannot("udp", c.from+":80")
		deleteTable(t, "others")
	}
	redirect(t, "198.51.100.10", netip.MustParseAddr("198.51.100.11").AsSlice())
	a.can("tcp", "198.51.100.10:80")
	deleteTable(t, "others")
}

// redirect adds destination NAT of somebody else on the host.
func redirect(t *testing.T, from string, to []byte) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tb := c.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyIPv4})
	ch := c.AddChain(&nftables.Chain{Name: "dst", Table: tb, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	exprs := ipTarget.is(net.ParseIP(from).To4())
	exprs = append(exprs, &expr.Immediate{Register: 1, Data: to}, &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})
	c.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: exprs})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

func deleteTable(t *testing.T, name string) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestNobodyComesIn: neither the internet nor a user of the host opens a
// connection to a sandbox.
func TestNobodyComesIn(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	g := w.guest(everything()...)
	in := &server{}
	g.must(func() error { return in.serve(t, 80, "0.0.0.0") })
	g.can("tcp", "198.51.100.10:80")
	to := g.card.Address.Addr().String() + ":80"
	for _, network := range []string{"tcp", "udp"} {
		if err := w.internet.reaches(network, to); err == nil {
			t.Errorf("the internet reaches a sandbox by %s", network)
		}
		if err := hello(network, to, patience); err == nil {
			t.Errorf("the host reaches a sandbox by %s", network)
		}
	}
	if n := in.came.Load(); n != 0 {
		t.Errorf("%d came in", n)
	}
	if err := g.reaches("tcp", "127.0.0.1:80"); err != nil {
		t.Errorf("the sandbox's server does not even answer itself: %v", err)
	}
}

// TestTheInternetSeesTheHost: what leaves has the host's address.
func TestTheInternetSeesTheHost(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	g := w.guest(tcp("198.51.100.10/32", 8080))
	var l net.Listener
	w.internet.must(func() (err error) { l, err = net.Listen("tcp4", "198.51.100.10:8080"); return err })
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			seen <- err.Error()
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_ = c.Close()
		seen <- host
	}()
	_ = g.do(func() error { return hello("tcp", "198.51.100.10:8080", trust) }) // it is not answered
	_ = l.Close()
	if got := <-seen; got != "192.0.2.1" {
		t.Errorf("the internet sees %s", got)
	}
}

// TestInside: a card whose TAP lies in a namespace is held as any other.
func TestInside(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	card := w.attach(Want{Contract: sandbox.NetworkContract{Allow: []sandbox.Grant{tcp("198.51.100.10/32", 80)}}, Inside: true, UID: 4242, GID: 4242})
	if card.TAP != nil || card.Namespace == nil || card.Device == "" {
		t.Fatalf("%+v", card)
	}
	room := newPlace(t)
	in := &place{t: t, ns: room.ns}
	in.ns = nsOf(card.Namespace)
	var tap *os.File
	in.must(func() (err error) { tap, err = openTAP(card.Device, 0); return err })
	g := w.boot(card, tap)
	g.can("tcp", "198.51.100.10:80")
	g.cannot("tcp", "198.51.100.10:81")
	g.cannot("tcp", "198.51.100.11:80")
	g.cannot("tcp", "172.16.0.1:80")
	in.must(func() error {
		l, err := netlink.LinkByName(card.Device)
		if err == nil && (l.(*netlink.Tuntap).Owner != 4242 || l.(*netlink.Tuntap).Group != 4242) {
			t.Errorf("the TAP is open to %+v", l)
		}
		return err
	})
	if err := in.do(func() error { return hello("tcp", "198.51.100.10:80", patience) }); err == nil {
		t.Error("whoever is in the VMM's namespace has a way out by itself")
	}
}
