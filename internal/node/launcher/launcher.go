// Package launcher is the starter of VMMs: it puts each into a session of its
// own and confines it, so that a guest that breaks out of its VM finds nothing.
//
// Three processes follow one another. The agent re-executes its own binary as
// the outer stage (argv[0] is Name), which stays for the VM's life: it holds
// the lifeline, keeps the VMM's last words, waits for it and writes exit.json.
// The outer stage executes the binary once more as the inner stage, inside new
// namespaces, which takes away whatever the VMM does not need and then becomes
// the VMM:
//
//	agent ── Start ──▶ outer stage ──▶ inner stage = VMM
//	           ▲  report, layer by layer  │
//	           └──────────────────────────┘
//
// The end of the outer stage, however it comes, ends the VMM: the parent-death
// signal is set last, and the VMM has no way to clear it. Without a lifeline
// both outlive the agent; a later agent finds them by the files in Spec.Dir or
// by pid, start time and boot ID.
//
// What is told of a layer is what happened to it, reported by the stage that
// applied it, never what was asked for. The layers are in layers.go, the
// system calls in seccomp.go.
//
// Not covered: an exec makes a process dumpable again, so other processes of
// the VMM's own user may trace it, which is why root's agent gives each VMM a
// user of its own; an ordinary user's VMM keeps that user's groups, which only
// Landlock and the private root make useless; and without a mount namespace a
// VMM reads its files where they lie, so its user must be able to.
package launcher

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
)

// Name is argv[0] of the outer stage, and innerName that of the inner one.
const (
	Name      = "tartarus-launcher"
	innerName = "tartarus-launcher-inner"
)

// Main runs a stage of the launcher and does not return, if that is what this
// process was started as; otherwise it returns false at once. Every main whose
// program calls Start calls it before anything else.
func Main() bool {
	if len(os.Args) == 0 {
		return false
	}
	switch os.Args[0] {
	case Name:
		os.Exit(outerMain())
	case innerName:
		os.Exit(innerMain())
	}
	return false
}

// Spec says what to start and how. Start copies what it needs: files stay the
// caller's and may be closed when it has returned.
type Spec struct {
	Argv []string // Argv[0] is the absolute path of the VMM
	Env  []string // the VMM's whole environment; never a secret
	Dir  string   // an existing private folder of this VM, absolute; the launcher writes launch.json, stderr and exit.json there

	// ReadOnly are files and folders of the host that the VMM may read, at the
	// same path; all others do not exist for it. Argv[0] need not be listed;
	// its libraries do.
	ReadOnly []string

	// Devices are device nodes that the VMM may open, such as /dev/kvm.
	Devices []string

	// Writable are files of the host that the VMM may read, write and cut, at
	// the same path: a disk of its own.
	Writable []string

	// Sockets is "" or the working folder of a VMM that makes Unix sockets of
	// its own there: existing, and the VMM's to write. Sockets are all that it
	// can make in it, and it still connects to nobody. Such a VMM may signal
	// its own threads by tkill, where a PID namespace shows it no others.
	Sockets string

	// Files become descriptors 3, 4, … of the VMM, in the mode that they have
	// (os.Pipe and net make non-blocking ones). 0 is /dev/null, 1 and 2 go
	// to the file stderr in Dir, of which the last StderrBytes are kept.
	Files []*os.File

	// OwnFiles lets the VMM open its own descriptors once more, by
	// /proc/self/fd: for what it takes by path alone. All that it sees of
	// /proc then is itself.
	OwnFiles bool

	// Hold are files that the outer stage keeps open for the VMM's life, such
	// as a locked one. The VMM does not get them.
	Hold []*os.File

	// Jail is nil, or Argv is Firecracker's jailer, which confines instead of
	// the inner stage: see there.
	Jail *Jail

	// UID and GID are what the VMM runs as when the agent is root, with no
	// other groups than its devices'. They must not be 0 then, or the layer
	// own_uid is missing. Ignored otherwise.
	UID, GID int

	// Syscalls are the names of the system calls that the VMM may use on top
	// of BaseSyscalls. Names that this architecture lacks are skipped; one
	// that is never allowed is an error.
	Syscalls []string

	// Lifeline is nil, or the VMM ends when its other end closes.
	Lifeline *os.File

	// Network is nil, and the VMM is born in an empty network namespace; or
	// the namespace it is born in, which lives at least as long as it. Only
	// root can say so.
	Network *os.File

	// Cgroup is nil, or both stages and the VMM are born in it. It stays the
	// caller's, who removes it after the end. The outer stage takes some 4 MiB
	// of it and ten threads, for which its limits leave room.
	Cgroup *cgroup.Group

	Limits Limits

	// Require are layers without which Start fails with fault.Unsupported.
	Require []string
}

