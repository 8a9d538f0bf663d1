package styx

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func nsOf(f *os.File) netns.NsHandle { return netns.NsHandle(int(f.Fd())) }

// TestNothingIsLeft: after the end the host's network is what it was, the
// connections that were open included.
func TestNothingIsLeft(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	before := inventory(t)
	g := w.guest(tcp("198.51.100.10/32", 80))
	var open net.Conn
	g.must(func() (err error) { open, err = net.Dial("tcp", "198.51.100.10:80"); return err })
	defer open.Close()
	if n := len(connections(t, g.card.Address)); n != 1 {
		t.Fatalf("%d connections are known", n)
	}
	w.detach(g.card)
	if c := connections(t, g.card.Address); len(c) != 0 {
		t.Errorf("still known: %v", c)
	}
	if fwd, err := readSysctl(sysctlFwd); err != nil || fwd != "1" {
		t.Errorf("forwarding is %q, %v while the network is up", fwd, err)
	}
	if err := w.net.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, before)
}

// TestForwardingThatWasOnStays.
func TestForwardingThatWasOnStays(t *testing.T) {
	if !inside(t) {
		return
	}
	if err := writeSysctl(sysctlFwd, "1"); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.detach(w.guest(tcp("198.51.100.10/32", 80)).card)
	if err := w.net.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if fwd, err := readSysctl(sysctlFwd); err != nil || fwd != "1" {
		t.Errorf("forwarding is %q, %v", fwd, err)
	}
}

// TestAgain: a slot that comes back has nothing of the one before.
func TestAgain(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	small := w.cfg
	small.Gateway = netip.MustParsePrefix("172.16.0.1/29") // five sandboxes
	n, err := New(small)
	if err != nil {
		t.Fatal(err)
	}
	w.net = n
	for i := range 12 {
		g := w.guest(tcp("198.51.100.10/32", 80+i%2))
		g.can("tcp", fmt.Sprintf("198.51.100.10:%d", 80+i%2))
		g.cannot("tcp", fmt.Sprintf("198.51.100.10:%d", 81-i%2))
		w.detach(g.card)
	}
}

// TestFull: there are as many sandboxes as addresses, and the next is told.
func TestFull(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	w.cfg.Gateway = netip.MustParsePrefix("172.16.0.1/29")
	var err error
	if w.net, err = New(w.cfg); err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Prefix]bool{}
	var cards []*Card
	for range 5 {
		c := w.attach(Want{})
		seen[c.Address] = true
		cards = append(cards, c)
	}
	if len(seen) != 5 || seen[netip.MustParsePrefix("172.16.0.1/29")] || seen[netip.MustParsePrefix("172.16.0.7/29")] {
		t.Errorf("addresses given: %v", seen)
	}
	before := inventory(t)
	if _, err := w.net.Attach(t.Context(), Want{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a sixth sandbox: %v", err)
	}
	same(t, before)
	w.detach(cards[2])
	if c := w.attach(Want{}); c.Address != cards[2].Address {
		t.Errorf("%v was free, and %v was given", cards[2].Address, c.Address)
	}
}

// TestProcessesTakeTurns: several of them, each with several sandboxes, use one
// host; the last one clears up.
func TestProcessesTakeTurns(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	before := inventory(t)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		held = map[netip.Prefix]bool{}
	)
	for range 4 {
		n, err := New(w.cfg)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			var each sync.WaitGroup
			for range 3 {
				each.Go(func() {
					for range 3 {
						c, err := n.Attach(t.Context(), Want{Contract: sandbox.NetworkContract{Allow: []sandbox.Grant{tcp("198.51.100.10/32", 80)}}})
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						if held[c.Address] {
							t.Errorf("%v was given twice", c.Address)
						}
						held[c.Address] = true
						mu.Unlock()
						rules, err := w.net.host.cfg.rules()
						if err != nil {
							t.Error(err)
							return
						}
						s, _ := w.net.host.cfg.slotOfName(c.Name)
						if in, err := rules.held(); err != nil || !in[s] {
							t.Errorf("the contract of %s is not in force: %v, %v", c.Name, in, err)
						}
						mu.Lock()
						delete(held, c.Address)
						mu.Unlock()
						if err := n.Detach(context.Background(), c.Name); err != nil {
							t.Error(err)
						}
						if err := c.Close(); err != nil {
							t.Error(err)
						}
					}
				})
			}
			each.Wait()
			if err := n.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	same(t, before)
}

