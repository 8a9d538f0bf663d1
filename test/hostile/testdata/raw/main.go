// Command raw is root inside a guest that speaks the host's protocol itself:
// it takes init's own stream to the host and writes frames to it. Its argument
// is what to say.
//
// The port of virtio-serial is init's alone, and so is the vsock connection;
// but root may take a descriptor out of any process, init too.
package main

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

func main() {
	if len(os.Args) != 2 {
		fail(errors.New("say what to do"))
	}
	do, ok := deeds[os.Args[1]]
	if !ok {
		fail(errors.New("there is no " + os.Args[1]))
	}
	if err := do(); err != nil {
		fail(err)
	}
}

// fail ends with a code that no test wants.
func fail(err error) {
	_, _ = os.Stderr.WriteString("raw: " + err.Error() + "\n")
	os.Exit(99)
}

// proc is the run's command, as both ends number it.
const proc = 1

var deeds = map[string]func() error{
	"unknown-process": func() error { return say(&guestwire.Data{Proc: 7, Flow: guestwire.Out, Bytes: []byte("x")}) },
	"wrong-offset": func() error {
		return say(&guestwire.Data{Proc: proc, Flow: guestwire.Out, Offset: 1 << 30, Bytes: []byte("x")})
	},
	"no-credit":    gush,
	"wrong-stream": func() error { return say(&guestwire.Data{Proc: proc, Flow: guestwire.In, Bytes: []byte("x")}) },
	"credit":       func() error { return say(&guestwire.Credit{Proc: proc, Flow: guestwire.In, Limit: 1 << 40}) },
	"replay":       func() error { return say(&guestwire.Started{Req: 2, Proc: proc}) },
	"reply":        func() error { return say(&guestwire.Reply{Req: 1 << 31}) },
	"version":      func() error { return say(&guestwire.HelloGuest{Version: 99, Generation: 9}) },
	"length": func() error {
		return raw([]byte{byte(guestwire.TypeData), 0xff, 0xff, 0xff})
	},
	"host-frame":   func() error { return say(&guestwire.Shutdown{Req: 1}) },
	"unknown-type": func() error { return raw([]byte{0x77, 0, 0, 0, 0xa5}) },
	"no-end-mark":  func() error { return raw([]byte{byte(guestwire.TypeReply), 7, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}) },
	"noise":        noise,
	"flood":        flood,
	"claim":        func() error { return say(&guestwire.Exit{Proc: proc}) },
	"second-exit": func() error {
		return say(&guestwire.Exit{Proc: proc, Code: 4}, &guestwire.Exit{Proc: proc})
	},
	"exit-of-another": func() error { return say(&guestwire.Exit{Proc: 2}) },
	"endless-output": func() error { // announced and never sent
		return say(&guestwire.Exit{Proc: proc, Code: 5, Out: 1 << 50, Err: 1 << 50})
	},
	"late-exit": late,
	"deaf":      deaf,
	"smash":     smash,
	"kernel":    kernel,
	"kexec":     kexec,
}

// say writes frames and then waits for what comes of it: on the host's side,
// not here.
func say(frames ...guestwire.Message) error {
	var b []byte
	for _, f := range frames {
		var err error
		if b, err = guestwire.Append(b, f); err != nil {
			return err
		}
	}
	return raw(b)
}

// gush sends output for ever, whatever credit there is.
func gush() error {
	stream, err := initsStream()
	if err != nil {
		return err
	}
	piece := make([]byte, guestwire.MaxData)
	for at := int64(0); ; at += guestwire.MaxData {
		b, err := guestwire.Append(nil, &guestwire.Data{Proc: proc, Flow: guestwire.Out, Offset: at, Bytes: piece})
		if err != nil {
			return err
		}
		if err := write(stream, b); err != nil {
			return err
		}
	}
}

func raw(b []byte) error {
	stream, err := initsStream()
	if err != nil {
		return err
	}
	if err := write(stream, b); err != nil {
		return err
	}
	return forever()
}

// forever waits for the end of the VM.
func forever() error {
	for {
		time.Sleep(time.Hour)
	}
}

// pieceBytes are written at once at most: the driver takes no more.
const pieceBytes = 32 << 10

func write(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b[:min(len(b), pieceBytes)])
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			time.Sleep(time.Millisecond)
		case err != nil:
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// noise writes random bytes for as long as that goes.
func noise() error {
	stream, err := initsStream()
	if err != nil {
		return err
	}
	random, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	for b := make([]byte, pieceBytes); ; {
		if _, err := random.Read(b); err != nil {
			return err
		}
		if err := write(stream, b); err != nil {
			return err
		}
	}
}

