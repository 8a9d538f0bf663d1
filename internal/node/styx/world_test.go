package styx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// insideVar says that this process has a network namespace of its own, which
// plays the host.
const insideVar = "TARTARUS_STYX_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(attachVar) != "" {
		os.Exit(attachAndWait())
	}
	goleak.VerifyTestMain(m)
}

// inside runs the test once more in a process with a network namespace of its
// own, and reports whether this is that process. The machine's own network is
// never touched.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Log("an ordinary user makes no network devices")
		return false
	}
	t.Parallel() // they wait more than they work
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// place is a network namespace.
type place struct {
	t  *testing.T
	ns netns.NsHandle
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t}
	if err := inNewNamespace(func() (err error) {
		if p.ns, err = netns.Get(); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		return errors.Join(err, netlink.LinkSetUp(lo))
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.ns.Close() })
	return p
}

// do calls f in the place: sockets that it opens are there.
func (p *place) do(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		here, err := netns.Get()
		if err == nil {
			err = netns.Set(p.ns)
		}
		if err == nil {
			err = f()
			err = errors.Join(err, netns.Set(here), here.Close())
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

func (p *place) must(f func() error) {
	p.t.Helper()
	if err := p.do(f); err != nil {
		p.t.Fatal(err)
	}
}

func up(name, address string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
}

func route(to, via string) error {
	_, dst, err := net.ParseCIDR(to)
	return errors.Join(err, netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}))
}

// server answers on TCP and UDP, and counts who came.
type server struct{ came atomic.Int64 }

// serve says back what it hears on a port of all addresses of where it is
// called; by UDP on those that are named.
func (s *server) serve(t *testing.T, port int, addresses ...string) error {
	tcp, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return err
	}
	var served sync.WaitGroup
	closers := []io.Closer{tcp}
	over, end := context.WithCancel(context.Background())
	t.Cleanup(func() {
		end()
		for _, c := range closers {
			_ = c.Close()
		}
		served.Wait()
	})
	served.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			s.came.Add(1)
			served.Go(func() {
				defer context.AfterFunc(over, func() { _ = c.Close() })()
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	for _, a := range addresses {
		udp, err := net.ListenPacket("udp4", fmt.Sprintf("%s:%d", strings.TrimSuffix(a, "/32"), port))
		if err != nil {
			return err
		}
		closers = append(closers, udp)
		served.Go(func() { s.echo(udp) })
	}
	return nil
}

func (s *server) echo(c net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		s.came.Add(1)
		_, _ = c.WriteTo(b[:n], from)
	}
}

// world is a host (this process's namespace) and what lies beyond it.
type world struct {
	t        *testing.T
	net      *Network
	cfg      Config
	internet *place
	servers  *server // of the internet, on ports 80 and 81
	here     *server // of the host, on ports 80 and 81
}

// beyond are addresses of the internet in these tests: public ones, private
// ones, and some that nobody may reach.
var beyond = []string{"198.51.100.10/32", "198.51.100.11/32", "10.7.0.1/32", "192.168.7.1/32", "169.254.169.254/32",
	"168.63.129.16/32", "100.64.0.1/32", "192.0.0.5/32", "198.18.0.1/32", "203.0.113.9/32"}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, internet: newPlace(t), servers: &server{}, here: &server{}}
	before := inventory(t)
	w.cfg = Config{Lock: filepath.Join(t.TempDir(), "lock"), Floor: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32")}}
	var err error
	if w.net, err = New(w.cfg); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "down0", netlink.NsFd(int(w.internet.ns))
	if err := errors.Join(err, netlink.LinkAdd(v), up("up0", "192.0.2.1/24")); err != nil {
		t.Fatal(err)
	}
	w.internet.must(func() error {
		err := up("down0", "192.0.2.2/24")
		for _, a := range beyond {
			err = errors.Join(err, up("lo", a))
		}
		// So that it could reach sandboxes, were the host to let it.
		return errors.Join(err, route("172.16.0.0/16", "192.0.2.1"), w.servers.serve(t, 80, beyond...), w.servers.serve(t, 81, beyond...))
	})
	if err := errors.Join(route("0.0.0.0/0", "192.0.2.2"), w.here.serve(t, 80, "0.0.0.0"), w.here.serve(t, 81)); err != nil {
		t.Fatal(err)
	}
	base := inventory(t)
	if slices.Equal(base, before) {
		t.Fatal("the inventory sees nothing")
	}
	t.Cleanup(func() {
		if err := w.net.Close(context.Background()); err != nil {
			t.Error(err)
		}
		same(t, base)
		if _, err := os.Lstat(w.cfg.Lock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lock's file is left: %v", err)
		}
	})
	return w
}

// same fails when the host's network is not what it was.
func same(t *testing.T, before []string) {
	t.Helper()
	if after := inventory(t); !slices.Equal(after, before) {
		t.Errorf("the host's network is %q, and was %q", after, before)
	}
}

