package fakevm_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/drivertest"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
)

func TestMain(m *testing.M) {
	drivertest.HelperMain(func() (tartarus.Driver, error) { return fakevm.New(fakevm.Config{}), nil })
	goleak.VerifyTestMain(m)
}

// fill makes the files that a VM is made of.
func fill(t *testing.T, s *tartarus.Spec) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range []*string{&s.Kernel, &s.Initrd, &s.Root} {
		*p = filepath.Join(dir, strconv.Itoa(len(*p))+"file")
		if err := os.WriteFile(*p, nil, 0o444); err != nil && !os.IsPermission(err) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.Scratch, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.MemoryMiB = 128
}

func TestDriver(t *testing.T) {
	drivertest.Run(t, drivertest.Harness{
		New: func(*testing.T) tartarus.Driver {
			return fakevm.New(fakevm.Config{Snapshots: true, Script: func(int, tartarus.Spec) fakevm.Script {
				return fakevm.Script{StartDelay: 5 * time.Millisecond, BootDelay: 20 * time.Millisecond}
			}})
		},
		Spec: fill,
		Broken: func(*testing.T) (tartarus.Driver, string) {
			return fakevm.New(fakevm.Config{Script: func(int, tartarus.Spec) fakevm.Script {
				return fakevm.Script{StartErr: errors.New("last words")}
			}}), "last words"
		},
		KillOutside: func(t *testing.T, vm tartarus.VM) { vm.(*fakevm.VM).Crash() },
		Echo:        []string{"echo"},
		Flood:       func(n int) []string { return []string{"console", strconv.Itoa(n)} },
		Timeout:     20 * time.Second,
	})
}
