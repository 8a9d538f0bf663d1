package guestd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus/qemu"
)

// A kernel that was left without a timer boots as far as init, which must give
// up: commands in it would never end.
func TestVMWithoutATimerEnds(t *testing.T) {
	s := specOf(t)
	s.Cmdline += " nolapic_timer"
	driver, err := qemu.New(t.Context(), qemu.Config{Accel: qemu.AccelTCG})
	check(t, err)
	vm, err := driver.Start(t.Context(), s)
	check(t, err)
	defer vm.Kill(t.Context()) //nolint:errcheck // it has ended, or the test has failed
	select {
	case <-vm.Done():
	case <-time.After(time.Minute):
		t.Fatal("it still runs")
	}
	var console strings.Builder
	check(t, vm.Console(&console))
	if !strings.Contains(console.String(), "tartarus-guest: fatal: the kernel has no timer") {
		t.Errorf("its console says %q", console.String())
	}
}
