package tartarus_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func spec(t *testing.T) tartarus.Spec {
	t.Helper()
	dir := t.TempDir()
	s := tartarus.Spec{
		ID: sandbox.MakeID("01arz3ndektsv4rrffq69g5fav"), Dir: filepath.Join(dir, "vm"),
		Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"),
		Root: filepath.Join(dir, "root"), Scratch: filepath.Join(dir, "scratch"), VCPUs: 1, MemoryMiB: 128,
	}
	for _, p := range []string{s.Kernel, s.Initrd, s.Root, s.Scratch} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

// dial is the least that a connect does.
func dial(ctx context.Context, vm tartarus.VM) error {
	conn, err := vm.Dial(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}

func nth(scripts ...fakevm.Script) fakevm.Config {
	return fakevm.Config{Script: func(n int, _ tartarus.Spec) fakevm.Script { return scripts[min(n, len(scripts))-1] }}
}

// TestBoot boots VMs that hang, end and fail, on a clock that costs no time.
func TestBoot(t *testing.T) {
	hung := fakevm.Script{NeverBoots: true}
	good := fakevm.Script{BootDelay: time.Second}
	slow := fakevm.Script{BootDelay: 30 * time.Second}
	dies := fakevm.Script{NeverBoots: true, EndAfter: time.Second, End: tartarus.Exit{Code: 3, Stderr: "kernel panic"}}
	broken := fakevm.Script{StartErr: fault.New(fault.Unsupported, "no such machine")}
	stuck := fakevm.Script{StartDelay: time.Hour}
	computing := func(share float64) func(time.Duration) tartarus.Sample {
		return func(age time.Duration) tartarus.Sample { return tartarus.Sample{CPUSeconds: share * age.Seconds()} }
	}
	slowly := fakevm.Script{BootDelay: 55 * time.Second, Sample: computing(0.1)}
	spins := fakevm.Script{NeverBoots: true, Sample: computing(1)}
	for name, c := range map[string]struct {
		scripts []fakevm.Script
		policy  tartarus.BootPolicy
		attempt int           // that succeeds, or the last
		took    time.Duration // at most a second more
		kind    fault.Kind    // of the error
		says    string        // in the error; "" for none
	}{
		"at once":             {scripts: []fakevm.Script{good}, attempt: 1, took: time.Second},
		"hangs once":          {scripts: []fakevm.Script{hung, good}, attempt: 2, took: 21 * time.Second},
		"hangs twice":         {scripts: []fakevm.Script{hung, hung, good}, attempt: 3, took: 61 * time.Second},
		"ends once":           {scripts: []fakevm.Script{dies, good}, attempt: 2, took: 2 * time.Second},
		"start hangs once":    {scripts: []fakevm.Script{stuck, good}, attempt: 2, took: 21 * time.Second},
		"slow host":           {scripts: []fakevm.Script{slow}, attempt: 2, took: 50 * time.Second},
		"slow, but computes":  {scripts: []fakevm.Script{slowly}, attempt: 1, took: 55 * time.Second},
		"spins once":          {scripts: []fakevm.Script{spins, good}, attempt: 2, took: 36 * time.Second}, // 30 s of CPU, seen at the next look
		"hangs always":        {scripts: []fakevm.Script{hung}, attempt: 5, took: 300 * time.Second, kind: fault.Unavailable, says: "did not answer in 1m40s"},
		"ends always":         {scripts: []fakevm.Script{dies}, attempt: 5, took: 5 * time.Second, kind: fault.Unavailable, says: "kernel panic"},
		"cannot start":        {scripts: []fakevm.Script{broken, good}, attempt: 1, kind: fault.Unsupported, says: "no such machine"},
		"little patience":     {scripts: []fakevm.Script{hung, good}, policy: tartarus.BootPolicy{Attempts: 1, Timeout: 5 * time.Second}, attempt: 1, took: 5 * time.Second, kind: fault.Unavailable, says: "in 1 attempts"},
		"setup takes forever": {scripts: []fakevm.Script{good}, policy: tartarus.BootPolicy{Timeout: time.Millisecond, Attempts: 2}, attempt: 2, took: 3 * time.Millisecond, kind: fault.Unavailable, says: "attempt 2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(t)
			synctest.Test(t, func(t *testing.T) {
				d := fakevm.New(nth(c.scripts...))
				given := 0
				c.policy.GivenUp = func(n int, vm tartarus.VM, why error) {
					given++
					if n != given || why == nil || vm.Console(&bytes.Buffer{}) != nil {
						t.Errorf("given up %d: attempt %d, %v", given, n, why)
					}
				}
				began := time.Now()
				vm, n, err := tartarus.Boot(t.Context(), d, s, dial, c.policy)
				took := time.Since(began)
				if n != c.attempt || took < c.took || took > c.took+time.Second {
					t.Errorf("attempt %d after %v, want %d after %v", n, took, c.attempt, c.took)
				}
				if c.says != "" {
					if vm != nil || err == nil || !strings.Contains(err.Error(), c.says) || fault.KindOf(err) != c.kind {
						t.Errorf("got %v (%v)", err, fault.KindOf(err))
					}
				} else if err != nil {
					t.Fatal(err)
				} else if err := vm.Kill(t.Context()); err != nil {
					t.Error(err)
				}
				if d.Live() != 0 || d.Most() > 1 {
					t.Errorf("%d VMs are left, %d lived at once", d.Live(), d.Most())
				}
			})
		})
	}
}

// TestBootConnectFails: an error of connect while the VM lives is final.
func TestBootConnectFails(t *testing.T) {
	d := fakevm.New(fakevm.Config{})
	no := errors.New("a guest that speaks another language")
	calls := 0
	_, n, err := tartarus.Boot(t.Context(), d, spec(t), func(context.Context, tartarus.VM) error { calls++; return no }, tartarus.BootPolicy{})
	if !errors.Is(err, no) || n != 1 || calls != 1 || d.Live() != 0 {
		t.Errorf("%v after %d calls, attempt %d, %d VMs left", err, calls, n, d.Live())
	}
}

// TestBootStreamBreaksFirst: of a VM that dies the stream may break before it
// is seen to have ended; it is started anew all the same.
func TestBootStreamBreaksFirst(t *testing.T) {
	s := spec(t)
	synctest.Test(t, func(t *testing.T) {
		d := fakevm.New(fakevm.Config{})
		calls := 0
		connect := func(ctx context.Context, vm tartarus.VM) error {
			if calls++; calls > 1 {
				return dial(ctx, vm)
			}
			time.AfterFunc(100*time.Millisecond, func() { _ = vm.Kill(context.WithoutCancel(ctx)) })
			return errors.New("the stream broke")
		}
		vm, n, err := tartarus.Boot(t.Context(), d, s, connect, tartarus.BootPolicy{})
		if err != nil || n != 2 {
			t.Fatalf("attempt %d: %v", n, err)
		}
		if err := vm.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestBootCancelled: when the caller gives up, the VM is killed, and no other
// is started.
func TestBootCancelled(t *testing.T) {
	s := spec(t)
	synctest.Test(t, func(t *testing.T) {
		d := fakevm.New(nth(fakevm.Script{NeverBoots: true}))
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		_, _, err := tartarus.Boot(ctx, d, s, dial, tartarus.BootPolicy{})
		if !errors.Is(err, context.DeadlineExceeded) || d.Live() != 0 || d.Started() != 1 {
			t.Errorf("%v, %d VMs left of %d", err, d.Live(), d.Started())
		}
	})
}

// TestBootKillFails: two VMs on the same disks must never be, so an attempt
// that cannot be ended is the last.
func TestBootKillFails(t *testing.T) {
	s := spec(t)
	synctest.Test(t, func(t *testing.T) {
		d := fakevm.New(nth(fakevm.Script{NeverBoots: true, KillDelay: time.Hour}, fakevm.Script{}))
		_, n, err := tartarus.Boot(t.Context(), d, s, dial, tartarus.BootPolicy{})
		if err == nil || n != 1 || d.Started() != 1 {
			t.Errorf("attempt %d, %d VMs were started: %v", n, d.Started(), err)
		}
		// Nobody but this test can end it.
		if err := d.Reap(t.Context(), s.Dir, tartarus.Handle{}); err != nil {
			t.Error(err)
		}
	})
}

func TestExitString(t *testing.T) {
	got := []string{
		tartarus.Exit{Code: 1, Stderr: "no\n\x1b[2J"}.String(),
		tartarus.Exit{Code: -1, Signal: 9, ByKill: true}.String(),
		tartarus.Exit{Code: -1, Signal: 11}.String(),
		tartarus.Exit{Code: -1, Signal: 9, OOMKill: true}.String(),
	}
	want := []string{`exit status 1, last words "no\n\x1b[2J"`, "killed", "signal 11", "killed by the host's memory limit"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
