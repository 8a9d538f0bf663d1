package firecracker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/drivertest"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// newSpec is that of a VM of its own, without its files.
func newSpec(t *testing.T) tartarus.Spec {
	t.Helper()
	dir := t.TempDir()
	id := sandbox.MakeID(ulid.Make().String())
	s := tartarus.Spec{ID: id, Dir: filepath.Join(dir, string(id)), Scratch: filepath.Join(dir, "scratch"), VCPUs: 1}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

// started starts a VM that ends with the test.
func started(t *testing.T, d *Driver, s tartarus.Spec) *vm {
	t.Helper()
	v, err := d.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), endTimeout)
		defer cancel()
		if err := v.Kill(ctx); err != nil {
			t.Error(err)
		}
	})
	return v.(*vm)
}

// TestLabConfined looks at a living Firecracker from outside: what records say
// of its isolation is so.
func TestLabConfined(t *testing.T) {
	d := withGroups(t, Config{Binary: labBinary})
	s := newSpec(t)
	realGuest(t).fill(t, &s)
	s.UID, s.GID = 54321, 54322
	confined(t, d, started(t, d, s), []string{"initrd", "kernel"})
}

// TestLabRestored looks at one that is saved, and at one that goes on from it:
// they are confined as any other. The first has two files of its own to write,
// of which nothing is left.
func TestLabRestored(t *testing.T) {
	d := withGroups(t, Config{Binary: labBinary})
	if i := d.Info(); !i.CanSnapshot || !strings.Contains(i.Machine, "vendor_id=") {
		t.Fatalf("%+v", i)
	}
	s := newSpec(t)
	realGuest(t).fill(t, &s)
	s.UID, s.GID = 54321, 54322
	s.Save = drivertest.EmptySnapshot(t, t.TempDir())
	v := started(t, d, s)
	ctx, cancel := context.WithTimeout(t.Context(), labTimeout)
	defer cancel()
	if err := guestdial.Hello(ctx, guestdial.Config{Dial: v.Dial}); err != nil {
		t.Fatal(err)
	}
	confined(t, d, v, []string{"initrd", "kernel", "memory", "state"}, "memory", "state")
	if err := errors.Join(v.Save(ctx), v.Kill(ctx)); err != nil {
		t.Fatal(err)
	}
	clean(t, s)
	var st unix.Stat_t
	if err := unix.Fstat(int(s.Save.Memory.Fd()), &st); err != nil || st.Size != 128<<20 || st.Blocks*512 > st.Size*3/4 {
		t.Errorf("%d of %d bytes of the memory were written (%v)", st.Blocks*512, st.Size, err)
	}
	t.Logf("%d MiB of the memory were written", st.Blocks*512>>20)

	r := newSpec(t)
	realGuest(t).fill(t, &r)
	r.UID, r.GID = 54323, 54324
	r.Restore = drivertest.Stored(t, s.Save)
	confined(t, d, started(t, d, r), []string{"memory", "state"})
}

// confined compares what records say of a VM with what the kernel does. files
// are in its jail beside what all have there, and writable are those of them
// that are not read-only.
func confined(t *testing.T, d *Driver, v *vm, files []string, writable ...string) {
	t.Helper()
	s := v.boot.spec
	is := v.Isolation()
	if !slices.Equal(slices.Sorted(slices.Values(is.Confinement)), slices.Sorted(slices.Values(d.Info().Isolation.Confinement))) {
		t.Errorf("Info promises %v, the VM has %v", d.Info().Isolation.Confinement, is.Confinement)
	}
	wants := []string{launcher.LayerSession, launcher.LayerNoNewPrivs, launcher.LayerCapabilities, launcher.LayerPrivateRoot, launcher.LayerPIDNS,
		launcher.LayerNetNS, launcher.LayerSeccomp, LayerVMMSeccomp}
	if os.Getuid() == 0 {
		wants = append(wants, launcher.LayerOwnUID, LayerJail, cgroup.LayerMemory, cgroup.LayerCPU, cgroup.LayerPids)
	} else {
		wants = append(wants, launcher.LayerLandlock)
	}
	for _, layer := range wants {
		if !slices.Contains(is.Confinement, layer) {
			t.Errorf("%s is not on: %v, missing %v", layer, is.Confinement, is.Missing)
		}
	}
	proc := "/proc/" + strconv.Itoa(vmmOf(t, v))
	status := read(t, proc+"/status")
	lines := []string{"NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"}
	if os.Getuid() == 0 {
		for what, id := range map[string]int{"Uid": s.UID, "Gid": s.GID} {
			lines = append(lines, what+":"+strings.Repeat("\t"+strconv.Itoa(id), 4))
		}
		jailOf(t, proc, v, files, writable)
		limitsOf(t, proc, d, s)
	}
	for _, want := range lines {
		if !strings.Contains(status, want+"\n") {
			t.Errorf("%s is not in\n%s", want, status)
		}
	}
	tasks, err := filepath.Glob(proc + "/task/*/status")
	if err != nil || len(tasks) < 3 {
		t.Fatalf("threads %v, %v", tasks, err)
	}
	for _, task := range tasks {
		if text := read(t, task); !strings.Contains(text, "Seccomp:\t2\n") {
			t.Errorf("a thread without a filter:\n%s", text)
		}
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		ours, err1 := os.Readlink("/proc/self/ns/" + ns)
		theirs, err2 := os.Readlink(proc + "/ns/" + ns)
		if err := errors.Join(err1, err2); err != nil || ours == theirs {
			t.Errorf("namespace %s: %s and ours %s, %v", ns, theirs, ours, err)
		}
	}
}