// Limits bound the VMM's resources (setrlimit). RLIMIT_CORE is always 0.
type Limits struct {
	OpenFiles    uint64 // 0: 256
	FileSize     uint64 // bytes that one file may grow to; 0: no limit
	AddressSpace uint64 // bytes; 0: no limit
}

const defaultOpenFiles = 256

// StderrBytes bounds what is kept of a VMM's standard error.
const StderrBytes = 64 << 10

const (
	maxFiles = 64
	maxPlan  = 1 << 20 // bytes of JSON
)

// Validate says what is wrong with the spec, as fault.InvalidArgument.
func (s *Spec) Validate() error {
	if len(s.Argv) == 0 || !filepath.IsAbs(s.Argv[0]) {
		return fault.Invalid("argv", "give the absolute path of the VMM", "the VMM's path is not absolute")
	}
	for _, a := range append(append([]string{}, s.Argv...), s.Env...) {
		if strings.ContainsRune(a, 0) {
			return fault.Invalid("argv", "remove the zero byte", "an argument or variable has a zero byte in it")
		}
	}
	if !filepath.IsAbs(s.Dir) {
		return fault.Invalid("dir", "give an existing folder", "the VM's folder %q is not an absolute path", s.Dir)
	}
	if fi, err := os.Stat(s.Dir); err != nil || !fi.IsDir() {
		return fault.Invalid("dir", "give an existing folder", "the VM's folder %q does not exist", s.Dir)
	}
	if err := validPaths("read_only", s.ReadOnly); err != nil {
		return err
	}
	if err := validPaths("devices", s.Devices); err != nil {
		return err
	}
	if err := validPaths("writable", s.Writable); err != nil {
		return err
	}
	if s.Sockets != "" {
		if err := validPaths("sockets", []string{s.Sockets}); err != nil {
			return err
		}
	}
	if err := s.Jail.validate(); err != nil {
		return err
	}
	if err := validNetwork(s.Network); err != nil {
		return err
	}
	if len(s.Files)+len(s.Hold) > maxFiles {
		return fault.Invalid("files", "hand in fewer", "%d files are more than %d", len(s.Files)+len(s.Hold), maxFiles)
	}
	for i, f := range append(slices.Clone(s.Files), s.Hold...) {
		if f == nil {
			return fault.Invalid(fmt.Sprintf("files[%d]", i), "hand in an open file", "file %d is nil", i)
		}
	}
	if s.UID < 0 || s.GID < 0 || s.UID > math.MaxInt32 || s.GID > math.MaxInt32 {
		return fault.Invalid("uid", "give numbers of an unused user", "uid %d or gid %d is out of bounds", s.UID, s.GID)
	}
	return validSyscalls(s.Syscalls)
}

func validPaths(field string, paths []string) error {
	for i, p := range paths {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || p == "/" || strings.ContainsRune(p, 0) {
			return fault.Invalid(fmt.Sprintf("%s[%d]", field, i), "give a clean absolute path below /", "%q cannot be shown to a VMM", p)
		}
	}
	return nil
}
