// Package distro is what Tartarus takes from its host's distribution: the
// programs that it runs, and the names of packages, which differ.
package distro

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Host is the distribution of a host, as /etc/os-release names it.
type Host struct {
	ID       string   // debian, ubuntu, …
	Like     []string // the distributions it descends from
	Version  string   // 12, 24.04
	Codename string   // bookworm, noble
	Arch     string   // as Go names it
}

// Detect reads this host's /etc/os-release. A host without one has no ID.
func Detect() Host {
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		h := Parse(f)
		f.Close()
		return h
	}
	return Host{Arch: runtime.GOARCH}
}

// Parse reads an os-release file.
func Parse(r io.Reader) Host {
	h := Host{Arch: runtime.GOARCH}
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok {
			continue
		}
		if v, err := strconv.Unquote(value); err == nil {
			value = v
		}
		value = strings.Trim(value, "'")
		switch key {
		case "ID":
			h.ID = value
		case "ID_LIKE":
			h.Like = strings.Fields(value)
		case "VERSION_ID":
			h.Version = value
		case "VERSION_CODENAME":
			h.Codename = value
		}
	}
	return h
}

// family is the row of a table for h: its own, or that of what it is like.
func family[V any](h Host, table map[string]V) (V, bool) {
	for _, id := range append([]string{h.ID}, h.Like...) {
		if v, ok := table[id]; ok {
			return v, true
		}
	}
	var none V
	return none, false
}

// Kernel says which packages have the guest's kernel.
type Kernel struct {
	Meta    string // the package whose dependency is the newest kernel
	Image   string // what that dependency's name begins with; it has boot/vmlinuz-…
	Modules string // what the name of the package with the modules begins with, a dependency of the image's; "" if they are in the image's
}

var kernels = map[string]map[string]Kernel{
	"debian": {
		"amd64": {Meta: "linux-image-cloud-amd64", Image: "linux-image-"},
		"arm64": {Meta: "linux-image-cloud-arm64", Image: "linux-image-"},
	},
	"ubuntu": {
		"amd64": {Meta: "linux-image-virtual", Image: "linux-image-", Modules: "linux-modules-"},
		"arm64": {Meta: "linux-image-virtual", Image: "linux-image-", Modules: "linux-modules-"},
	},
}

// Kernel is where a host of this kind gets the guest's kernel.
func (h Host) Kernel() (Kernel, error) {
	arches, _ := family(h, kernels)
	k, ok := arches[h.Arch]
	if !ok {
		return Kernel{}, fault.New(fault.Unsupported, "no kernel package is known for %q on %s", h.ID, h.Arch).
			WithHint("name an ELF kernel (vmlinux) with a PVH note by --kernel, and its modules by --modules")
	}
	return k, nil
}

// debianSuites are the suites that the template debian is made of, oldest
// first; the newest is not for hosts whose keyring is older.
var debianSuites = []string{"bookworm", "trixie"}

// DebianSuite is the suite that the template debian is made of on h: h's own
// where it is Debian, else the oldest, whose keys every keyring has.
func (h Host) DebianSuite() string {
	if h.ID == "debian" && slices.Contains(debianSuites, h.Codename) {
		return h.Codename
	}
	return debianSuites[0]
}

// Tool is a program that Tartarus starts on its host.
type Tool struct {
	Name    string // the program, or the file if it begins with /
	Package string
	For     string // what cannot be done without it
}

var tools = []Tool{
	{Name: "qemu-system-x86_64", Package: "qemu-system-x86", For: "running VMs"},
	{Name: "apt-get", Package: "apt", For: "downloading the guest's kernel"},
	{Name: "apt-cache", Package: "apt", For: "finding the guest's kernel"},
	{Name: "dpkg-deb", Package: "dpkg", For: "unpacking the guest's kernel"},
	{Name: "mke2fs", Package: "e2fsprogs", For: "making scratch disks"},
	{Name: "busybox", Package: "busybox-static", For: "template base"},
	{Name: "mmdebstrap", Package: "mmdebstrap", For: "template debian"},
}

// onArch replaces what has another name on another architecture.
var onArch = map[string]map[string]Tool{
	"arm64": {"qemu-system-x86_64": {Name: "qemu-system-aarch64", Package: "qemu-system-arm", For: "running VMs"}},
}

// more are tools that only some distributions need.
var more = map[string][]Tool{
	"ubuntu": {{Name: "/usr/share/keyrings/debian-archive-keyring.gpg", Package: "debian-archive-keyring", For: "template debian"}},
}

// unprivileged are tools that only an ordinary user needs.
var unprivileged = []Tool{
	{Name: "newuidmap", Package: "uidmap", For: "template debian without root"},
}

// Tools are the programs that Tartarus needs on h, for root or not.
func (h Host) Tools(root bool) []Tool {
	var out []Tool
	for _, t := range tools {
		if other, ok := onArch[h.Arch][t.Name]; ok {
			t = other
		}
		out = append(out, t)
	}
	extra, _ := family(h, more)
	if h.ID == "debian" {
		extra = nil
	}
	out = append(out, extra...)
	if !root {
		out = append(out, unprivileged...)
	}
	return out
}

// Missing are those of Tools that this host lacks.
func (h Host) Missing(root bool) []Tool {
	return slices.DeleteFunc(h.Tools(root), func(t Tool) bool {
		_, err := Look(t.Name)
		return err == nil
	})
}

// InstallCommand is the command that installs the packages of tools; "" for
// none.
func InstallCommand(tools []Tool) string {
	var packages []string
	for _, t := range tools {
		packages = append(packages, t.Package)
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	if len(packages) == 0 {
		return ""
	}
	return "apt-get install --no-install-recommends " + strings.Join(packages, " ")
}

// sbin are where Debian keeps programs that are not on an ordinary user's
// PATH although everybody may run them.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// Look finds a program, on the PATH or in the folders of system programs; a
// name that is a path stands for itself. What is missing is Unsupported, with
// the command that installs it as the hint.
func Look(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		if _, err := os.Stat(name); err == nil {
			return name, nil
		}
		return "", missing(name)
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range sbin {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", missing(name)
}

func missing(name string) error {
	e := fault.New(fault.Unsupported, "this host has no %s", name)
	all := slices.Concat(tools, unprivileged)
	for _, t := range onArch {
		for _, x := range t {
			all = append(all, x)
		}
	}
	for _, t := range more {
		all = append(all, t...)
	}
	for _, t := range all {
		if t.Name == name {
			return e.WithHint("sudo %s", InstallCommand([]Tool{t}))
		}
	}
	return e
}
