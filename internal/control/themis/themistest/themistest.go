// Package themistest is the table of requests at and beyond every bound, for
// the tests of themis and of the API.
package themistest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Case is one request. Field is the field that must be named in the
// InvalidArgument error, and "" when the request must be taken.
type Case struct {
	Name   string
	Change func(r *sandbox.Request)
	Field  string
}

// Request is a request that must be taken, to be changed by a case.
func Request() sandbox.Request { return sandbox.Request{Command: []string{"true"}} }

// Lookup knows the templates base and debian, and one guest bundle. Broken
// answers every question with a fault.
type Lookup struct{ Broken bool }

// Template finds base and debian.
func (l Lookup) Template(_ context.Context, name string) (sandbox.Template, error) {
	if l.Broken {
		return sandbox.Template{}, fault.Wrap(fault.Unavailable, errors.New("disk on fire"), "the templates cannot be read")
	}
	digests := map[string]string{"base": "ba", "debian": "de"}
	d, ok := digests[name]
	if !ok {
		return sandbox.Template{}, fault.New(fault.NotFound, "no template").WithHint("Build one.")
	}
	return sandbox.Template{Name: name, Digest: Digest(d)}, nil
}

// GuestDigest is always the same.
func (l Lookup) GuestDigest(context.Context) (sandbox.Digest, error) {
	if l.Broken {
		return "", fault.New(fault.Unavailable, "the guest bundle cannot be read")
	}
	return Digest("91"), nil
}

// Digest repeats two hexadecimal digits to a digest.
func Digest(two string) sandbox.Digest { return sandbox.Digest("sha256:" + strings.Repeat(two, 32)) }

// Cases is the table.
func Cases() []Case {
	var out []Case
	for _, part := range [][]Case{
		commandCases(), nameCases(), envCases(), placeCases(), fileCases(), resourceCases(), labelCases(), networkCases(),
	} {
		out = append(out, part...)
	}
	return out
}

func commandCases() []Case {
	command := func(name, field string, args ...string) Case {
		return Case{"command " + name, func(r *sandbox.Request) { r.Command = args }, field}
	}
	many := func(n int) []string { return strings.Split(strings.Repeat("x", n)+"x", "") }
	return []Case{
		command("none", "command"),
		command("empty program", "command", ""),
		command("empty argument", "", "true", ""),
		command("most arguments", "", many(themis.MaxArgs-1)...),
		command("one argument too many", "command", many(themis.MaxArgs)...),
		command("longest", "", strings.Repeat("x", themis.MaxCommandBytes-1)),
		command("a byte too long", "command", strings.Repeat("x", themis.MaxCommandBytes)),
		command("a byte too long together", "command", "x", strings.Repeat("x", themis.MaxCommandBytes-2)),
		command("NUL", "command[1]", "true", "a\x00b"),
		command("no UTF-8", "command[1]", "true", "\xff"),
		command("control characters", "", "printf", "\x01\x1b[0m\u202e"),
	}
}

func nameCases() []Case {
	name := func(s, field string) Case {
		return Case{"name " + clip(s), func(r *sandbox.Request) { r.Name = s }, field}
	}
	template := func(s, field string) Case {
		return Case{"template " + clip(s), func(r *sandbox.Request) { r.Template = s }, field}
	}
	return []Case{
		name("", ""), name("a", ""), name("A.b_c-9", ""),
		name(strings.Repeat("a", themis.MaxNameBytes), ""),
		name(strings.Repeat("a", themis.MaxNameBytes+1), "name"),
		name("-a", "name"), name("a-", "name"), name("a b", "name"), name("a/b", "name"), name("ä", "name"),
		name("a\n", "name"), name("..", "name"), name("\x1b[31m", "name"),
		template("debian", ""), template("base", ""), template("gone", "template"),
		template("Debian", "template"), template("../base", "template"), template("base\n", "template"),
		template(strings.Repeat("a", themis.MaxNameBytes+1), "template"),
	}
}