// flood says what is true, over and over for some seconds.
func flood() error {
	stream, err := initsStream()
	if err != nil {
		return err
	}
	var b []byte
	for len(b) < pieceBytes-100 {
		b, _ = guestwire.Append(b, &guestwire.EOF{Proc: proc, Flow: guestwire.Out})
		b, _ = guestwire.Append(b, &guestwire.Data{Proc: proc, Flow: guestwire.Err})
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		if err := write(stream, b); err != nil {
			return err
		}
	}
	os.Exit(9)
	return nil
}

// late claims a good end once the host has told it to end, and does not end.
func late() error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM)
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return err
	}
	<-asked
	return say(&guestwire.Exit{Proc: proc, Out: int64(len("ready\n"))})
}

// deaf stops init for good.
func deaf() error {
	runtime.LockOSThread()
	tasks, err := os.ReadDir("/proc/1/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		for _, request := range []int{unix.PTRACE_SEIZE, unix.PTRACE_INTERRUPT} {
			if _, _, e := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), 0, 0, 0, 0); e != 0 {
				return e
			}
		}
	}
	return forever()
}

// smash writes zeros over init's program in its memory.
func smash() error {
	maps, err := os.ReadFile("/proc/1/maps")
	if err != nil {
		return err
	}
	var from uint64
	for _, c := range maps {
		if c == '-' {
			break
		}
		d, err := strconv.ParseUint(string(c), 16, 8)
		if err != nil {
			return err
		}
		from = from<<4 | d
	}
	mem, err := os.OpenFile("/proc/1/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for page := make([]byte, 4096); ; from += uint64(len(page)) {
		if _, err := mem.WriteAt(page, int64(from)); err != nil {
			break
		}
	}
	// Init sleeps, and wakes for output.
	if _, err := os.Stdout.WriteString("smashed\n"); err != nil {
		return err
	}
	return forever()
}

// kexec has the kernel make way for one that is a single invalid instruction,
// over and over.
func kexec() error {
	const at, flag = 64 << 20, 0
	image := make([]byte, 4096)
	for i := 0; i < len(image); i += 2 {
		image[i], image[i+1] = 0x0f, 0x0b
	}
	segment := [4]uintptr{uintptr(unsafe.Pointer(&image[0])), uintptr(len(image)), at, uintptr(len(image))}
	if err := call(unix.SYS_KEXEC_LOAD, at, 1, uintptr(unsafe.Pointer(&segment)), flag); err != nil {
		return err
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC)
}

// kernel asks for what no root gets: none of it may work.
func kernel() error {
	attempts := map[string]func() error{
		"init_module": func() error {
			b := []byte("no module")
			return call(unix.SYS_INIT_MODULE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&[]byte{0}[0])))
		},
		"open init's port": openPort,
	}
	code := 8
	for name, attempt := range attempts {
		err := attempt()
		if err == nil {
			code = 98
			_, _ = os.Stdout.WriteString(name + " worked\n")
			continue
		}
		_, _ = os.Stdout.WriteString(name + ": " + err.Error() + "\n")
	}
	os.Exit(code)
	return nil
}

func call(n uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, e := unix.Syscall6(n, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
		return e
	}
	return nil
}

// openPort opens the port of virtio-serial by its number; a machine with vsock
// has none.
func openPort() error {
	const class = "/sys/class/virtio-ports"
	ports, err := os.ReadDir(class)
	if err != nil || len(ports) == 0 {
		return errors.New("no port")
	}
	b, err := os.ReadFile(class + "/" + ports[0].Name() + "/dev")
	if err != nil {
		return err
	}
	var major, minor, n uint32
	for _, c := range b {
		switch {
		case c == ':':
			major, n = n, 0
		case c >= '0' && c <= '9':
			n = 10*n + uint32(c-'0')
		}
	}
	minor = n
	if err := unix.Mknod("/dev/port-of-init", unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/port-of-init", unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// initsStream is a descriptor of init's own stream to the host.
func initsStream() (int, error) {
	pidfd, err := unix.PidfdOpen(1, 0)
	if err != nil {
		return 0, errors.New("opening init: " + err.Error())
	}
	for n := range 64 {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err == unix.EBADF {
			continue
		}
		if err != nil {
			return 0, errors.New("taking a descriptor of init: " + err.Error())
		}
		link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err == nil && len(link) > 8 && link[:9] == "/dev/vpor" {
			return fd, nil
		}
		if _, err := unix.Getpeername(fd); err == nil {
			return fd, nil // the connection of vsock
		}
		unix.Close(fd)
	}
	return 0, errors.New("init has no stream")
}
