// Package drivertest is the suite that every VM driver passes: what the seam
// in package tartarus promises, asked of real VMs.
//
// A driver's own test calls Run, and its TestMain calls HelperMain first. VMs
// are shared between questions where one is as good as two, because booting
// one may take seconds.
package drivertest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Harness is what the suite needs of a driver's test.
type Harness struct {
	// New makes the driver, once for all cases.
	New func(t *testing.T) tartarus.Driver

	// Spec fills in kernel, initrd, command line, root and memory, and makes
	// the scratch disk at Scratch. ID and Dir are the suite's.
	Spec func(t *testing.T, s *tartarus.Spec)

	// Broken makes a driver whose VMM ends at once, and the last words that
	// its error must hold.
	Broken func(t *testing.T) (tartarus.Driver, string)

	// KillOutside kills the VMM as somebody else on the host might.
	KillOutside func(t *testing.T, vm tartarus.VM)

	// Echo is a command of the guest that writes its further arguments to
	// stdout, and Flood one that writes at least as many bytes as it is told
	// to the console.
	Echo  []string
	Flood func(bytes int) []string

	// Shell runs a script in the guest, as sh -c does. With it clones of a
	// snapshot are compared; nil where the guest is not a real one.
	Shell []string

	// Flooding is how many bytes Flood is told to write; 8 times ConsoleBytes
	// if zero. Less is for where a byte takes a millisecond.
	Flooding int

	// User runs the commands; "" for the guest's default.
	User string

	// Timeout bounds each case; a minute if zero.
	Timeout time.Duration
}

// Run asks everything that the seam promises.
func Run(t *testing.T, h Harness) {
	if h.Timeout == 0 {
		h.Timeout = time.Minute
	}
	if h.Flooding == 0 {
		h.Flooding = 8 * tartarus.ConsoleBytes
	}
	k := &kit{h: h, driver: h.New(t)}
	for _, c := range []struct {
		name string
		run  func(*testing.T, *kit)
	}{
		{"Info", info},
		{"BadSpec", badSpec},
		{"MissingFiles", missingFiles},
		{"Broken", broken},
		{"StartWithin", startWithin},
		{"KillAtOnce", killAtOnce},
		{"KilledFromOutside", killedFromOutside},
		{"OneDiskOneVM", oneDisk},
		{"LongDir", longDir},
		{"Lifeline", lifeline},
		{"ReapNothing", reapNothing},
		{"ReapWithHandle", func(t *testing.T, k *kit) { reapLeftover(t, k, true) }},
		{"ReapWithoutHandle", func(t *testing.T, k *kit) { reapLeftover(t, k, false) }},
		{"ReapOwn", reapOwn},
		{"Many", many},
		{"Life", life},
		{"GuestsEnd", guestsEnd},
		{"Snapshots", snapshots},
		{"Card", card},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, k) })
	}
}

// kit is what the cases share.
type kit struct {
	h      Harness
	driver tartarus.Driver
	setup  guestwire.Setup // of guests, on top of what all have
}

// ctx bounds a case.
func (k *kit) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), k.h.Timeout)
	t.Cleanup(cancel)
	return ctx
}

// spec is that of a VM nobody had before. When the test ends, nothing of the
// VM may be left but plain files in its folder.
func (k *kit) spec(t *testing.T) tartarus.Spec { return k.specIn(t, t.TempDir()) }

func (k *kit) specIn(t *testing.T, parent string) tartarus.Spec {
	t.Helper()
	id := sandbox.MakeID(ulid.Make().String())
	s := tartarus.Spec{ID: id, Dir: filepath.Join(parent, string(id)), Scratch: filepath.Join(parent, "scratch-"+string(id)), VCPUs: 1}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k.h.Spec(t, &s)
	before := listing(t, parent)
	t.Cleanup(func() {
		nothingLeft(t, s)
		if after := listing(t, parent); !slices.Equal(before, after) {
			t.Errorf("outside its folder the VM left %v where %v was", after, before)
		}
	})
	return s
}

// listing is what lies beside the folders of VMs.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !sandbox.ID(e.Name()).Valid() && !strings.HasPrefix(e.Name(), "scratch-") {
			names = append(names, e.Name())
		}
	}
	return names
}

// nothingLeft looks for processes, mounts, sockets and open files of a VM that
// has ended.
func nothingLeft(t *testing.T, s tartarus.Spec) {
	t.Helper()
	if p := processesOf(t, s); len(p) > 0 {
		t.Errorf("processes of the VM are left: %v", p)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.Dir) {
			t.Errorf("a mount is left: %s", line)
		}
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			t.Errorf("%s is left in the VM's folder: %s", e.Name(), e.Type())
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && (strings.HasPrefix(to, s.Dir) || to == s.Scratch) {
			t.Errorf("descriptor %s is open: %s", fd.Name(), to)
		}
	}
}

// processesOf are the processes that name the VM on their command line, which
// holds for every VMM that an operator can find in ps, and zombies of ours.
func processesOf(t *testing.T, s tartarus.Spec) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if cmd, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && strings.Contains(string(cmd), string(s.ID)) {
			found = append(found, fmt.Sprintf("%d: %.200q", pid, cmd))
		}
	}
	return append(found, zombies(entries)...)
}

func zombies(proc []os.DirEntry) []string {
	var found []string
	for _, e := range proc {
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		end := strings.LastIndexByte(string(b), ')')
		f := strings.Fields(string(b[end+1:]))
		if end > 0 && len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(os.Getpid()) {
			found = append(found, "a zombie: "+string(b[:end+1]))
		}
	}
	return found
}

// start starts a VM, and ends it with the test.
func (k *kit) start(t *testing.T, s tartarus.Spec) tartarus.VM {
	t.Helper()
	vm, err := k.driver.Start(k.ctx(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.kill(t, vm) })
	return vm
}

func (k *kit) kill(t *testing.T, vm tartarus.VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), k.h.Timeout)
	defer cancel()
	if err := vm.Kill(ctx); err != nil {
		t.Error(err)
	}
	select {
	case <-vm.Done():
	default:
		t.Error("Kill has returned and Done is open")
	}
}

// await waits for the end of a VM.
func await(ctx context.Context, t *testing.T, vm tartarus.VM) tartarus.Exit {
	t.Helper()
	select {
	case <-vm.Done():
	case <-ctx.Done():
		t.Fatal("the VM does not end")
	}
	return vm.Exit()
}