func envCases() []Case {
	env := func(name, field string, env map[string]string) Case {
		return Case{"env " + name, func(r *sandbox.Request) { r.Env = env }, field}
	}
	many := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("V%d", i)] = ""
		}
		return m
	}
	long := strings.Repeat("N", themis.MaxEnvNameBytes)
	return []Case{
		env("plain", "", map[string]string{"LANG": "C.UTF-8", "_x9": "", "EMPTY": "=\n\"<&>"}),
		env("most", "", many(themis.MaxEnvVars)),
		env("one too many", "env", many(themis.MaxEnvVars+1)),
		env("longest name", "", map[string]string{long: ""}),
		env("name a byte too long", "env", map[string]string{long + "N": ""}),
		env("longest", "", map[string]string{"A": strings.Repeat("x", themis.MaxEnvBytes-3)}),
		env("a byte too long", "env", map[string]string{"A": strings.Repeat("x", themis.MaxEnvBytes-2)}),
		env("no name", "env", map[string]string{"": "x"}),
		env("name with =", "env", map[string]string{"A=B": "x"}),
		env("name with digit first", "env", map[string]string{"1A": "x"}),
		env("name with newline", "env", map[string]string{"A\n": "x"}),
		env("value with NUL", "env.A", map[string]string{"A": "\x00"}),
		env("value no UTF-8", "env.A", map[string]string{"A": "\xc0"}),
	}
}

func placeCases() []Case {
	dir := func(s, field string) Case {
		return Case{"working_dir " + clip(s), func(r *sandbox.Request) { r.WorkingDir = s }, field}
	}
	user := func(s, field string) Case {
		return Case{"user " + clip(s), func(r *sandbox.Request) { r.User = s }, field}
	}
	duration := func(d time.Duration, field string) Case {
		return Case{"max_duration " + d.String(), func(r *sandbox.Request) { r.MaxDuration = d }, field}
	}
	return []Case{
		dir("/", ""), dir("/work/a b", ""), dir("/ä", ""), dir(longPath(themis.MaxPathBytes), ""), dir(longPath(themis.MaxPathBytes+1), "working_dir"),
		dir("work", "working_dir"), dir("/work/", "working_dir"), dir("/work/../etc", "working_dir"), dir("/./work", "working_dir"),
		dir("//work", "working_dir"), dir("/a\x00", "working_dir"), dir("/\xff", "working_dir"), dir("/"+strings.Repeat("x", 256), "working_dir"),
		user("root", ""), user("sandbox", ""), user("_x-9", ""), user("0", ""), user("2147483647", ""),
		user("2147483648", "user"), user("-1", "user"), user("007", "user"), user("1.5", "user"), user("Root", "user"),
		user(strings.Repeat("a", themis.MaxUserBytes), ""), user(strings.Repeat("a", themis.MaxUserBytes+1), "user"),
		user("a:b", "user"), user("root\n", "user"), user("99999999999999999999", "user"),
		duration(themis.MinDuration, ""), duration(themis.MinDuration-1, "max_duration"), duration(-time.Second, "max_duration"),
		duration(themis.MaxDuration, ""), duration(themis.MaxDuration+1, "max_duration"),
	}
}

// longPath is a clean path of n bytes.
func longPath(n int) string {
	return (strings.Repeat("/"+strings.Repeat("x", 200), n/201+1))[:n-1] + "x"
}

func fileCases() []Case {
	files := func(name, field string, files ...sandbox.File) Case {
		return Case{"files " + name, func(r *sandbox.Request) { r.Files = files }, field}
	}
	at := func(p string) sandbox.File { return sandbox.File{Path: p} }
	many := func(n int) []sandbox.File {
		var out []sandbox.File
		for i := range n {
			out = append(out, at(fmt.Sprintf("/work/%d", i)))
		}
		return out
	}
	input := func(name, field string, stdin, file int) Case {
		return Case{"input " + name, func(r *sandbox.Request) {
			r.Stdin, r.Files = make([]byte, stdin), []sandbox.File{{Path: "/work/a", Data: make([]byte, file)}}
		}, field}
	}
	return []Case{
		files("most", "", many(themis.MaxFiles)...),
		files("one too many", "files", many(themis.MaxFiles+1)...),
		files("relative", "files[1].path", at("/a"), at("b")),
		files("empty path", "files[0].path", at("")),
		files("dot-dot", "files[2].path", at("/a"), at("/b"), at("/work/../../etc/passwd")),
		files("root", "files[0].path", at("/")),
		files("proc", "files[0].path", at("/proc/1/mem")),
		files("dev", "files[0].path", at("/dev")),
		files("device by name only", "", at("/device")),
		files("twice", "files[1].path", at("/a"), at("/a")),
		files("below a file", "files[0].path", at("/a/b/c"), at("/a")),
		files("below a later file", "files[1].path", at("/a/b"), at("/a/b/c")),
		files("beside", "", at("/a/b"), at("/a/bc"), at("/a/c")),
		files("NUL", "files[0].path", at("/a\x00")),
		files("no UTF-8", "files[0].path", at("/\xff")),
		files("longest path", "", at(longPath(themis.MaxPathBytes))),
		files("path a byte too long", "files[0].path", at(longPath(themis.MaxPathBytes+1))),
		files("all bits", "", sandbox.File{Path: "/a", Mode: 0o777}),
		files("setuid", "files[0].mode", sandbox.File{Path: "/a", Mode: 0o4755}),
		files("far too many bits", "files[0].mode", sandbox.File{Path: "/a", Mode: 1<<32 - 1}),
		input("most", "", themis.MaxInputBytes/2, themis.MaxInputBytes/2),
		input("a byte too much", "files", themis.MaxInputBytes/2, themis.MaxInputBytes/2+1),
		input("stdin a byte too much", "stdin", themis.MaxInputBytes+1, 0),
	}
}

