package drivertest

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// info: a driver says what it is.
func info(t *testing.T, k *kit) {
	i := k.driver.Info()
	if i.Name == "" || i.Version == "" || i.MaxVCPUs < 1 {
		t.Errorf("Info says too little: %+v", i)
	}
	switch i.Accelerator {
	case "kvm", "tcg", "none":
	default:
		t.Errorf("accelerator %q", i.Accelerator)
	}
	if i.Isolation.Accelerator != i.Accelerator {
		t.Errorf("Isolation tells of accelerator %q, Info of %q", i.Isolation.Accelerator, i.Accelerator)
	}
}

// badSpec: what no driver can work with is refused by field, before anything
// is made.
func badSpec(t *testing.T, k *kit) {
	good := k.spec(t)
	for _, c := range []struct {
		field string
		spoil func(*tartarus.Spec)
	}{
		{"id", func(s *tartarus.Spec) { s.ID = "" }},
		{"id", func(s *tartarus.Spec) { s.ID = "../../etc" }},
		{"dir", func(s *tartarus.Spec) { s.Dir = "" }},
		{"dir", func(s *tartarus.Spec) { s.Dir = "vm" }},
		{"kernel", func(s *tartarus.Spec) { s.Kernel = "vmlinux" }},
		{"initrd", func(s *tartarus.Spec) { s.Initrd = "" }},
		{"root", func(s *tartarus.Spec) { s.Root = "/tmp/../root" }},
		{"scratch", func(s *tartarus.Spec) { s.Scratch = "/a\x00b" }},
		{"cmdline", func(s *tartarus.Spec) { s.Cmdline = "quiet\ninit=/bin/sh" }},
		{"cmdline", func(s *tartarus.Spec) { s.Cmdline = strings.Repeat("x", tartarus.MaxCmdline+1) }},
		{"vcpus", func(s *tartarus.Spec) { s.VCPUs = 0 }},
		{"vcpus", func(s *tartarus.Spec) { s.VCPUs = k.driver.Info().MaxVCPUs + 1 }},
		{"memory_mib", func(s *tartarus.Spec) { s.MemoryMiB = tartarus.MinMemoryMiB - 1 }},
		{"memory_mib", func(s *tartarus.Spec) { s.MemoryMiB = tartarus.MaxMemoryMiB + 1 }},
		{"uid", func(s *tartarus.Spec) { s.UID = -1 }},
		{"nic", func(s *tartarus.Spec) { s.NIC = &tartarus.NIC{MAC: mac} }},
		{"nic", func(s *tartarus.Spec) {
			s.NIC = &tartarus.NIC{MAC: mac, TAP: os.Stdin, Namespace: os.Stdin, Device: "tap0"}
		}},
		{"nic.mac", func(s *tartarus.Spec) { s.NIC = &tartarus.NIC{TAP: os.Stdin} }},
		{"nic.mac", func(s *tartarus.Spec) { s.NIC = &tartarus.NIC{MAC: []byte{1, 2, 3, 4, 5, 6}, TAP: os.Stdin} }},
		{"nic.device", func(s *tartarus.Spec) {
			s.NIC = &tartarus.NIC{MAC: mac, Namespace: os.Stdin, Device: "../tap0"}
		}},
	} {
		s := good
		c.spoil(&s)
		refused(t, k, s, c.field)
	}
}

func refused(t *testing.T, k *kit, s tartarus.Spec, field string) {
	t.Helper()
	vm, err := k.driver.Start(k.ctx(t), s)
	if err == nil {
		k.kill(t, vm)
		t.Errorf("%s: it started", field)
		return
	}
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.InvalidArgument || f.Field != field || f.Hint == "" {
		t.Errorf("%s: %v (%+v)", field, err, f)
	}
}

// missingFiles: nor is a VM made of what is not there.
func missingFiles(t *testing.T, k *kit) {
	good := k.spec(t)
	gone := filepath.Join(t.TempDir(), "gone")
	for field, s := range map[string]tartarus.Spec{
		"dir":     withPath(good, func(s *tartarus.Spec) { s.Dir = gone }),
		"kernel":  withPath(good, func(s *tartarus.Spec) { s.Kernel = gone }),
		"initrd":  withPath(good, func(s *tartarus.Spec) { s.Initrd = gone }),
		"root":    withPath(good, func(s *tartarus.Spec) { s.Root = gone }),
		"scratch": withPath(good, func(s *tartarus.Spec) { s.Scratch = good.Dir }),
	} {
		refused(t, k, s, field)
	}
}

func withPath(s tartarus.Spec, change func(*tartarus.Spec)) tartarus.Spec {
	change(&s)
	return s
}

// broken: a VMM that ends at once is an error with its last words.
func broken(t *testing.T, k *kit) {
	d, words := k.h.Broken(t)
	s := k.spec(t)
	vm, err := d.Start(k.ctx(t), s)
	if err == nil {
		k.kill(t, vm)
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), words) {
		t.Errorf("%v does not tell %q", err, words)
	}
	nothingLeft(t, s)
}

