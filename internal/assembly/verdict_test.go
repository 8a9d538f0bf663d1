package assembly

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// A verdict is kept for as long as what it was tried on is the same, and one
// that a busy host may have spoiled not for long.
func TestVerdictHolds(t *testing.T) {
	now := verdictOf(tartarus.Info{Name: "qemu", Version: "7.2.22"})
	if now.Kernel == "" || len(now.BootID) != 36 || now.VMM != "7.2.22" {
		t.Fatalf("a verdict of %+v", now)
	}
	for name, c := range map[string]struct {
		change func(v *kvmVerdict)
		holds  bool
	}{
		"the same":          {func(*kvmVerdict) {}, true},
		"a month old":       {func(v *kvmVerdict) { v.At = v.At.AddDate(0, -1, 0) }, true},
		"another kernel":    {func(v *kvmVerdict) { v.Kernel = "6.1" }, false},
		"another boot":      {func(v *kvmVerdict) { v.BootID = "" }, false},
		"another VMM":       {func(v *kvmVerdict) { v.VMM = "7.2.23" }, false},
		"other rights":      {func(v *kvmVerdict) { v.Rights = !v.Rights }, false},
		"slow":              {func(v *kvmVerdict) { v.Report.Slow = true }, true},
		"slow, and old":     {func(v *kvmVerdict) { v.Report.Slow, v.At = true, v.At.Add(-slowHolds-time.Second) }, false},
		"slow, and to come": {func(v *kvmVerdict) { v.Report.Slow, v.At = true, v.At.Add(time.Second) }, false},
	} {
		kept := now
		c.change(&kept)
		if kept.holds(now) != c.holds {
			t.Errorf("%s: holds is %v", name, !c.holds)
		}
	}
}

// What was kept is found again by driver; what cannot be read is as nothing.
func TestVerdictsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kvm.json")
	if got := readVerdicts(path); got == nil || len(got) > 0 {
		t.Errorf("of no file: %v", got)
	}
	want := verdictOf(tartarus.Info{Version: "1"})
	must(t, writeVerdicts(path, map[string]kvmVerdict{"qemu": want}))
	if got := readVerdicts(path); len(got) != 1 || !got["qemu"].holds(want) {
		t.Errorf("kept %v", got)
	}
	for _, text := range []string{"", "null", `{"kernel":"6.1","usable":true}`, `[]`} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if got := readVerdicts(path); got == nil || len(got) > 0 {
			t.Errorf("of %q: %v", text, got)
		}
	}
}
