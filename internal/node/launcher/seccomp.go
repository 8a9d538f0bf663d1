package launcher

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// BaseSyscalls is what every program needs to be loaded, to run threads, and
// to read and write what it holds. It is a copy.
func BaseSyscalls() []string { return slices.Clone(base) }

var base = []string{
	"access", "arch_prctl", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "clone", "close", "close_range", "dup", "dup2", "dup3",
	"epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd2", "exit", "exit_group", "faccessat", "faccessat2",
	"fcntl", "fstat", "futex", "getcwd", "getdents64", "getegid", "geteuid", "getgid", "getpid", "getppid", "getrandom", "getrlimit", "gettid",
	"gettimeofday", "getuid", "lseek", "lstat", "madvise", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "open", "openat",
	"pipe2", "poll", "ppoll", "prctl", "pread64", "preadv", "preadv2", "prlimit64", "pselect6", "pwrite64", "pwritev", "pwritev2", "read",
	"readlink", "readlinkat", "readv", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn",
	"rt_sigsuspend", "rt_sigtimedwait", "sched_getaffinity", "sched_yield", "select", "set_robust_list", "set_tid_address", "sigaltstack",
	"stat", "statx", "sysinfo", "tgkill", "uname", "write", "writev",
}

// A call that is not allowed fails with EPERM: libraries try things in good
// faith (nscd, io_uring, affinity) and go on without. Those here end the VMM:
// none of its libraries calls them, so whoever does has taken it over, and
// must not get a second guess.
var deadly = []string{
	"acct", "add_key", "bpf", "chroot", "clock_settime", "delete_module", "execveat", "finit_module", "fsconfig", "fsmount", "fsopen",
	"fspick", "init_module", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "mount", "mount_setattr", "move_mount",
	"name_to_handle_at", "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd", "pivot_root", "process_vm_readv",
	"process_vm_writev", "ptrace", "quotactl", "reboot", "request_key", "setns", "settimeofday", "swapoff", "swapon", "umount2", "unshare",
}

// refused can be in no VMM's table either.
var refused = []string{
	"bind", "capset", "clone3", "connect", "execve", "fork", "io_uring_enter", "io_uring_register", "io_uring_setup", "pidfd_open",
	"pidfd_send_signal", "setfsgid", "setfsuid", "setgid", "setgroups", "setpgid", "setregid", "setresgid", "setresuid", "setreuid",
	"setsid", "setuid", "socket", "socketcall", "tkill", "userfaultfd", "vfork",
}

func validSyscalls(names []string) error {
	for i, n := range names {
		if slices.Contains(deadly, n) || slices.Contains(refused, n) {
			return fault.Invalid(fmt.Sprintf("syscalls[%d]", i), "leave it out", "no VMM may be allowed the system call %s", n)
		}
	}
	return nil
}

// The commands of fcntl that are allowed: none that has signals sent.
var fcntlCommands = []uint64{
	unix.F_DUPFD, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GETLK, unix.F_SETLK, unix.F_SETLKW, 36, 37, 38, // the last three: locks of open files
	unix.F_DUPFD_CLOEXEC, unix.F_GETPIPE_SZ, unix.F_ADD_SEALS, unix.F_GET_SEALS,
}

// The options of prctl that are allowed: names, timer slack, more seccomp. Not
// the parent-death signal, by which the VMM ends with its outer stage.
var prctlOptions = []uint64{
	unix.PR_SET_NAME, unix.PR_GET_NAME, unix.PR_GET_SECCOMP, unix.PR_SET_SECCOMP, unix.PR_CAPBSET_READ, unix.PR_SET_TIMERSLACK,
	unix.PR_GET_TIMERSLACK, unix.PR_MCE_KILL, unix.PR_SET_NO_NEW_PRIVS, unix.PR_GET_NO_NEW_PRIVS, unix.PR_SET_VMA, unix.PR_SET_THP_DISABLE,
}

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

// conditions are the alternatives under which a call is allowed whose name
// alone says too little; nil for all others. pid is the VMM's own.
func conditions(name string, pid uint64) [][]condition {
	switch name {
	case "clone": // threads only; their flags are the first argument on amd64 and arm64
		return [][]condition{{{arg: 0, is: allSet, value: unix.CLONE_THREAD}, {arg: 0, is: noneSet, value: newNamespaces}}}
	case "kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo":
		return oneOf(0, pid)
	case "prlimit64":
		return oneOf(0, 0)
	case "prctl":
		return oneOf(0, prctlOptions...)
	case "fcntl":
		return oneOf(1, fcntlCommands...)
	case "ioctl":
		var none []condition
		for _, r := range ioctlRequests {
			none = append(none, condition{arg: 1, is: not32, value: r})
		}
		return [][]condition{
			none,
			// KVM's requests, which QEMU keeps in an int whose sign fills the
			// register. The kernel looks at 32 bits, of which bit 31 sets them
			// apart from those refused.
			{{arg: 1, is: allSet, value: 1 << 31}},
		}
	}
	return nil
}

const tioclinux = 0x541c

// The requests of ioctl that are refused: typing into a terminal; and, to who
// holds a TAP, changing what the host knows it by, or having it outlive its
// VMM. The kernel asks for no capability there.
var ioctlRequests = []uint64{
	unix.TIOCSTI, tioclinux,
	unix.TUNSETPERSIST, unix.TUNSETOWNER, unix.TUNSETGROUP, unix.TUNSETLINK, unix.TUNSETCARRIER, unix.TUNSETQUEUE, unix.SIOCSIFHWADDR,
}

func oneOf(arg int, values ...uint64) [][]condition {
	var out [][]condition
	for _, v := range values {
		out = append(out, []condition{{arg: arg, is: equal, value: v}})
	}
	return out
}

// rules are the filter of a VMM. The only execve it lets through is one whose
// first argument is the address execAddr, which nobody can know but the stage
// that chose it: its memory is gone with its exec. A wrong guess kills.
func rules(names []string, pid int, execAddr uintptr) []rule {
	all := slices.Concat(base, names)
	slices.Sort(all)
	var out []rule
	for _, n := range slices.Compact(all) {
		out = append(out, rule{name: n, when: conditions(n, uint64(pid)), then: allow, otherwise: refuse})
	}
	out = append(out, rule{name: "execve", when: oneOf(0, uint64(execAddr)), then: allow, otherwise: kill})
	for _, n := range deadly {
		out = append(out, rule{name: n, then: kill})
	}
	// glibc falls back to clone, whose flags can be seen, only on ENOSYS.
	return append(out, rule{name: "clone3", then: absent})
}

// installFilter puts it on the calling thread.
func installFilter(filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return fmt.Errorf("installing the filter: %w", e)
	}
	return nil
}
