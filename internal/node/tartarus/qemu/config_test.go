package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright": "7.2.22",
		"QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1.10)":               "8.2.2",
		"QEMU emulator version 10.0.50 (v10.0.0-1-g0)":                              "10.0.50",
		"QEMU emulator version 9.1":                                                 "9.1.0",
		"qemu 7.2":                                                                  "",
		"version x":                                                                 "",
		"version 99999999999999.1":                                                  "",
	} {
		v, err := parseVersion(text)
		if (err != nil) != (want == "") || (err == nil && v.String() != want) {
			t.Errorf("%q is %v, %v", text, v, err)
		}
	}
	if !(version{7, 1, 99}).before(oldest) || oldest.before(oldest) || (version{10, 0, 0}).before(oldest) || !(version{6, 9, 9}).before(oldest) {
		t.Error("versions are compared wrongly")
	}
}

// TestNewRefuses: a QEMU that is missing, too old or none says so, and what to
// do.
func TestNewRefuses(t *testing.T) {
	script := func(text string) string {
		path := filepath.Join(t.TempDir(), "qemu")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		cfg  Config
		kind fault.Kind
		says string
	}{
		"missing":     {Config{Binary: "/nonexistent/qemu"}, fault.Unsupported, "no QEMU"},
		"too old":     {Config{Binary: script("echo QEMU emulator version 7.1.0")}, fault.Unsupported, "QEMU 7.1.0 is too old"},
		"no version":  {Config{Binary: script("echo hello")}, fault.Unsupported, "does not tell its version"},
		"fails":       {Config{Binary: script("echo cannot load libfoo >&2; exit 127")}, fault.Unsupported, "cannot load libfoo"},
		"accelerator": {Config{Accel: "hax"}, fault.InvalidArgument, "hax"},
		"broken KVM":  {Config{Accel: AccelKVM, KVM: &tartarus.KVMReport{Why: "it dreams"}}, fault.Unsupported, "it dreams"},
	} {
		_, err := New(t.Context(), c.cfg)
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(ctx, Config{}); err == nil {
		t.Error("New went on without its context")
	}
}

func TestAccelerator(t *testing.T) {
	yes, no := &tartarus.KVMReport{Usable: true}, &tartarus.KVMReport{}
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "tcg"}, {Config{KVM: no}, "tcg"}, {Config{KVM: yes}, "kvm"}, {Config{Accel: AccelAuto, KVM: yes}, "kvm"},
		{Config{Accel: AccelTCG, KVM: yes}, "tcg"}, {Config{Accel: AccelKVM}, "kvm"},
	} {
		if got := c.cfg.accelerator(); got != c.want {
			t.Errorf("%+v is %s", c.cfg, got)
		}
	}
}

// TestArgs holds the parts of the command line that isolation and its price
// depend on.
func TestArgs(t *testing.T) {
	s := tartarus.Spec{
		ID: sandbox.MakeID("01arz3ndektsv4rrffq69g5fav"), Dir: "/private/vm", Kernel: "/k", Initrd: "/i", Root: "/secret/root",
		Scratch: "/secret/scratch", Cmdline: "tartarus.x=1 -- y", VCPUs: 2, MemoryMiB: 256,
	}
	b := boot{machine: machines["amd64"], accel: "tcg", tscKHz: 2600000, spec: s}
	all := strings.Join(b.args(), "\n")
	for _, want := range []string{
		"-nodefaults", "-no-user-config", "mem-merge=off", "dump-guest-core=off", fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationMiB),
		"on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "size=256M,merge=off,dump=off", "-smp\n2",
		"node-name=root,filename=/dev/fdset/5,locking=off,drop-cache=off,read-only=on", "guest=" + string(s.ID), "size=65536",
		"tsc_early_khz=2600000 tsc=reliable tartarus.x=1 -- y",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	for _, no := range []string{"/secret", "/private", "-net", "vnc"} {
		if strings.Contains(all, no) {
			t.Errorf("%q is in\n%s", no, all)
		}
	}
	b.accel = "kvm"
	all = strings.Join(b.args(), "\n")
	if strings.Contains(all, "tsc") || !slices.Contains(b.args(), "host") {
		t.Errorf("with KVM:\n%s", all)
	}
	if translationMiB+32 > sandbox.VMOverheadMiB {
		t.Error("the translation buffer leaves no room in what placement counts for a VMM")
	}
}

func TestEvenRate(t *testing.T) {
	for _, c := range []struct {
		rates []int64
		want  int64
	}{
		{[]int64{2600000, 2600010, 2599990, 2600001, 2600002}, 2600001},
		{[]int64{2600000, 9, 2600010, 99600000, 2600002}, 2600002}, // two windows were disturbed
		{[]int64{1000000, 2000000, 3000000, 2500000, 1500000}, 0},
		{[]int64{0, 0, 0, 0, 0}, 0},
	} {
		if got := evenRate(slices.Clone(c.rates)); got != c.want {
			t.Errorf("%v is %d", c.rates, got)
		}
	}
	a, b := measureTSC(), measureTSC()
	if hasCounter && (a < 100_000 || a > 20_000_000 || max(a, b)-min(a, b) > a/tscSpread) {
		t.Errorf("the counter runs at %d and %d kHz", a, b)
	}
}
