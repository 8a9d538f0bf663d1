package launcher

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"encoding/json"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// surroundings is what an escaped guest would look for.
type surroundings struct {
	socket, abstract string
	port             int
	state, home      string
}

// surround makes them within reach of a user: nothing but confinement keeps
// the probe from them, as TestUnconfinedProbeReaches shows.
func surround(t *testing.T, uid int) surroundings {
	t.Helper()
	dir := folder(t, uid)
	s := surroundings{
		socket: filepath.Join(dir, "bus"), abstract: fmt.Sprintf("tartarus-test-%d-%d", os.Getpid(), uid),
		state: filepath.Join(dir, "state"), home: filepath.Join(dir, "home"),
	}
	for _, addr := range []string{s.socket, "@" + s.abstract} {
		l, err := net.Listen("unix", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s.port = l.Addr().(*net.TCPAddr).Port
	for _, f := range []string{s.state, s.home} {
		if err := os.WriteFile(f, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(f, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.socket, 0o777); err != nil {
		t.Fatal(err)
	}
	return s
}

// reaches are attempts that a plain process of that user succeeds with.
func (s surroundings) reaches() []string {
	return []string{
		"unix_path=" + s.socket, "unix_abstract=" + s.abstract, "loopback=" + strconv.Itoa(s.port), "signal=AGENT",
		"memory=SIBLING", "read=" + s.state, "read_home=" + s.home, "list=/", "write=" + s.state, "write_new=" + s.state + "-new",
		"mkdir=" + s.state + "-folder", "fork", "survive", "setown=AGENT", "limits=AGENT", "setsid", "netlink", "list_tmp=/tmp",
		"read_mounts=/proc/self/mountinfo", "everyone", "tgkill=AGENT",
	}
}

// alsoTried are refused to a plain process of an ordinary user as well, or
// not, as the host has it.
var alsoTried = []string{"read_shadow=/etc/shadow", "setuid", "io_uring", "userfaultfd", "clone3", "sendto=/x", "dumpable", "more_files", "core"}

// Without confinement the attempts succeed: the probe is no straw man.
func TestUnconfinedProbeReaches(t *testing.T) {
	for _, uid := range users(t) {
		t.Run(fmt.Sprint(uid), func(t *testing.T) {
			s := surround(t, uid)
			sibling := plain(t, uid, "wait")
			var attempts []string
			for _, a := range s.reaches() {
				a = strings.ReplaceAll(a, "AGENT", strconv.Itoa(sibling.cmd.Process.Pid))
				attempts = append(attempts, strings.ReplaceAll(a, "SIBLING", strconv.Itoa(sibling.cmd.Process.Pid)))
			}
			p := plain(t, uid, attempts...)
			for range attempts {
				r := p.read(t)
				// Reading another's memory at address 0 is EIO: it was opened.
				if r.Error != "" && r.Error != unix.EIO.Error() {
					t.Errorf("unconfined, %s failed: %s", r.Attempt, r.Error)
				}
			}
		})
	}
}

// plainProbe is a probe without a launcher.
type plainProbe struct {
	cmd *exec.Cmd
	dec *json.Decoder
}

func (p *plainProbe) read(t *testing.T) result {
	t.Helper()
	var r result
	if err := p.dec.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func plain(t *testing.T, uid int, attempts ...string) *plainProbe {
	t.Helper()
	answerR, answerW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	holdR, holdW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(programs.probe, attempts...)
	c.ExtraFiles = []*os.File{answerW, holdR}
	// A process group of its own bounds "everyone", which only asks.
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = answerW.Close(), holdR.Close()
	t.Cleanup(func() {
		_, _ = holdW.Close(), c.Wait()
		_ = answerR.Close()
	})
	return &plainProbe{c, json.NewDecoder(answerR)}
}

// users are those that an agent may be, here.
func users(t *testing.T) []int {
	t.Helper()
	if os.Geteuid() != 0 {
		return []int{os.Geteuid()}
	}
	return []int{0, unprivileged}
}

// hosts are the kinds of host and agent that confinement is tried on.
func hosts(t *testing.T) map[string]struct {
	uid     int
	deny    uint64
	missing []string // layers
} {
	type host = struct {
		uid     int
		deny    uint64
		missing []string
	}
	noNS := append([]string{LayerPrivateRoot}, nsLayers...)
	me := unprivileged
	all := map[string]host{}
	if os.Geteuid() == 0 {
		all["root"] = host{}
		all["root without namespaces"] = host{deny: unix.CLONE_NEWPID, missing: noNS}
	} else {
		me = os.Geteuid()
	}
	all["user"] = host{uid: me, missing: []string{LayerOwnUID}}
	all["user without namespaces"] = host{uid: me, deny: unix.CLONE_NEWUSER, missing: append([]string{LayerOwnUID, LayerBounding, LayerUserNS}, noNS...)}
	return all
}

// Every attempt of a probe in the VMM's place is refused, whatever of the
// layers a host and its agent's rights allow.
func TestEscapedGuestFindsNothing(t *testing.T) {
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			s := surround(t, h.uid)
			attempts := append(s.reaches(), alsoTried...)
			j := job{Dir: folder(t, h.uid), Program: programs.probe, Attempts: attempts, Deny: h.deny}
			if h.uid == 0 {
				j.UID = unprivileged
			}
			out := startAgent(t, j, h.uid).hear(t)
			if out.Err != "" {
				t.Fatal(out.Err)
			}
			missing := slices.Clone(h.missing)
			if out.ABI < 4 {
				missing = append(missing, LayerLandlockNetwork)
			}
			if out.ABI < 6 {
				missing = append(missing, LayerLandlockScope)
			}
			checkLayers(t, out, missing)
			for _, a := range attempts {
				attempt, _, _ := strings.Cut(a, "=")
				t.Run(attempt, func(t *testing.T) {
					r, tried := out.Results[attempt]
					t.Logf("%s: %s", a, r.Error)
					if !tried {
						t.Errorf("it was not tried; the VMM ended with %+v, saying %q", out.Exit, out.Stderr)
					} else if r.Error == "" {
						t.Error("it succeeded")
					}
				})
			}
			if out.Exit.Code != 7 {
				t.Errorf("the probe ended with %+v, saying %q", out.Exit, out.Stderr)
			}
		})
	}
}

// checkLayers checks that each layer is told of once, as on or missing.
func checkLayers(t *testing.T, out outcome, missing []string) {
	t.Helper()
	all := append([]string{
		LayerSession, LayerRlimits, LayerNoNewPrivs, LayerCapabilities, LayerBounding, LayerOwnUID, LayerPrivateRoot, LayerLandlock,
		LayerLandlockNetwork, LayerLandlockScope, LayerSeccomp,
	}, nsLayers...)
	var told []string
	for _, m := range out.Isolation.Missing {
		n, why, _ := strings.Cut(m, ": ")
		told = append(told, n)
		if why == "" {
			t.Errorf("%s is missing without a reason", n)
		}
	}
	if have, want := slices.Sorted(slices.Values(told)), slices.Sorted(slices.Values(missing)); !slices.Equal(have, want) {
		t.Errorf("missing are %q, want %v", out.Isolation.Missing, want)
	}
	for _, n := range all {
		if slices.Contains(out.Isolation.Confinement, n) == slices.Contains(told, n) {
			t.Errorf("%s: on and missing are %v and %v", n, out.Isolation.Confinement, told)
		}
	}
}

// What no library does in good faith ends the VMM.
func TestDeadlyCallsEndTheVMM(t *testing.T) {
	for _, a := range []string{
		"execve", "execveat", "ptrace=AGENT", "process_vm_readv=AGENT", "process_vm_writev=AGENT", "bpf", "perf_event_open", "keyctl", "setns", "unshare", "mount", "chroot",
	} {
		t.Run(a, func(t *testing.T) {
			out := here(t, job{Dir: folder(t, 0), Program: programs.probe, Attempts: []string{"pid", a}, UID: unprivileged})
			if _, ran := out.Results["pid"]; !ran {
				t.Errorf("the probe did not run: %+v, %q", out.Exit, out.Stderr)
			}
			if out.Exit.Signal != int(unix.SIGSYS) {
				t.Errorf("it ended with %+v, results %+v", out.Exit, out.Results)
			}
		})
	}
}

// What the VMM is, seen from inside and from the host.
func TestVMMIsWhatTheLayersSay(t *testing.T) {
	for name, h := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			j := job{Dir: folder(t, h.uid), Program: programs.probe, Attempts: []string{"descriptors", "pid", "ids", "hostname", "env", "list=/", "forever"}, Deny: h.deny, Hold: true}
			id := h.uid
			if h.uid == 0 {
				j.UID, id = unprivileged, unprivileged
			}
			a := startAgent(t, j, h.uid)
			out := a.hear(t)
			if out.Err != "" {
				t.Fatal(out.Err)
			}
			ownNS := !slices.Contains(h.missing, LayerPIDNS)
			is := func(attempt, want string) {
				t.Helper()
				if have := out.Results[attempt].Text; have != want {
					t.Errorf("%s: %q, want %q", attempt, have, want)
				}
			}
			is("descriptors", "0 1 2 3 4")
			is("ids", fmt.Sprint(id, id, id, id))
			is("env", "GOMAXPROCS=1")
			if ownNS {
				is("pid", "1")
				is("hostname", "vmm")
				readOnlyMounts(t, out.VMM.Pid)
			}
			st := status(t, out.VMM.Pid)
			for field, want := range map[string]string{
				"CapInh": zeros, "CapPrm": zeros, "CapEff": zeros, "CapAmb": zeros, "NoNewPrivs": "1", "Seccomp": "2", "Umask": "0077",
				"Uid": fmt.Sprint(id, "\t", id, "\t", id, "\t", id), "Groups": "",
			} {
				if have := st[field]; strings.TrimSpace(have) != strings.ReplaceAll(want, " ", "") {
					t.Errorf("%s of the VMM: %q, want %q", field, have, want)
				}
			}
			if have := st["CapBnd"]; (have == zeros) == slices.Contains(h.missing, LayerBounding) {
				t.Errorf("its bounding set: %s", have)
			}
			toldAndFound(t, out)
			limits(t, out.VMM.Pid)
			if sid, err := unix.Getsid(out.VMM.Pid); err != nil || sid == mustSid(t) {
				t.Errorf("its session is the agent's: %v, %v", sid, err)
			}
			_ = a.in.Close() // the agent ends the VMM and itself
			gone(t, "the VMM", out.VMM)
			gone(t, "the outer stage", out.Outer)
		})
	}
}

