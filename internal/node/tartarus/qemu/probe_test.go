package qemu

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// TestProbe: whatever KVM is like here, the answer is found in bounded time,
// and where it is "usable" a VM really runs on it.
func TestProbe(t *testing.T) {
	g := real(t)
	p := tartarus.Trial{Kernel: g.bundle.Kernel, Initrd: g.bundle.Initrd, Cmdline: g.bundle.Cmdline, Timeout: 5 * time.Second}
	began := time.Now()
	r, err := Probe(t.Context(), Config{}, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v after %v", r, time.Since(began))
	if r.Why == "" || time.Since(began) > 30*time.Second {
		t.Errorf("%+v after %v", r, time.Since(began))
	}
	if strings.Contains(r.Why, "not permitted") {
		t.Errorf("our own confinement stands in KVM's way: %s", r.Why)
	}
	if _, err := os.Stat(tartarus.KVMDevice); err != nil && (r.Usable || !strings.Contains(r.Why, "there is no")) {
		t.Errorf("without %s: %+v", tartarus.KVMDevice, r)
	}
	d := newDriver(t, Config{KVM: &r})
	if want := map[bool]string{true: "kvm", false: "tcg"}[r.Usable]; d.Info().Accelerator != want {
		t.Errorf("after %+v the accelerator is %s", r, d.Info().Accelerator)
	}
	_, err = New(t.Context(), Config{Accel: AccelKVM, KVM: &r})
	if r.Usable != (err == nil) {
		t.Errorf("KVM insisted on after %+v: %v", r, err)
	}
}