// inventory is what of the host's network a sandbox could leave behind.
func inventory(t *testing.T) []string {
	t.Helper()
	var out []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, tb := range tables {
		out = append(out, fmt.Sprintf("table %s of family %d", tb.Name, tb.Family))
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		out = append(out, "route "+r.String())
	}
	for _, f := range connections(t, netip.MustParsePrefix(DefaultGateway)) {
		out = append(out, "connection "+f)
	}
	forward, err := readSysctl(sysctlFwd)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return append(out, "forwarding "+forward)
}

// connections are those that the host's kernel remembers from addresses of p.
func connections(t *testing.T, p netip.Prefix) []string {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range flows {
		if a, ok := netip.AddrFromSlice(f.Forward.SrcIP.To4()); ok && p.Contains(a) {
			out = append(out, f.String())
		}
	}
	return out
}

// guest is a sandbox: a card, and a namespace that plays the VM behind it.
type guest struct {
	*place
	card  *Card
	world *world
}

func (w *world) attach(want Want) *Card {
	w.t.Helper()
	card, err := w.net.Attach(w.t.Context(), want)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.detach(card) })
	return card
}

func (w *world) detach(card *Card) {
	w.t.Helper()
	if err := errors.Join(w.net.Detach(context.Background(), card.Name), card.Close()); err != nil && !errors.Is(err, os.ErrClosed) {
		w.t.Error(err)
	}
}

// guest attaches a sandbox and boots its place.
func (w *world) guest(grants ...sandbox.Grant) *guest {
	w.t.Helper()
	return w.boot(w.attach(Want{Contract: sandbox.NetworkContract{Allow: grants}}), nil)
}

// boot joins a card to a new place by carrying frames from one to the other,
// as a VMM does. inside is the TAP of a card in a namespace, or nil.
func (w *world) boot(card *Card, inside *os.File) *guest {
	w.t.Helper()
	g := &guest{place: newPlace(w.t), card: card, world: w}
	device := card.TAP
	if inside != nil {
		device = inside
	}
	var eth0 *os.File
	g.must(func() (err error) {
		if eth0, err = openTAP("eth0", unix.IFF_TUN_EXCL); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetHardwareAddr(l, card.MAC), up("eth0", card.Address.String()), route("0.0.0.0/0", card.Gateway.String()))
	})
	var carried sync.WaitGroup
	carry := func(to, from *os.File) {
		carried.Go(func() {
			b := make([]byte, 2048)
			for {
				n, err := from.Read(b)
				if err != nil {
					return
				}
				_, _ = to.Write(b[:n]) // a device that is down
			}
		})
	}
	carry(eth0, device)
	carry(device, eth0)
	w.t.Cleanup(func() {
		_, _ = eth0.Close(), device.Close()
		carried.Wait()
	})
	return g
}

// How long what must not arrive is waited for, and what must: the kernel may
// take a second until a new port carries frames.
const (
	patience = 400 * time.Millisecond
	trust    = 10 * time.Second
)

// reaches says hello from the place to an address and reports whether it was
// said back.
func (p *place) reaches(network, address string) error {
	return p.do(func() error { return hello(network, address, patience) })
}

func hello(network, address string, within time.Duration) error {
	c, err := net.DialTimeout(network, address, within)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b := make([]byte, 5)
	_, err = io.ReadFull(c, b)
	return err
}

func (g *guest) can(network, address string) {
	g.t.Helper()
	if err := g.do(func() error { return hello(network, address, trust) }); err != nil {
		g.t.Errorf("%s %s is granted: %v", network, address, err)
	}
}

// cannot also looks at the servers: nothing may arrive there.
func (g *guest) cannot(network, address string) {
	g.t.Helper()
	before := g.world.servers.came.Load() + g.world.here.came.Load()
	if err := g.reaches(network, address); err == nil {
		g.t.Errorf("%s %s was reached", network, address)
	}
	if g.world.servers.came.Load()+g.world.here.came.Load() != before {
		g.t.Errorf("something arrived at %s %s", network, address)
	}
}

func tcp(cidr string, ports ...int) sandbox.Grant {
	return sandbox.Grant{CIDR: cidr, Protocol: "tcp", Ports: ports}
}

func udp(cidr string, ports ...int) sandbox.Grant {
	return sandbox.Grant{CIDR: cidr, Protocol: "udp", Ports: ports}
}

// everything is the widest contract there is.
func everything() []sandbox.Grant {
	var out []sandbox.Grant
	for _, c := range []string{"0.0.0.0/0", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} {
		out = append(out, tcp(c, 80, 81), udp(c, 80, 81))
	}
	return out
}

func unroute(to string) error {
	_, dst, err := net.ParseCIDR(to)
	return errors.Join(err, netlink.RouteDel(&netlink.Route{Dst: dst}))
}

// foreign makes a device of somebody else.
func foreign(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
}
