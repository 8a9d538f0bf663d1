// Command probe stands in a VMM's place and tries what an escaped guest would.
//
// Its arguments are attempts, "name" or "name=argument". It writes one JSON
// line {"attempt", "error"} for each to descriptor 3 and exits with 7.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	for _, a := range os.Args[1:] {
		name, arg, _ := strings.Cut(a, "=")
		f, ok := attempts[name]
		if !ok {
			fmt.Fprintln(os.Stderr, "unknown attempt", name)
			os.Exit(2)
		}
		line := map[string]string{"attempt": name}
		switch text, err := f(arg); {
		case err != nil:
			line["error"] = err.Error()
		case text != "":
			line["text"] = text
		}
		b, _ := json.Marshal(line)
		if _, err := unix.Write(3, append(b, '\n')); err != nil {
			os.Exit(3)
		}
	}
	os.Exit(7)
}

func list(p string) (string, error) { _, err := os.ReadDir(p); return "", err }

func try(err error) (string, error) { return "", err }

// sys makes one system call with made-up arguments.
func sys(n uintptr, args ...uintptr) (string, error) {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, e := unix.RawSyscall6(n, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
		return "", e
	}
	return "", nil
}

func read(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	var b [16]byte
	_, err = unix.Read(fd, b[:])
	return "", err
}

func write(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT, 0o600)
	if err != nil {
		return "", err
	}
	_, err = unix.Write(fd, []byte("x"))
	return "", err
}

func connect(domain int, sa unix.Sockaddr) (string, error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	return "", unix.Connect(fd, sa)
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		os.Exit(4)
	}
	return n
}

var attempts = map[string]func(string) (string, error){
	"read":          read,
	"write":         write,
	"read_home":     read,
	"read_mounts":   read,
	"read_shadow":   read,
	"write_new":     write,
	"list_tmp":      list,
	"list":          list,
	"mkdir":         func(p string) (string, error) { return try(unix.Mkdir(p, 0o700)) },
	"unlink":        func(p string) (string, error) { return try(unix.Unlink(p)) },
	"unix_path":     func(p string) (string, error) { return connect(unix.AF_UNIX, &unix.SockaddrUnix{Name: p}) },
	"unix_abstract": func(p string) (string, error) { return connect(unix.AF_UNIX, &unix.SockaddrUnix{Name: "@" + p}) },
	"loopback": func(p string) (string, error) {
		return connect(unix.AF_INET, &unix.SockaddrInet4{Port: number(p), Addr: [4]byte{127, 0, 0, 1}})
	},
	"netlink":  func(string) (string, error) { return sys(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 0) },
	"sendto":   sendto,
	"signal":   func(p string) (string, error) { return try(unix.Kill(number(p), 0)) },
	"tgkill":   func(p string) (string, error) { return try(unix.Tgkill(number(p), number(p), 0)) },
	"everyone": func(string) (string, error) { return try(unix.Kill(-1, 0)) },
	"memory":   func(p string) (string, error) { return read("/proc/" + p + "/mem") },
	"fork":     func(string) (string, error) { return forks() },
	"clone3":   func(string) (string, error) { return sys(unix.SYS_CLONE3, 0, 0) },
	"setuid":   func(string) (string, error) { return sys(unix.SYS_SETRESUID, 0, 0, 0) },
	"setsid":   func(string) (string, error) { return sys(unix.SYS_SETSID) },
	"survive":  func(string) (string, error) { return try(unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)) },
	"dumpable": func(string) (string, error) { return try(unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)) },
	"setown": func(p string) (string, error) {
		_, err := unix.FcntlInt(3, unix.F_SETOWN, number(p))
		return "", err
	},
	"io_uring":    func(string) (string, error) { return sys(unix.SYS_IO_URING_SETUP, 8, 0) },
	"userfaultfd": func(string) (string, error) { return sys(unix.SYS_USERFAULTFD, 0) },
	"limits": func(p string) (string, error) {
		return try(unix.Prlimit(number(p), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: 1}, nil))
	},
	"more_files": func(string) (string, error) {
		return try(unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}, nil))
	},
	"core": func(string) (string, error) {
		return try(unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}, nil))
	},
	// These end the VMM.
	"execve":   func(string) (string, error) { return try(unix.Exec("/proc/self/exe", []string{"x"}, nil)) },
	"execveat": func(string) (string, error) { return sys(unix.SYS_EXECVEAT) },
	"ptrace": func(p string) (string, error) {
		return sys(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(number(p)))
	},
	"process_vm_readv":  func(p string) (string, error) { return sys(unix.SYS_PROCESS_VM_READV, uintptr(number(p))) },
	"process_vm_writev": func(p string) (string, error) { return sys(unix.SYS_PROCESS_VM_WRITEV, uintptr(number(p))) },
	"bpf":               func(string) (string, error) { return sys(unix.SYS_BPF) },
	"perf_event_open":   func(string) (string, error) { return sys(unix.SYS_PERF_EVENT_OPEN) },
	"keyctl":            func(string) (string, error) { return sys(unix.SYS_KEYCTL) },
	"setns":             func(string) (string, error) { return sys(unix.SYS_SETNS, 3, 0) },
	"unshare":           func(string) (string, error) { return sys(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) },
	"mount":             func(string) (string, error) { return sys(unix.SYS_MOUNT) },
	"chroot":            func(string) (string, error) { return sys(unix.SYS_CHROOT) },

	// These tell.
	"descriptors": func(string) (string, error) { return descriptors() },
	"pid":         func(string) (string, error) { return strconv.Itoa(os.Getpid()), nil },
	"ids": func(string) (string, error) {
		return fmt.Sprint(os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid()), nil
	},
	"hostname": func(string) (string, error) {
		var u unix.Utsname
		err := unix.Uname(&u)
		return unix.ByteSliceToString(u.Nodename[:]), err
	},
	"env": func(string) (string, error) { return strings.Join(os.Environ(), ","), nil },
	"stderr": func(n string) (string, error) {
		for i := range number(n) {
			fmt.Fprintf(os.Stderr, "line %d\n", i)
		}
		return "", nil
	},
	"wait": func(string) (string, error) {
		waiting()
		_, err := unix.Read(4, make([]byte, 1))
		return "", err
	},
	"forever": func(string) (string, error) {
		waiting()
		for {
			_, _ = unix.Ppoll(nil, nil, nil)
		}
	},
}

// waiting answers first: whoever reads it knows that the VMM runs.
func waiting() {
	if _, err := unix.Write(3, []byte(`{"attempt":"waiting"}`+"\n")); err != nil {
		os.Exit(3)
	}
}

// forks tries to make a process in both old ways.
func forks() (string, error) {
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e == 0 {
		if pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) //nolint:errcheck // ends
		}
		return "", nil
	}
	return "", e
}

func sendto(path string) (string, error) {
	p := append([]byte{1, 0}, path...) // AF_UNIX, little endian
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, 3, 0, 0, 0, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if e == 0 {
		return "", nil
	}
	return "", errors.New(e.Error())
}

// descriptors are those that are open, without asking /proc.
func descriptors() (string, error) {
	var out []string
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil {
			out = append(out, strconv.Itoa(fd))
		}
	}
	return strings.Join(out, " "), nil
}
