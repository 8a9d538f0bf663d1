package qemu

// syscalls are the system calls that QEMU needs beyond launcher.BaseSyscalls:
// found with strace on 7.2, from start to quit, with two virtual CPUs under
// TCG, disks, channel and monitor as args.go has them.
//
// Left out on purpose, though QEMU tries them and goes on without:
// io_uring_setup (falls back to epoll), memfd_create (only asked whether it is
// there), set_mempolicy and get_mempolicy (no NUMA here), unlink (it would
// remove the sockets that were handed in).
var syscalls = []string{
	// its sockets and their connections; never socket, connect, bind
	"accept4", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom", "recvmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
	// disks
	"fallocate", "fdatasync", "fstatfs", "fsync", "ftruncate", "statfs",
	// looking for modules and firmware
	"chdir", "fchdir", "getdents",
	// threads, timers, signals of its own
	"kill", "membarrier", "rt_tgsigqueueinfo", "sigaltstack", "signalfd4", "timer_create", "timer_delete", "timer_settime", "timerfd_create", "timerfd_settime",
	// its own -sandbox, on top of ours
	"seccomp",
	// block devices answer to it, and TCG asks the console's size
	"ioctl",
}

// syscallsKVM are those needed beyond that with /dev/kvm. KVM itself is all
// ioctl and mmap.
var syscallsKVM = []string{"eventfd"}
