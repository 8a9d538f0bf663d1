package rhadamanthus_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/judges"
	"github.com/tartarus-vm/tartarus/internal/control/judges/rhadamanthus"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/themistest"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const policyText = `
version: 1
tenants:
  a:
  b: {templates: [base], maxima: {resources: {vcpus: 1}}}
templates: [base, debian]
maxima:
  resources: {vcpus: 4, memory_mib: 512, disk_mib: 1024, processes: 300}
  max_duration: 1h
network:
  allow:
    - {domain: api.example.com, ports: [443, 80]}
    - {domain: "*.wild.example"}
    - {cidr: 0.0.0.0/0, ports: [443]}
    - {cidr: 10.1.0.0/16, ports: [5432]}
    - {cidr: 203.0.113.0/24, protocol: udp}
    - {cidr: "::/0", ports: [443]}
rules:
  - {name: no-root, deny: 'request.user == "root"', reason: Nobody is root here.}
  - {name: team, deny: 'labels["team"] == "bad"', reason: Bad team.}
  - {name: b-quiet, deny: 'tenant == "b" && request.stdin_open', reason: Tenant b is quiet.}
`

func judge(t testing.TB, tenant string, change func(*sandbox.Request)) judges.Opinion {
	t.Helper()
	p, err := themis.Parse([]byte(policyText))
	if err != nil {
		t.Fatal(err)
	}
	req := themistest.Request()
	req.Labels = map[string]string{"team": "good"}
	change(&req)
	res, _, err := p.Resolve(t.Context(), sandbox.Principal{Tenant: tenant}, req, themistest.Lookup{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := judges.NewCase(p, tenant, res)
	if err != nil {
		t.Fatal(err)
	}
	return rhadamanthus.Rhadamanthus{}.Judge(c)
}

func TestPolicy(t *testing.T) {
	for name, c := range map[string]struct {
		tenant string
		change func(*sandbox.Request)
		want   []string // rule@field
	}{
		"plain": {"a", func(*sandbox.Request) {}, nil},
		"all of it": {"a", func(r *sandbox.Request) {
			r.Resources = sandbox.Resources{VCPUs: 4, MemoryMiB: 512, DiskMiB: 1024, Processes: 300}
			r.MaxDuration = time.Hour
		}, nil},
		"vcpus":       {"a", func(r *sandbox.Request) { r.Resources.VCPUs = 5 }, []string{"maxima.resources.vcpus@resources.vcpus"}},
		"memory":      {"a", func(r *sandbox.Request) { r.Resources.MemoryMiB = 513 }, []string{"maxima.resources.memory_mib@resources.memory_mib"}},
		"disk":        {"a", func(r *sandbox.Request) { r.Resources.DiskMiB = 1025 }, []string{"maxima.resources.disk_mib@resources.disk_mib"}},
		"processes":   {"a", func(r *sandbox.Request) { r.Resources.Processes = 301 }, []string{"maxima.resources.processes@resources.processes"}},
		"duration":    {"a", func(r *sandbox.Request) { r.MaxDuration = time.Hour + time.Second }, []string{"maxima.max_duration@max_duration"}},
		"template":    {"a", func(r *sandbox.Request) { r.Template = "debian" }, nil},
		"b, template": {"b", func(r *sandbox.Request) { r.Template = "debian" }, []string{"templates@template"}},
		"b, vcpus":    {"b", func(r *sandbox.Request) { r.Resources.VCPUs = 2 }, []string{"maxima.resources.vcpus@resources.vcpus"}},
		"root":        {"a", func(r *sandbox.Request) { r.User = "root" }, []string{"no-root@"}},
		"rule fails":  {"a", func(r *sandbox.Request) { r.Labels = nil }, []string{"team@"}},
		"b, stdin":    {"b", func(r *sandbox.Request) { r.StdinOpen = true }, []string{"b-quiet@"}},
		"a, stdin":    {"a", func(r *sandbox.Request) { r.StdinOpen = true }, nil},
		"everything": {"b", func(r *sandbox.Request) { r.Template, r.User, r.Labels, r.Resources.VCPUs = "debian", "root", nil, 9 },
			[]string{"templates@template", "maxima.resources.vcpus@resources.vcpus", "no-root@", "team@"}},
	} {
		o := judge(t, c.tenant, c.change)
		var got []string
		for _, r := range o.Refusals {
			got = append(got, r.Rule+"@"+r.Field)
			if r.Message == "" || strings.Contains(r.Message, "could not be evaluated") != (r.Rule == "team") {
				t.Errorf("%s: message of %+v", name, r)
			}
		}
		if !slices.Equal(got, c.want) || o.Kind != fault.PolicyDenied {
			t.Errorf("%s: %v (%s), want %v", name, got, o.Kind, c.want)
		}
	}
}

func TestNetworkGrants(t *testing.T) {
	for _, c := range []struct {
		grant   sandbox.Grant
		allowed bool
	}{
		{sandbox.Grant{Domain: "api.example.com", Ports: []int{443}}, true},
		{sandbox.Grant{Domain: "API.example.com", Ports: []int{80, 443}}, true},
		{sandbox.Grant{Domain: "api.example.com", Ports: []int{443, 22}}, false},
		{sandbox.Grant{Domain: "api.example.com", Protocol: "udp", Ports: []int{443}}, false},
		{sandbox.Grant{Domain: "x.api.example.com", Ports: []int{443}}, false},
		{sandbox.Grant{Domain: "example.com", Ports: []int{443}}, false},
		{sandbox.Grant{Domain: "a.wild.example", Ports: []int{1}}, true},
		{sandbox.Grant{Domain: "a.b.wild.example", Ports: []int{65535}}, true},
		{sandbox.Grant{Domain: "wild.example", Ports: []int{443}}, false},
		{sandbox.Grant{Domain: "notwild.example", Ports: []int{443}}, false},
		{sandbox.Grant{CIDR: "198.51.100.0/24", Ports: []int{443}}, true},
		{sandbox.Grant{CIDR: "198.51.100.0/24", Ports: []int{444}}, false},
		{sandbox.Grant{CIDR: "203.0.113.7/32", Protocol: "udp", Ports: []int{53}}, true},
		{sandbox.Grant{CIDR: "203.0.112.0/23", Protocol: "udp", Ports: []int{53}}, false},
		{sandbox.Grant{CIDR: "10.1.2.0/24", Ports: []int{5432}}, true},
		{sandbox.Grant{CIDR: "10.1.0.0/16", Ports: []int{5432}}, true},
		{sandbox.Grant{CIDR: "10.0.0.0/8", Ports: []int{5432}}, false},
		{sandbox.Grant{CIDR: "10.1.2.0/24", Ports: []int{443}}, false}, // 0.0.0.0/0 does not name private ranges
		{sandbox.Grant{CIDR: "192.168.0.1/32", Ports: []int{443}}, false},
		{sandbox.Grant{CIDR: "169.254.169.254/32", Ports: []int{443}}, false},
		{sandbox.Grant{CIDR: "127.0.0.1/32", Ports: []int{443}}, false},
		{sandbox.Grant{CIDR: "0.0.0.0/0", Ports: []int{443}}, false}, // it would reach private ranges as well
		{sandbox.Grant{CIDR: "8.0.0.0/7", Ports: []int{443}}, true},
		{sandbox.Grant{CIDR: "8.0.0.0/5", Ports: []int{443}}, false}, // 10/8 is in it
		{sandbox.Grant{CIDR: "2001:db8::/32", Ports: []int{443}}, true},
		{sandbox.Grant{CIDR: "fd00:ec2::254/128", Ports: []int{443}}, false},
		{sandbox.Grant{CIDR: "::1/128", Ports: []int{443}}, false},
	} {
		o := judge(t, "a", func(r *sandbox.Request) { r.Network.Allow = []sandbox.Grant{c.grant} })
		if got := len(o.Refusals) == 0; got != c.allowed {
			t.Errorf("%+v: allowed %v; %+v", c.grant, got, o.Refusals)
		}
		for _, r := range o.Refusals {
			if !strings.HasPrefix(r.Field, "network.allow[0].") {
				t.Errorf("%+v: field %q", c.grant, r.Field)
			}
		}
	}
	o := judge(t, "a", func(r *sandbox.Request) {
		r.Network.Allow = []sandbox.Grant{{Domain: "api.example.com", Ports: []int{443}}, {Domain: "evil.example", Ports: []int{443}}}
	})
	if len(o.Refusals) != 1 || o.Refusals[0].Field != "network.allow[1].domain" {
		t.Errorf("the second of two: %+v", o.Refusals)
	}
}

// No grant that is allowed contains an address that the policy does not name,
// nor a private one that it does not name as such.
func TestNetworkGrantsContainNoMore(t *testing.T) {
	private := []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"),
	}
	rapid.Check(t, func(rt *rapid.T) {
		first := rapid.SampledFrom([]byte{8, 9, 10, 11, 127, 172, 192, 203}).Draw(rt, "first")
		addr := netip.AddrFrom4([4]byte{first, rapid.Byte().Draw(rt, "second"), 0, 0})
		asked, err := addr.Prefix(rapid.IntRange(0, 32).Draw(rt, "bits"))
		if err != nil {
			rt.Fatal(err)
		}
		o := judge(t, "a", func(r *sandbox.Request) {
			r.Network.Allow = []sandbox.Grant{{CIDR: asked.String(), Ports: []int{443}}}
		})
		touches := slices.ContainsFunc(private, func(p netip.Prefix) bool { return p.Overlaps(asked) })
		cgnat := netip.MustParsePrefix("100.64.0.0/10").Overlaps(asked) || netip.MustParsePrefix("169.254.0.0/16").Overlaps(asked)
		if allowed := len(o.Refusals) == 0; allowed == (touches || cgnat) {
			rt.Fatal(fmt.Sprintf("%s: allowed %v", asked, allowed))
		}
	})
}