func resourceCases() []Case {
	var out []Case
	for _, b := range []struct {
		field           string
		set             func(r *sandbox.Resources, v int64)
		lowest, highest int64
	}{
		{"vcpus", func(r *sandbox.Resources, v int64) { r.VCPUs = int(v) }, 1, themis.MaxVCPUs},
		{"memory_mib", func(r *sandbox.Resources, v int64) { r.MemoryMiB = v }, 1, themis.MaxMemoryMiB},
		{"disk_mib", func(r *sandbox.Resources, v int64) { r.DiskMiB = v }, themis.MinDiskMiB, themis.MaxDiskMiB},
		{"processes", func(r *sandbox.Resources, v int64) { r.Processes = int(v) }, 1, themis.MaxProcesses},
	} {
		at := func(v int64, field string) Case {
			return Case{fmt.Sprintf("%s %d", b.field, v), func(r *sandbox.Request) { b.set(&r.Resources, v) }, field}
		}
		field := "resources." + b.field
		out = append(out, at(0, ""), at(b.lowest, ""), at(b.highest, ""), at(-1, field), at(b.highest+1, field), at(1<<40, field))
		if b.lowest > 1 {
			out = append(out, at(b.lowest-1, field))
		}
	}
	return out
}

func labelCases() []Case {
	var out []Case
	for _, m := range []struct {
		field string
		limit int
		set   func(r *sandbox.Request, m map[string]string)
	}{
		{"labels", themis.MaxLabels, func(r *sandbox.Request, m map[string]string) { r.Labels = m }},
		{"node_selector", themis.MaxSelectors, func(r *sandbox.Request, m map[string]string) { r.NodeSelector = m }},
	} {
		one := func(key, value, field string) Case {
			return Case{m.field + " " + clip(key) + "=" + clip(value), func(r *sandbox.Request) { m.set(r, map[string]string{key: value}) }, field}
		}
		many := func(n int, field string) Case {
			return Case{fmt.Sprintf("%d %s", n, m.field), func(r *sandbox.Request) {
				all := map[string]string{}
				for i := range n {
					all[fmt.Sprintf("k%d", i)] = ""
				}
				m.set(r, all)
			}, field}
		}
		out = append(out,
			many(m.limit, ""), many(m.limit+1, m.field),
			one("team", "ci", ""), one("example.com/Team.x_y-z", "", ""), one(strings.Repeat("k", 63), "two words, ä", ""),
			one(strings.Repeat("k", 64), "", m.field), one("", "x", m.field), one("/x", "", m.field), one("x/", "", m.field),
			one("a/b/c", "", m.field), one("Example.com/x", "", m.field), one("-x", "", m.field), one("x y", "", m.field), one("x\n", "", m.field),
			one("k", strings.Repeat("v", themis.MaxLabelValue), ""), one("k", strings.Repeat("v", themis.MaxLabelValue+1), m.field+".k"),
			one("k", "a\x1b[31mb", m.field+".k"), one("k", "a\nb", m.field+".k"), one("k", "\u202e", m.field+".k"), one("k", "\xff", m.field+".k"),
		)
	}
	return out
}