// startWithin: when ctx ends, at whatever moment, Start has made a VM or
// nothing.
func startWithin(t *testing.T, k *kit) {
	s := k.spec(t)
	began := time.Now()
	vm, err := k.driver.Start(k.ctx(t), s)
	if err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	k.kill(t, vm)
	const moments = 8
	for i := range moments {
		after := whole * time.Duration(i) / (moments - 2)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		if i == 0 {
			cancel()
		}
		vm, err := k.driver.Start(ctx, s)
		cancel()
		switch {
		case err == nil:
			// ctx bounds Start alone.
			select {
			case <-vm.Done():
				t.Errorf("the VM ended with the context of its start: %v", vm.Exit())
			case <-time.After(10 * time.Millisecond):
			}
			k.kill(t, vm)
		case !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled):
			t.Errorf("after %v: %v", after, err)
		}
		nothingLeft(t, s)
	}
}

// killAtOnce: Kill needs no guest, works while others do the same, and again.
func killAtOnce(t *testing.T, k *kit) {
	s := k.spec(t)
	vm := k.start(t, s)
	select {
	case <-vm.Done():
		t.Fatalf("it ended by itself: %v", vm.Exit())
	default:
	}
	dialled := make(chan error, 1)
	go func() {
		conn, err := vm.Dial(k.ctx(t))
		if err == nil {
			err = conn.Close()
		}
		dialled <- err
	}()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { k.kill(t, vm) })
	}
	wg.Wait()
	if err := <-dialled; err != nil {
		t.Logf("dialling meanwhile: %v", err) // it may have been quick enough, too
	}
	e := vm.Exit()
	if !e.ByKill || e.Signal == 0 || e.Code != -1 || time.Since(e.At) > time.Minute {
		t.Errorf("a killed VM ended by %+v", e)
	}
	k.kill(t, vm)
	if again := vm.Exit(); again != e {
		t.Errorf("the end changed from %v to %v", e, again)
	}
	// The same folder and disk serve again.
	k.kill(t, k.start(t, s))
}

// killedFromOutside: the end of a VMM is noticed, and told apart from a Kill.
func killedFromOutside(t *testing.T, k *kit) {
	ctx := k.ctx(t)
	vm := k.start(t, k.spec(t))
	dialled := make(chan error, 1)
	go func() {
		conn, err := vm.Dial(ctx)
		if err == nil {
			// It was quick enough; then the stream ends.
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		dialled <- err
	}()
	k.h.KillOutside(t, vm)
	e := await(ctx, t, vm)
	if e.ByKill || e.Signal != 9 || e.Code != -1 {
		t.Errorf("a VM killed from outside ended by %+v", e)
	}
	select {
	case err := <-dialled:
		if err == nil {
			t.Error("a stream to nobody was opened")
		}
	case <-ctx.Done():
		t.Error("Dial still waits for a VM that has ended")
	}
	afterEnd(t, k, vm)
}

// afterEnd: all methods of an ended VM return.
func afterEnd(t *testing.T, k *kit, vm tartarus.VM) {
	t.Helper()
	ctx := k.ctx(t)
	if _, err := vm.Dial(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("dialling an ended VM: %v", err)
	}
	if vm.Pause(ctx) == nil || vm.Resume(ctx) == nil {
		t.Error("an ended VM can be paused or resumed")
	}
	if err := vm.Console(discard{}); err != nil {
		t.Errorf("the console of an ended VM: %v", err)
	}
	if _, err := vm.Sample(); err != nil {
		t.Errorf("the last sample of an ended VM: %v", err)
	}
	if h := vm.Handle(); h.Driver != k.driver.Info().Name {
		t.Errorf("the handle of an ended VM: %+v", h)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// oneDisk: two VMs on one disk would destroy it.
func oneDisk(t *testing.T, k *kit) {
	parent := t.TempDir()
	first, second := k.specIn(t, parent), k.specIn(t, parent)
	second.Scratch = first.Scratch
	k.start(t, first)
	if vm, err := k.driver.Start(k.ctx(t), second); err == nil {
		k.kill(t, vm)
		t.Error("two VMs started with one scratch disk")
	}
}

// longDir: a folder's path may be longer than a socket's address.
func longDir(t *testing.T, k *kit) {
	parent := filepath.Join(t.TempDir(), strings.Repeat("long", 40), strings.Repeat("longer", 40))
	if err := os.MkdirAll(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	k.start(t, k.specIn(t, parent))
}

// lifeline: the VM ends with whoever holds the other end.
func lifeline(t *testing.T, k *kit) {
	ctx := k.ctx(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() // read by nobody
	s := k.spec(t)
	s.Lifeline = r
	vm := k.start(t, s)
	select {
	case <-vm.Done():
		t.Fatalf("it ended with its lifeline whole: %v", vm.Exit())
	case <-time.After(50 * time.Millisecond):
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if e := await(ctx, t, vm); e.ByKill {
		t.Errorf("the end of a lifeline is told as %+v", e)
	}
	if _, err := r.Stat(); err != nil {
		t.Errorf("the lifeline is the caller's, and was closed: %v", err)
	}
}

// many: VMs do not get in each other's way.
func many(t *testing.T, k *kit) {
	const n = 4
	var wg sync.WaitGroup
	parent := t.TempDir()
	specs := make([]tartarus.Spec, n)
	for i := range specs {
		specs[i] = k.specIn(t, parent)
	}
	for _, s := range specs {
		wg.Go(func() {
			vm, err := k.driver.Start(k.ctx(t), s)
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(rand.N(20 * time.Millisecond)) // so that starts and ends overlap
			k.kill(t, vm)
		})
	}
	wg.Wait()
}