// toldAndFound checks that isolation tells of each layer what the kernel does,
// and that Landlock, of which the kernel says nothing, refuses what the other
// layers let through.
func toldAndFound(t *testing.T, out outcome) {
	t.Helper()
	found, err := testkit.Layers(out.VMM.Pid, out.Agent)
	if err != nil {
		t.Fatal(err)
	}
	found[LayerLandlock] = strings.HasSuffix(out.Results["list"].Error, unix.EACCES.Error())
	for layer, is := range found {
		if told := slices.Contains(out.Isolation.Confinement, layer); told != is {
			t.Errorf("%s: isolation says %v, the probe found %v", layer, told, is)
		}
	}
}

const zeros = "0000000000000000"

func mustSid(t *testing.T) int {
	t.Helper()
	sid, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	return sid
}

func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.TrimSpace(v)
	}
	return out
}

func limits(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(b)), " ")
	for _, want := range []string{"Max core file size 0 0 bytes", fmt.Sprintf("Max open files %d %d files", defaultOpenFiles, defaultOpenFiles)} {
		if !strings.Contains(text, want) {
			t.Errorf("its limits lack %q:\n%s", want, b)
		}
	}
}

// readOnlyMounts checks that the VMM sees few mounts, none of them writable.
func readOnlyMounts(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	var n int
	for line := range strings.Lines(string(b)) {
		n++
		options := strings.Split(strings.Fields(line)[5], ",")
		for _, o := range []string{"ro", "nosuid", "nodev"} {
			if !slices.Contains(options, o) {
				t.Errorf("not %s: %s", o, line)
			}
		}
	}
	if n != 2 { // the root, and the probe's folder
		t.Errorf("it sees %d mounts:\n%s", n, b)
	}
}

// A layer that is required and missing fails the start, and says why.
func TestRequired(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs an agent that is root and one that is not")
	}
	j := job{Dir: folder(t, unprivileged), Program: programs.probe, Attempts: []string{"pid"}, Require: []string{LayerSeccomp, LayerOwnUID}}
	out := startAgent(t, j, unprivileged).hear(t)
	if !strings.Contains(out.Err, LayerOwnUID) || !strings.Contains(out.Err, "not root") || len(out.Results) != 0 {
		t.Errorf("without a user of its own: %+v", out)
	}
	j.Dir, j.UID = folder(t, 0), unprivileged
	j.Require = append(j.Require, LayerPrivateRoot, LayerLandlock)
	if out := startAgent(t, j, 0).hear(t); out.Err != "" || len(out.Results) != 1 {
		t.Errorf("with one: %+v", out)
	}
}