// TestTurnEndsWithItsContext: who cannot have the lock in time is told.
func TestTurnEndsWithItsContext(t *testing.T) {
	n, err := New(Config{Lock: t.TempDir() + "/lock"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := New(Config{Lock: n.lock})
	if err != nil {
		t.Fatal(err)
	}
	err = n.alone(t.Context(), func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		for _, net := range []*Network{n, other} {
			if err := net.alone(ctx, func() error { t.Error("two have the turn"); return nil }); err == nil {
				t.Error("a turn that never came is no error")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// attachVar makes this binary attach a card and wait to be killed.
const attachVar = "TARTARUS_STYX_ATTACH"

func attachAndWait() int {
	how, lock, _ := strings.Cut(os.Getenv(attachVar), " ")
	n, err := New(Config{Lock: lock})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	c, err := n.Attach(context.Background(), Want{Contract: sandbox.NetworkContract{Allow: everything()}, Inside: how == "inside"})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	if how == "persistent" { // as a VMM that was taken over might do
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, c.TAP.Fd(), unix.TUNSETPERSIST, 1); e != 0 {
			fmt.Println("error", e)
			return 1
		}
	}
	fmt.Println("attached", c.Name)
	_, _ = os.Stdin.Read(make([]byte, 1)) // nothing comes
	return 0
}

// TestCrash: what a process that was killed left is removed by the next, and
// what lives is left alone.
func TestCrash(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	before := inventory(t)
	alive := w.guest(tcp("198.51.100.10/32", 80))
	for _, how := range []string{"tap", "persistent", "inside"} {
		name := killed(t, how+" "+w.cfg.Lock)
		if how == "inside" { // the kernel takes its time to end a namespace
			for deadline := time.Now().Add(10 * time.Second); exists(name) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			}
		}
		if err := w.net.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, ok := w.net.host.cfg.slotOfName(name)
		rules, err := w.net.host.cfg.rules()
		if err != nil || !ok {
			t.Fatal(name, err)
		}
		held, err := rules.held()
		if err != nil || held[s] || len(held) != 1 {
			t.Errorf("%s: contracts in force: %v, %v", how, held, err)
		}
		for _, line := range inventory(t) {
			if line == "link "+name {
				t.Errorf("%s: the port is left", how)
			}
		}
		alive.can("tcp", "198.51.100.10:80")
	}
	// With nobody alive Close takes the rest.
	w.detach(alive.card)
	killed(t, "persistent "+w.cfg.Lock)
	if err := w.net.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, before)
}

func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// killed runs attachAndWait and kills it when it has a card.
func killed(t *testing.T, how string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), attachVar+"="+how)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	name, ok := strings.CutPrefix(strings.TrimSpace(line), "attached ")
	if !ok {
		t.Fatal(line)
	}
	return name
}

// TestLargestContract: as many grants and ports as a request may have go into
// force at once.
func TestLargestContract(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	var grants []sandbox.Grant
	for i := range 64 {
		var ports []int
		for p := range 64 {
			ports = append(ports, 1000+p)
		}
		grants = append(grants, udp(fmt.Sprintf("203.0.%d.0/24", i), ports...))
	}
	grants[40] = tcp("198.51.100.10/32", 79, 80)
	began := time.Now()
	g := w.guest(grants...)
	t.Logf("attached in %v", time.Since(began))
	g.can("tcp", "198.51.100.10:80")
	g.cannot("udp", "203.0.7.1:999")
}

// TestContractsAreNotAdded: a contract takes the place of one that was not
// taken back in order.
func TestContractsAreNotAdded(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	w.attach(Want{})
	for _, grants := range [][]sandbox.Grant{everything(), {tcp("198.51.100.10/32", 80)}} {
		r, err := w.net.host.cfg.rules()
		if err != nil {
			t.Fatal(err)
		}
		compiled, err := compile(contractOf(grants...))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.add(7, compiled); err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.net.host.cfg.rules()
	if err != nil {
		t.Fatal(err)
	}
	in, err := r.c.GetRules(r.ip(), &nftables.Chain{Name: chainOf(7), Table: r.ip()})
	if err != nil || len(in) != 2 { // no private ranges; the grant
		t.Errorf("%d rules are in force, %v", len(in), err)
	}
}

// TestNetworkInUse: a network that the host routes elsewhere is not taken over.
func TestNetworkInUse(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	for _, r := range []string{"172.16.0.0/12", "172.16.7.0/24"} {
		if err := route(r, "192.0.2.2"); err != nil {
			t.Fatal(err)
		}
		before := inventory(t)
		if _, err := w.net.Attach(t.Context(), Want{}); !fault.Is(err, fault.Conflict) {
			t.Errorf("with a route to %s: %v", r, err)
		}
		if err := Detect(w.cfg); !fault.Is(err, fault.Conflict) {
			t.Errorf("with a route to %s nothing is detected: %v", r, err)
		}
		same(t, before)
		if err := unroute(r); err != nil {
			t.Fatal(err)
		}
	}
	w.attach(Want{})
}

// TestForeignBridge: a device of that name that is not ours is left alone.
func TestForeignBridge(t *testing.T) {
	if !inside(t) {
		return
	}
	w := newWorld(t)
	foreign(t, DefaultBridge)
	before := inventory(t)
	if _, err := w.net.Attach(t.Context(), Want{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("with somebody's device: %v", err)
	}
	if err := Detect(w.cfg); !fault.Is(err, fault.Conflict) {
		t.Errorf("with somebody's device nothing is detected: %v", err)
	}
	same(t, before)
	if err := deleteLink(DefaultBridge); err != nil {
		t.Fatal(err)
	}
}

// TestDetect: the trial leaves no trace, and says what is missing.
func TestDetect(t *testing.T) {
	if !inside(t) {
		return
	}
	before := inventory(t)
	if err := Detect(Config{}); err != nil {
		t.Error(err)
	}
	same(t, before)
}
