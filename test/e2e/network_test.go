package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// hostVar names the state folder to a process of this test that plays the
// host: it has a network namespace of its own.
const hostVar = "TARTARUS_E2E_HOST"

// TestNetwork: a sandbox in a real VM reaches what its contract names, through
// its card and NAT, and nothing else; afterwards the host's network is what it
// was, even after a kill -9. The machine's own network is not touched.
func TestNetwork(t *testing.T) {
	if state := os.Getenv(hostVar); state != "" {
		onHost(t, state)
		return
	}
	if os.Geteuid() != 0 {
		t.Log("an ordinary user has no network cards to give")
		return
	}
	state := realvm.NewState(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestNetwork$", "-test.v")
	cmd.Env = append(os.Environ(), hostVar+"="+state)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestNetwork")) {
		t.Errorf("%v\n%s", err, out)
	}
	realvm.NothingLeft(t, state)
}

// policyOfNetwork grants more than the runs ask for, and more than any node
// gives.
const policyOfNetwork = `version: 1
tenants:
  local: {}
network:
  allow:
    - {domain: api.example.com, ports: [443]}
    - {cidr: 198.51.100.0/24, ports: [80]}
    - {cidr: 192.0.2.0/24, ports: [80]}
    - {cidr: 172.16.0.0/12, ports: [80, 8080]}
`

func onHost(t *testing.T, state string) {
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(policyOfNetwork), 0o600); err != nil {
		t.Fatal(err)
	}
	beyond(t)
	before := networkOf(t)
	run := func(args ...string) *exec.Cmd {
		return realvm.Command(realvm.Patience(t), state, append([]string{"run", "--local", "--policy", policy}, args...)...)
	}

	// The built-in policy grants nothing, and this one not everything.
	r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "run", "--local", "--allow", "198.51.100.10/32:80", "--", "true"))
	if r.Code != 125 || !strings.Contains(r.Stderr, "does not allow") {
		t.Errorf("without a policy that grants it: %+v", r)
	}
	r = realvm.Finish(t, run("--allow", "203.0.113.1/32:80", "--", "true"))
	if r.Code != 125 || !strings.Contains(r.Stderr, "does not allow") {
		t.Errorf("what the policy does not grant: %+v", r)
	}

	r = realvm.Finish(t, run("--allow", "api.example.com:443", "--", "true"))
	if r.Code != 125 || !strings.Contains(r.Stderr, "by name") {
		t.Errorf("a grant by name is not told that it cannot be held: %+v", r)
	}

	other, address := neighbour(t, run("--allow", "198.51.100.11/32:80", "--", "sh", "-c",
		"ip -4 -o addr show eth0; mkdir -p /tmp/www; echo neighbour > /tmp/www/index.html; httpd -f -p 8080 -h /tmp/www"))

	script := "for u in 198.51.100.10 198.51.100.10:81 198.51.100.11 192.0.2.1 172.16.0.1 172.16.0.1:8080 " + address + ":8080; do " +
		`printf '%s ' $u; wget -qO- http://$u 2>/dev/null || echo nothing; done; ip -4 -o addr show eth0 | grep -c inet; ls /sys/class/net | wc -l`
	r = realvm.Finish(t, run("--allow", "198.51.100.10/32:80", "--allow", "172.16.0.0/12:80,8080", "--allow", "192.0.2.0/24:80", "--", "sh", "-c", script))
	want := "198.51.100.10 the internet sees 192.0.2.1\n198.51.100.10:81 nothing\n198.51.100.11 nothing\n192.0.2.1 nothing\n172.16.0.1 nothing\n172.16.0.1:8080 nothing\n" +
		address + ":8080 nothing\n1\n2\n"
	if r.Code != 0 || r.Stdout != want {
		t.Errorf("%+v, want\n%s", r, want)
	}

	// It is as in the documentation.
	r = realvm.Finish(t, run("--allow", "198.51.100.10/32:80", "--", "wget", "-qO-", "http://198.51.100.10"))
	if r.Code != 0 || r.Stdout != "the internet sees 192.0.2.1\n" {
		t.Errorf("%+v", r)
	}

	// The neighbour dies with its process, and the next run clears up; it has
	// no card itself.
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait() // it was killed
	r = realvm.Finish(t, run("--", "sh", "-c", "ls /sys/class/net"))
	if r.Code != 0 || r.Stdout != "lo\n" {
		t.Errorf("a sandbox without a contract: %+v", r)
	}
	if after := networkOf(t); !slices.Equal(after, before) {
		t.Errorf("the host's network is %q, and was %q", after, before)
	}
}

// neighbour starts a sandbox and waits until it has told its address.
func neighbour(t *testing.T, c *exec.Cmd) (*exec.Cmd, string) {
	t.Helper()
	var stderr bytes.Buffer
	c.Stderr = &stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	m := regexp.MustCompile(`inet (172\.16\.[0-9.]+)/16`).FindStringSubmatch(line)
	if m == nil {
		_ = c.Wait()
		t.Fatalf("%q; %s", line, &stderr)
	}
	return c, m[1]
}

// beyond is what lies beyond the host: an internet that tells who came, in a
// namespace of its own, and a server of the host that nobody may reach.
func beyond(t *testing.T) {
	t.Helper()
	serve := func(address, says string) error {
		l, err := net.Listen("tcp4", address)
		if err != nil {
			return err
		}
		s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "%s %s\n", says, from)
		})}
		served := make(chan struct{})
		go func() { defer close(served); _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close(); <-served })
		return nil
	}
	ready := make(chan error)
	over := make(chan struct{})
	host, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "down0"
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerNamespace = "up0", netlink.NsFd(int(host))
		err = errors.Join(err, netlink.LinkAdd(v))
		for _, a := range [][2]string{{"down0", "192.0.2.2/24"}, {"lo", "198.51.100.10/32"}, {"lo", "198.51.100.11/32"}} {
			err = errors.Join(err, up(a[0], a[1]))
		}
		for _, a := range []string{"198.51.100.10:80", "198.51.100.10:81", "198.51.100.11:80"} {
			err = errors.Join(err, serve(a, "the internet sees"))
		}
		ready <- err
		<-over
	}()
	err = errors.Join(<-ready, up("lo", "127.0.0.1/8"), up("up0", "192.0.2.1/24"))
	t.Cleanup(func() { close(over) })
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	err = errors.Join(err, netlink.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP("192.0.2.2")}),
		serve("0.0.0.0:80", "the host sees"), serve("0.0.0.0:8080", "the host sees"))
	if err != nil {
		t.Fatal(err)
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
	if err := netlink.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return netlink.LinkSetUp(l)
}

// networkOf is what of the host's network a sandbox could leave behind.
func networkOf(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
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
		out = append(out, "table "+tb.Name)
	}
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return append(out, "forwarding "+string(forward))
}