func networkCases() []Case {
	allow := func(name, field string, grants ...sandbox.Grant) Case {
		return Case{"network " + name, func(r *sandbox.Request) { r.Network.Allow = grants }, field}
	}
	web := []int{443}
	domain := func(d, field string) Case {
		return allow("domain "+clip(d), field, sandbox.Grant{Domain: d, Ports: web})
	}
	cidr := func(c, field string) Case { return allow("cidr "+c, field, sandbox.Grant{CIDR: c, Ports: web}) }
	ports := func(name, field string, p ...int) Case {
		return allow("ports "+name, field, sandbox.Grant{Domain: "a.example", Ports: p})
	}
	many := func(n int) []sandbox.Grant {
		out := make([]sandbox.Grant, n)
		for i := range out {
			out[i] = sandbox.Grant{Domain: "a.example", Ports: web}
		}
		return out
	}
	manyPorts := func(n int) []int {
		out := make([]int, n)
		for i := range out {
			out[i] = i + 1
		}
		return out
	}
	const field = "network.allow[0]"
	part := strings.Repeat("a", 63)
	longest := part + "." + part + "." + part + "." + strings.Repeat("a", 61)
	return []Case{
		allow("most", "", many(themis.MaxGrants)...),
		allow("one too many", "network.allow", many(themis.MaxGrants+1)...),
		allow("nothing", field, sandbox.Grant{Ports: web}),
		allow("both", field, sandbox.Grant{Domain: "a.example", CIDR: "203.0.113.0/24", Ports: web}),
		allow("second wrong", "network.allow[1].cidr", many(1)[0], sandbox.Grant{CIDR: "x", Ports: web}),
		allow("tcp", "", sandbox.Grant{CIDR: "203.0.113.0/24", Protocol: "tcp", Ports: web}),
		allow("udp", "", sandbox.Grant{CIDR: "203.0.113.0/24", Protocol: "udp", Ports: web}),
		allow("icmp", field+".protocol", sandbox.Grant{CIDR: "203.0.113.0/24", Protocol: "icmp", Ports: web}),
		allow("TCP", field+".protocol", sandbox.Grant{CIDR: "203.0.113.0/24", Protocol: "TCP", Ports: web}),
		domain("api.example.com", ""), domain("API.Example.com", ""), domain("_srv.a-b.example", ""), domain(longest, ""),
		domain(longest+"a", field+".domain"), domain("a."+part+"a", field+".domain"), domain("localhost", field+".domain"), domain("a..b", field+".domain"),
		domain("a.example.", field+".domain"), domain("*.example.com", field+".domain"), domain("-a.example", field+".domain"),
		domain("a-.example", field+".domain"), domain("192.0.2.1", field+".domain"), domain("2001:db8::1", field+".domain"), domain("a.1", field+".domain"),
		domain("ä.example", field+".domain"), domain("a b.example", field+".domain"), domain("a.example\n", field+".domain"),
		cidr("203.0.113.0/24", ""), cidr("203.0.113.7/32", ""), cidr("0.0.0.0/0", ""), cidr("2001:db8::/32", ""),
		cidr("203.0.113.7/24", field+".cidr"), cidr("203.0.113.7", field+".cidr"), cidr("203.0.113.0/33", field+".cidr"),
		cidr("203.0.113.0/024", field+".cidr"), cidr("2001:DB8::/32", field+".cidr"), cidr("2001:db8:0::/32", field+".cidr"),
		cidr("::ffff:203.0.113.0/120", field+".cidr"), cidr("fe80::%eth0/64", field+".cidr"), cidr("-1/8", field+".cidr"),
		ports("none", field+".ports"), ports("ends", "", 1, 65535), ports("zero", field+".ports[0]", 0), ports("too high", field+".ports[1]", 1, 65536),
		ports("negative", field+".ports[0]", -1), ports("twice", "", 443, 443, 80),
		ports("most", "", manyPorts(themis.MaxPorts)...), ports("one too many", field+".ports", manyPorts(themis.MaxPorts+1)...),
	}
}

func clip(s string) string {
	if len(s) > 20 {
		s = fmt.Sprintf("%s… (%d bytes)", s[:20], len(s))
	}
	return fmt.Sprintf("%q", s)
}
