package launcher

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// inner is the inner stage: the VMM to be.
type inner struct {
	plan   *plan
	report int
	gate   int
	layers layers
	abi    int
}

// innerMain takes away what the VMM does not need, and becomes it. It returns
// only when that fails.
func innerMain() int {
	runtime.LockOSThread()
	if len(os.Args) < 2 {
		return 1
	}
	files, err := strconv.Atoi(os.Args[1])
	if err != nil || files < 0 || files > maxFiles {
		return 1
	}
	first := firstFile + files
	in := &inner{report: first + innerReport, gate: first + innerGate}
	err = in.confine(first)
	if err == nil {
		err = in.become()
	}
	r := report{Err: err.Error(), Kind: fault.KindOf(err).String()}
	var f *fault.Error
	if errors.As(err, &f) {
		r.Hint = f.Hint
	}
	_ = sendReport(in.report, r)
	return 1
}

// confine applies the layers, those that need rights first.
func (in *inner) confine(firstOwn int) error {
	if err := closeOnExec(firstOwn); err != nil {
		return err
	}
	var err error
	if in.plan, err = readPlan(firstOwn + innerPlan); err != nil {
		return err
	}
	pl, l := in.plan, &in.layers
	l.add(pl.On...)
	for _, m := range pl.Missing {
		l.miss(m[0], m[1])
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil { // until the exec, which sets it again
		return fmt.Errorf("clearing dumpable: %w", err)
	}
	if pl.Jail != nil {
		return in.prepareJail()
	}
	linker, err := interpreter(pl.Argv[0])
	if err != nil {
		return err
	}
	execute := []string{pl.Argv[0]}
	if linker != "" {
		execute = append(execute, linker)
	}
	if err := in.changeRoot(slices.Concat(pl.ReadOnly, execute)); err != nil {
		return err
	}
	unix.Umask(0o077)
	if err := setLimits(pl.Limits, l); err != nil {
		return err
	}
	if err := dropPrivileges(pl, l); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	l.add(LayerNoNewPrivs)
	if err := in.enterSockets(); err != nil {
		return err
	}
	for _, p := range slices.Concat(pl.ReadOnly, execute, pl.Writable) {
		if err := unix.Access(p, unix.R_OK); err != nil {
			return fault.Wrap(fault.Unsupported, err, "the VMM's user cannot read %s", p).
				WithHint("make the file readable for everyone, and give the agent the rights for a mount namespace")
		}
	}
	in.abi, err = restrictFiles(pl, execute, l)
	return err
}

// changeRoot hides the host's files, where namespaces allow it.
func (in *inner) changeRoot(readOnly []string) error {
	if !in.plan.OwnNS {
		in.layers.miss(LayerPrivateRoot, "there is no mount namespace")
		return nil
	}
	if err := unix.Sethostname([]byte("vmm")); err != nil {
		return fmt.Errorf("hiding the host's name: %w", err)
	}
	unix.Umask(0o022) // what is made here must be passable for the VMM's user
	if err := privateRoot(in.plan, readOnly); err != nil {
		in.layers.miss(LayerPrivateRoot, err.Error())
		return nil
	}
	in.layers.add(LayerPrivateRoot)
	return nil
}

func setLimits(m Limits, l *layers) error {
	if m.OpenFiles == 0 {
		m.OpenFiles = defaultOpenFiles
	}
	limits := []struct {
		name  string
		which int
		value uint64
	}{
		{"core", unix.RLIMIT_CORE, 0},
		{"msgqueue", unix.RLIMIT_MSGQUEUE, 0},
		{"nofile", unix.RLIMIT_NOFILE, m.OpenFiles},
		{"fsize", unix.RLIMIT_FSIZE, m.FileSize},
	}
	for _, r := range limits {
		if r.value == 0 && r.which == unix.RLIMIT_FSIZE {
			continue
		}
		var now unix.Rlimit
		if err := unix.Prlimit(0, r.which, nil, &now); err != nil {
			return fmt.Errorf("reading the limit of %s: %w", r.name, err)
		}
		v := min(r.value, now.Max)
		if err := unix.Prlimit(0, r.which, &unix.Rlimit{Cur: v, Max: v}, nil); err != nil {
			return fmt.Errorf("limiting %s: %w", r.name, err)
		}
	}
	l.add(LayerRlimits)
	return nil
}

// become makes this process end with the outer stage, puts the filter on and
// executes the VMM.
func (in *inner) become() error {
	// Every change of user clears it, so it comes last; the gate tells whether
	// the outer stage was gone before.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("setting the parent-death signal: %w", err)
	}
	fds := []unix.PollFd{{Fd: int32(in.gate), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 0); err != nil {
		return fmt.Errorf("looking for the outer stage: %w", err)
	} else if n != 0 {
		return errors.New("the outer stage is gone")
	}
	program, err := hide(in.plan.Argv[0])
	if err != nil {
		return err
	}
	argv, env := pointers(in.plan.Argv), pointers(in.plan.Env)
	var filter []unix.SockFilter
	var ferr error
	if in.plan.Jail == nil {
		filter, ferr = assemble(slices.Concat(rules(in.plan.Syscalls, os.Getpid(), uintptr(unsafe.Pointer(program))), in.socketRules()))
	}
	if a := in.plan.Limits.AddressSpace; a != 0 {
		if err := unix.Prlimit(0, unix.RLIMIT_AS, &unix.Rlimit{Cur: a, Max: a}, nil); err != nil {
			return fmt.Errorf("limiting the address space: %w", err)
		}
	}
	if ferr == nil && filter != nil {
		ferr = installFilter(filter)
	}
	switch {
	case ferr != nil:
		in.layers.miss(LayerSeccomp, ferr.Error())
	case filter != nil:
		in.layers.add(LayerSeccomp)
	}
	if name, why := in.layers.lacks(in.plan.Require); name != "" {
		return fault.New(fault.Unsupported, "the layer %s is required and cannot be had: %s", name, why).
			WithHint("run the agent with the rights for it, or lower the floor of isolation in the policy")
	}
	r := report{Exec: true, On: in.layers.on, ABI: in.abi}
	for _, n := range in.layers.order {
		r.Missing = append(r.Missing, [2]string{n, in.layers.missing[n]})
	}
	if err := sendReport(in.report, r); err != nil {
		return err
	}
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(program)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
	runtime.KeepAlive(argv)
	runtime.KeepAlive(env)
	return fault.Wrap(fault.Unsupported, e, "the VMM %s cannot be executed", in.plan.Argv[0]).
		WithHint("check that it is a program for this machine")
}

// hide puts a zero-terminated path at an address that is drawn by lot out of
// 2^28, in a mapping whose own address is the kernel's draw.
func hide(path string) (*byte, error) {
	const room = 1 << 28
	mem, err := unix.Mmap(-1, 0, room, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("hiding the path of the VMM: %w", err)
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("hiding the path of the VMM: %w", err)
	}
	at := binary.NativeEndian.Uint64(b[:]) % uint64(room-len(path)-1)
	copy(mem[at:], path) // the zero after it is there
	return &mem[at], nil
}

// pointers is an argument vector for execve.
func pointers(ss []string) []*byte {
	out := make([]*byte, 0, len(ss)+1)
	for _, s := range ss {
		b := append([]byte(s), 0)
		out = append(out, &b[0])
	}
	return append(out, nil)
}
