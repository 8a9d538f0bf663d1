// Command vmmtest plays Firecracker, and its jailer, without a VM: it speaks
// the API, serves a test guest over "vsock", and misbehaves as the name of the
// folder says that it was started from: WHAT-N means at the Nth call after the
// version was asked for.
//
//	good          not at all
//	fail-N        refuses the call
//	die-N         ends
//	mute-N        never answers; mute-0 not even for its version
//	garbage-N     answers with what is no answer
//	swap          once it runs, calls sockets of the host, and puts links in the
//	              place of its own and of its pipe
//	short-memory  writes less of a snapshot than there is
//	long-state    writes more of it than there can be
//	is-VERSION    is another version, jail-VERSION is one with another jailer
//	lies-VERSION  is another version only to the API
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guesttest"
)

const version = "1.12.1"

func main() {
	what, number := script()
	if filepath.Base(os.Args[0]) == "jailer" {
		jailer(what, number)
		return
	}
	v := version
	if what == "is" {
		v = number
	}
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		fmt.Printf("Firecracker v%s\n\nand more\n", v)
		return
	}
	if err := run(what, number); err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

// script is what the folder's name says, with its number.
func script() (what, number string) {
	what, number, _ = strings.Cut(filepath.Base(filepath.Dir(os.Args[0])), "-")
	return what, number
}

// jailer does what the real one does, as far as a test can tell. The real one
// has one thread; an exec by any but the first makes a process look like a
// zombie for a moment.
func jailer(what, number string) {
	runtime.LockOSThread()
	if os.Args[1] == "--version" {
		v := version
		if what == "jail" || what == "is" {
			v = number
		}
		fmt.Printf("Jailer v%s\n", v)
		return
	}
	err := func() error {
		option := map[string]string{}
		rest := os.Args[1:]
		for len(rest) > 1 && rest[0] != "--" {
			option[rest[0]] = rest[1]
			rest = rest[2:]
		}
		program := option["--exec-file"]
		root := filepath.Join(option["--chroot-base-dir"], filepath.Base(program), option["--id"], "root")
		b, err := os.ReadFile(program)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "firecracker"), b, 0o755); err != nil {
			return err
		}
		uid, _ := strconv.Atoi(option["--uid"])
		gid, _ := strconv.Atoi(option["--gid"])
		for _, step := range []func() error{
			func() error { return os.Chmod(filepath.Join(root, "firecracker"), 0o755) },
			func() error { return os.Chown(root, uid, gid) },
			func() error { return makeTUN(filepath.Join(root, tun), uid, gid) },
			func() error { return unix.Chroot(root) },
			func() error { return os.Chdir("/") },
			func() error { return unix.Setgroups(nil) },
			func() error { return unix.Setresgid(gid, gid, gid) },
			func() error { return unix.Setresuid(uid, uid, uid) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
		return unix.Exec("/firecracker", append([]string{program, "--id", option["--id"]}, rest[1:]...), nil)
	}()
	fmt.Fprintln(os.Stderr, "jailer:", err)
	os.Exit(1)
}

// vmm is the state of one Firecracker.
type vmm struct {
	what, number string

	mu      sync.Mutex
	changed *sync.Cond
	calls   int // since the version was asked for
	paused  bool
	guest   *guesttest.Guest // nil until it was started
	paths   map[string]string

	configured bool // told of something that a snapshot says too
	state      state

	card *card // nil without one
}

