package launcher

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// call is a system call as a filter sees it.
type call struct {
	arch, number uint32
	args         [6]uint64
}

// run is the filter's verdict. The package's machine reads words as networks
// order them, so the data is laid out so, word by word.
func (c call) run(t interface{ Fatal(...any) }, vm *bpf.VM) verdict {
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNumber:], c.number)
	binary.BigEndian.PutUint32(data[offArch:], c.arch)
	for i, a := range c.args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[offArgs+8*i+4:], uint32(a>>32))
	}
	v, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return verdict(uint32(v))
}

// want is what the rules say, by reading them.
func want(info *arch.Info, rules []rule, c call) verdict {
	if c.arch != uint32(info.ID) || c.number >= 0x40000000 {
		return kill
	}
	for _, r := range rules {
		if n, known := info.SyscallNames[r.name]; !known || uint32(n) != c.number {
			continue
		}
		if len(r.when) == 0 {
			return r.then
		}
		for _, alternative := range r.when {
			if !slices.ContainsFunc(alternative, func(k condition) bool { return !k.holds(c.args[k.arg]) }) {
				return r.then
			}
		}
		return r.otherwise
	}
	return refuse
}

func (c condition) holds(v uint64) bool {
	switch c.is {
	case equal:
		return v == c.value
	case allSet:
		return v&c.value == c.value
	case noneSet:
		return v>>32 == 0 && v&c.value == 0
	case not32:
		return v>>32 == 0 && v != c.value
	}
	return false
}

// The filter says for every call what its rules say. Numbers and arguments are
// drawn from one another's values, where mix-ups would show.
func TestFilterMatchesItsRules(t *testing.T) {
	for _, machine := range []string{"amd64", "arm64"} {
		t.Run(machine, func(t *testing.T) {
			info, err := arch.GetInfo(machine)
			if err != nil {
				t.Fatal(err)
			}
			const addr = 0x7f12_3456_789a
			rs := rules([]string{"ioctl", "kill", "accept4", "seccomp", "nonsense"}, 4711, addr)
			prog, err := program(info, rs)
			if err != nil {
				t.Fatal(err)
			}
			vm, err := bpf.NewVM(prog)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bpf.Assemble(prog); err != nil {
				t.Fatal(err)
			}
			values := []uint64{0, 1, 4711, addr, addr + 1, addr | 1<<63, unix.CLONE_THREAD, unix.CLONE_THREAD | unix.CLONE_NEWUSER, 1 << 32, unix.TIOCSTI, 1<<32 | unix.TIOCSTI, tioclinux, unix.TUNSETPERSIST, unix.SIOCSIFHWADDR, ^uint64(0)}
			values = append(values, prctlOptions...)
			values = append(values, fcntlCommands...)
			var numbers []uint32
			for _, n := range info.SyscallNames {
				numbers = append(numbers, uint32(n))
				values = append(values, uint64(n))
			}
			slices.Sort(numbers)
			slices.Sort(values)
			rapid.Check(t, func(t *rapid.T) {
				c := call{arch: uint32(info.ID), number: rapid.SampledFrom(numbers).Draw(t, "number")}
				switch rapid.IntRange(0, 9).Draw(t, "kind") {
				case 0:
					c.arch = rapid.Uint32().Draw(t, "arch")
				case 1:
					c.number = rapid.Uint32().Draw(t, "any number")
				case 2, 3, 4:
					r := rapid.SampledFrom(rs).Filter(func(r rule) bool { _, ok := info.SyscallNames[r.name]; return ok && r.when != nil }).Draw(t, "rule")
					c.number = uint32(info.SyscallNames[r.name])
				}
				for i := range c.args {
					if rapid.Bool().Draw(t, "telling") {
						c.args[i] = rapid.SampledFrom(values).Draw(t, "value")
					} else {
						c.args[i] = rapid.Uint64().Draw(t, "any")
					}
				}
				if have, want := c.run(t, vm), want(info, rs, c); have != want {
					t.Fatalf("%s(%#x): %#x, want %#x", info.SyscallNumbers[int(c.number)], c.args, have, want)
				}
			})
		})
	}
}

// No table can let a call through that none may have.
func TestNoTableAllowsTheForbidden(t *testing.T) {
	info, err := arch.GetInfo("amd64")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range slices.Concat(deadly, refused) {
		if slices.Contains(base, n) {
			t.Errorf("%s is in the base", n)
		}
		if validSyscalls([]string{n}) == nil {
			t.Errorf("%s is taken in a table", n)
		}
		if _, known := info.SyscallNames[n]; !known && n != "socketcall" && !strings.HasPrefix(n, "mount_set") {
			t.Errorf("%s is no system call of this machine", n)
		}
	}
	for _, n := range base {
		if _, known := info.SyscallNames[n]; !known {
			t.Errorf("%s in the base is no system call of this machine", n)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a) b) S 2 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99 0 0\n"))
	f.Add([]byte("1 ()"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if st, err := parseStat(b); err == nil && st.state == 0 {
			t.Errorf("%q has no state", b)
		}
	})
}

func TestParseStat(t *testing.T) {
	st, err := parseStat([]byte("1 (a) Z 7 (b) S 2 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99 0 0\n"))
	if err != nil || st != (stat{state: 'S', ppid: 2, start: 99}) {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestTopmost(t *testing.T) {
	have := topmost([]string{"/usr/lib/x", "/usr/lib", "/usr/lib64", "/usr/lib-a/b", "/usr/lib", "/a/b", "/a"})
	if want := []string{"/a", "/usr/lib", "/usr/lib-a/b", "/usr/lib64"}; !slices.Equal(have, want) {
		t.Errorf("%v", have)
	}
	rapid.Check(t, func(t *rapid.T) {
		paths := rapid.SliceOf(rapid.StringMatching(`(/[ab-]{1,2}){1,3}`)).Draw(t, "paths")
		top := topmost(paths)
		for _, p := range paths {
			if !slices.ContainsFunc(top, func(d string) bool { return d == p || strings.HasPrefix(p, d+"/") }) {
				t.Fatalf("%s is not shown by %v", p, top)
			}
		}
		for _, a := range top {
			if slices.ContainsFunc(top, func(b string) bool { return strings.HasPrefix(b, a+"/") }) {
				t.Fatalf("%v has one inside another", top)
			}
		}
	})
}
