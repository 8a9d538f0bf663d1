package tartarus_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
)

// TestTry: a guest that listens makes KVM usable, and nothing else does.
func TestTry(t *testing.T) {
	dies := tartarus.Exit{Code: 1, Stderr: "internal-error\nRAX=0000000000000000"}
	for name, c := range map[string]struct {
		script fakevm.Script
		want   tartarus.KVMReport // Why is a part of it
	}{
		"boots":          {fakevm.Script{BootDelay: time.Second}, tartarus.KVMReport{Usable: true, Why: "booted"}},
		"ends":           {fakevm.Script{NeverBoots: true, EndAfter: time.Second, End: dies}, tartarus.KVMReport{Why: "ends on it. internal-error"}},
		"hangs":          {fakevm.Script{NeverBoots: true}, tartarus.KVMReport{Why: "in 20s", Slow: true}},
		"does not start": {fakevm.Script{StartErr: errors.New("no such machine")}, tartarus.KVMReport{Why: "no such machine"}},
		"start hangs":    {fakevm.Script{StartDelay: time.Hour}, tartarus.KVMReport{Why: "does not start", Slow: true}},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(t)
			t.Setenv("TMPDIR", filepath.Dir(s.Dir))
			synctest.Test(t, func(t *testing.T) {
				d := fakevm.New(nth(c.script))
				r, err := tartarus.Try(t.Context(), d, tartarus.Trial{Kernel: s.Kernel, Initrd: s.Initrd})
				if err != nil || r.Usable != c.want.Usable || r.Slow != c.want.Slow || !strings.Contains(r.Why, c.want.Why) || strings.Contains(r.Why, "RAX") {
					t.Errorf("%+v, %v", r, err)
				}
				if d.Live() != 0 {
					t.Error("the VM lives on")
				}
			})
			if left, err := filepath.Glob(filepath.Join(filepath.Dir(s.Dir), "tartarus-trial-*")); len(left) > 0 || err != nil {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

// Whoever gives up gets no report that could be kept.
func TestTryGivenUp(t *testing.T) {
	s := spec(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := tartarus.Try(ctx, fakevm.New(nth(fakevm.Script{NeverBoots: true})), tartarus.Trial{Kernel: s.Kernel, Initrd: s.Initrd})
		if !errors.Is(err, context.DeadlineExceeded) || r != (tartarus.KVMReport{}) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestCheckKVM(t *testing.T) {
	dir := t.TempDir()
	device := filepath.Join(dir, "kvm")
	if err := tartarus.CheckKVM(device); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "there is no KVM") {
		t.Errorf("none: %v", err)
	}
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tartarus.CheckKVM(device); err != nil {
		t.Errorf("one that opens: %v", err)
	}
}