func run(what, number string) error {
	socket := ""
	for i, a := range os.Args {
		switch a {
		case "--api-sock":
			socket = os.Args[i+1]
		case "--die":
			return fmt.Errorf("the end was asked for")
		}
	}
	if err := filterAll(); err != nil {
		return fmt.Errorf("filtering system calls: %w", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	m := &vmm{what: what, number: number, paths: map[string]string{}, state: state{Drives: map[string]string{}}}
	m.changed = sync.NewCond(&m.mu)
	return http.Serve(l, m)
}

// filterAll puts a filter that lets all through on every thread.
func filterAll() error {
	code := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	prog := unix.SockFprog{Len: 1, Filter: &code[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return e
	}
	return nil
}

func (m *vmm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m.misbehave(w, r) {
		return
	}
	if r.Method == http.MethodGet {
		v := version
		if m.what == "lies" || m.what == "is" {
			v = m.number
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"firecracker_version": v})
		return
	}
	var body map[string]any
	err := json.NewDecoder(r.Body).Decode(&body)
	if err == nil {
		err = m.obey(r.Method+" "+r.URL.Path, body)
	}
	if err != nil {
		refuse(w, err.Error())
		if r.URL.Path == "/snapshot/load" { // it is of no use any more
			_ = http.NewResponseController(w).Flush()
			fmt.Fprintln(os.Stderr, "going on from a snapshot:", err)
			os.Exit(1)
		}
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func refuse(w http.ResponseWriter, why string) {
	text, _ := json.Marshal(map[string]string{"fault_message": why})
	w.Header().Set("Content-Length", strconv.Itoa(len(text))) // whole, however soon the end comes
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write(text)
}

// misbehave does so if it is this call's turn.
func (m *vmm) misbehave(w http.ResponseWriter, r *http.Request) bool {
	m.mu.Lock()
	if r.Method != http.MethodGet {
		m.calls++
	}
	turn := m.number == strconv.Itoa(m.calls)
	m.mu.Unlock()
	if !turn {
		return false
	}
	switch m.what {
	case "fail":
		refuse(w, "the script says no")
	case "die":
		fmt.Fprintln(os.Stderr, "the script says die")
		os.Exit(3)
	case "mute":
		<-r.Context().Done()
	case "garbage":
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_, _ = c.Write([]byte(strings.Repeat("garbage ", 1000) + "\r\n\r\n"))
			_ = c.Close()
		}
	default:
		return false
	}
	return true
}

func (m *vmm) obey(call string, body map[string]any) error {
	text := func(field string) string { s, _ := body[field].(string); return s }
	switch call {
	case "PUT /metrics", "PUT /snapshot/load":
	default:
		m.configured = true
	}
	switch call {
	case "PUT /boot-source":
		return errorsOf(readable(text("kernel_image_path")), readable(text("initrd_path")))
	case "PUT /drives/root":
		m.state.Drives["root"] = text("path_on_host")
		return readable(text("path_on_host"))
	case "PUT /drives/scratch":
		m.state.Drives["scratch"] = text("path_on_host")
		return writable(text("path_on_host"))
	case "PUT /snapshot/create":
		return m.save(text("mem_file_path"), text("snapshot_path"))
	case "PUT /snapshot/load":
		backend, _ := body["mem_backend"].(map[string]any)
		path, _ := backend["backend_path"].(string)
		if backend["backend_type"] != "File" || body["resume_vm"] != true {
			return fmt.Errorf("nothing goes on from %v", body)
		}
		return m.load(path, text("snapshot_path"))
	case "PUT /vsock":
		m.state.Vsock = text("uds_path")
		l, err := net.Listen("unix", text("uds_path"))
		if err != nil {
			return err
		}
		go m.serve(l)
	case "PUT /network-interfaces/card":
		return m.plug(text("host_dev_name"), text("guest_mac"))
	case "PUT /metrics":
		m.paths["metrics"] = text("metrics_path")
	case "PUT /actions":
		return m.act(text("action_type"))
	case "PATCH /vm":
		m.mu.Lock()
		defer m.mu.Unlock()
		m.paused = text("state") == "Paused"
		m.changed.Broadcast()
	case "PUT /machine-config":
		size, _ := body["mem_size_mib"].(float64)
		m.state.MemoryMiB = int64(size)
	case "PUT /entropy":
	default:
		return fmt.Errorf("there is no %s", call)
	}
	return nil
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = f.Read(make([]byte, 1))
	return errorsOf(err, f.Close())
}

func writable(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// begin lets the guest run.
func (m *vmm) begin() {
	m.mu.Lock()
	m.guest = guesttest.New(guesttest.Config{Run: command, Setup: m.setup})
	m.mu.Unlock()
	go func() {
		<-m.guest.Done()
		os.Exit(0)
	}()
	work()
}

func (m *vmm) act(what string) error {
	switch what {
	case "InstanceStart":
		m.begin()
		if m.what == "swap" {
			reach(filepath.Join(canary(), "api.sock"), "@"+canary())
			swap("api.sock", "vsock.sock", "metrics")
		}
	case "FlushMetrics":
		f, err := os.OpenFile(m.paths["metrics"], os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(`{"vcpu":{"exit_io_out":7}}` + "\n")
		_ = f // open until the end, as the real one
		return err
	}
	return nil
}

// work takes a little of the CPU, enough to be counted.
func work() {
	for {
		var used unix.Timespec
		if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &used) != nil || used.Nano() > 50e6 {
			return
		}
	}
}

// canary is a folder of the host, with a socket and a file in it, that is
// named by the folder that this program was started from.
func canary() string { return filepath.Join(filepath.Dir(filepath.Dir(os.Args[0])), "canary") }

// reach tries to call somebody on the host.
func reach(sockets ...string) {
	for _, s := range sockets {
		if c, err := net.Dial("unix", s); err == nil {
			_, _ = c.Write([]byte("reached\n"))
		} else {
			fmt.Println("reach:", err)
		}
	}
}

// swap puts links to the canary in the place of what the host will open. It
// goes on if it may not: then there is no link.
func swap(names ...string) {
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			fmt.Println("swap:", err)
			continue
		}
		if err := os.Symlink(filepath.Join(canary(), n), n); err != nil {
			fmt.Println("swap:", err)
		}
	}
}

// command is what a command does: flood the console, or a builtin.
func command(p *guesttest.Process) int {
	if p.Start.Argv[0] != "console" {
		return guesttest.Builtin(p)
	}
	n, _ := strconv.Atoi(p.Start.Argv[1])
	for n > 0 {
		written, err := os.Stdout.WriteString(strings.Repeat("x", min(n, 4096)))
		if err != nil {
			return 1
		}
		n -= written
	}
	return 0
}

// serve is the socket device: first are how it treats its first streams.
func (m *vmm) serve(l net.Listener, first ...int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		how := serveIt
		if len(first) > 0 {
			how, first = first[0], first[1:]
		}
		go m.stream(c, how)
	}
}

func (m *vmm) stream(c net.Conn, how int) {
	defer c.Close()
	if how == closeAtOnce {
		return
	}
	line := make([]byte, 64)
	n, err := c.Read(line)
	if err != nil || string(line[:n]) != "CONNECT 1024\n" {
		return
	}
	m.mu.Lock()
	g := m.guest
	m.mu.Unlock()
	if g == nil {
		return
	}
	guest, err := g.Dial(context.Background())
	if err != nil {
		return
	}
	defer guest.Close()
	if _, err := c.Write([]byte("OK 1073741824\n")); err != nil || how == closeAnswered {
		return
	}
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		defer func() { done <- struct{}{} }()
		_, _ = io.Copy(to, gate{m, from})
	}
	go pass(guest, c)
	go pass(c, guest)
	<-done
}

// gate lets nothing through while the VM is paused.
type gate struct {
	m    *vmm
	from io.Reader
}

func (g gate) Read(b []byte) (int, error) {
	n, err := g.from.Read(b)
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	for g.m.paused {
		g.m.changed.Wait()
	}
	return n, err
}