// jailOf: its root holds its own files and nothing of the host's.
func jailOf(t *testing.T, proc string, v *vm, files, writable []string) {
	t.Helper()
	entries, err := os.ReadDir(proc + "/root")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := append([]string{"api.sock", "dev", "firecracker", "firecracker.pid", "metrics", "root.img", "run", "scratch.img", "vsock.sock"}, files...)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("the jail holds %v", names)
	}
	for line := range strings.Lines(read(t, proc+"/mountinfo")) {
		f := strings.Fields(line)
		readOnly := strings.Contains(f[5], "ro")
		own := f[4] == "/" || f[4] == "/scratch.img" || slices.Contains(writable, strings.TrimPrefix(f[4], "/"))
		if own == readOnly {
			t.Errorf("mount %s", line)
		}
		if f[4] != "/" && (!strings.Contains(f[5], "nosuid") || !strings.Contains(f[5], "nodev")) {
			t.Errorf("mount %s", line)
		}
	}
	if st, err := os.Stat(v.boot.spec.Kernel); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Errorf("the shared kernel was touched: %+v, %v", st.Sys(), err)
	}
}

// limitsOf: it is in its cgroup, whose limits are as asked for.
func limitsOf(t *testing.T, proc string, d *Driver, s tartarus.Spec) {
	t.Helper()
	memory := s.MemoryMiB
	if s.Save != nil {
		memory *= 2
	}
	text := read(t, proc+"/cgroup")
	if !strings.Contains(text, "/"+string(s.ID)+"\n") {
		t.Errorf("it is in the cgroups\n%s", text)
	}
	if d.cfg.Cgroups.Version() != 2 {
		return
	}
	_, path, _ := strings.Cut(strings.TrimSpace(text), "::")
	dir := "/sys/fs/cgroup" + path
	for file, want := range map[string]string{
		"memory.max": strconv.FormatInt((memory+sandbox.VMOverheadMiB)<<20, 10),
		"cpu.max":    "150000 100000",
		"pids.max":   strconv.Itoa(vmmThreads),
	} {
		if got := strings.TrimSpace(read(t, filepath.Join(dir, file))); got != want {
			t.Errorf("%s is %s, not %s", file, got, want)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLabMetrics: a running Firecracker tells its metrics.
func TestLabMetrics(t *testing.T) {
	s := newSpec(t)
	realGuest(t).fill(t, &s)
	v := started(t, newDriver(t, Config{Binary: labBinary}), s)
	m, err := v.Metrics(t.Context())
	if err != nil || m.API.PutCalls == 0 && m.VCPU.ExitIOOut == 0 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestLabUser runs suite and confinement once more as an ordinary user who may
// open /dev/kvm.
func TestLabUser(t *testing.T) {
	g := realGuest(t)
	if os.Getuid() != 0 {
		t.Fatal("the lab is root's")
	}
	dir, err := os.MkdirTemp("", "tartarus-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"tmp", "tmp/lethe"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, d), 0o700), os.Chown(filepath.Join(dir, d), nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	copies := map[string]string{"test": self, "kernel": g.bundle.Kernel, "initrd": g.bundle.Initrd, "root": g.root}
	masters, err := filepath.Glob(filepath.Join(cache, "tartarus", "test", "lethe", "*.img"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range masters {
		copies["tmp/lethe/"+filepath.Base(m)] = m
	}
	for name, from := range copies {
		copyFile(t, from, filepath.Join(dir, name), map[bool]os.FileMode{true: 0o555, false: 0o444}[name == "test"])
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "cmdline"), []byte(g.bundle.Cmdline), 0o444), os.Chmod(dir, 0o755), os.Chmod(tartarus.KVMDevice, 0o666)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*labTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "test"), "-test.run=^(TestLabDriver|TestLabConfined|TestLabRestored|TestLabMetrics)$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{labVar + "=1", "HOME=" + dir, "TMPDIR=" + filepath.Join(dir, "tmp"), guestVar + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestLabDriver/GuestsEnd")) || !bytes.Contains(out, []byte("--- PASS: TestLabConfined")) ||
		!bytes.Contains(out, []byte("--- PASS: TestLabRestored")) {
		t.Errorf("%v:\n%s", err, out)
	}
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err == nil && strings.HasPrefix(filepath.Base(filepath.Dir(to)), "lethe") {
		err = os.Chown(to, nobody, nobody)
		mode = 0o400
	}
	if err == nil {
		err = os.Chmod(to, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}
