package firecracker

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/node/cgroup"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/drivertest"
)

// labVar says that this is the lab, where KVM works. The tests whose names
// begin with TestLab are for there, and `make lab` runs them all.
const labVar = "TARTARUS_LAB"

func TestMain(m *testing.M) {
	launcher.Main()
	drivertest.HelperMain(func() (tartarus.Driver, error) {
		cfg := Config{Binary: os.Getenv(binaryVar), InsecureTestVMM: true, device: os.Getenv(deviceVar)}
		cfg.Cgroups, cfg.NoCgroups = groups(os.Getenv(groupsVar))
		return New(context.Background(), cfg)
	})
	flag.Parse()
	if os.Getenv(labVar) == "" {
		if err := flag.Set("test.skip", "^TestLab"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := removeStandin(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// What an agent that dies is told by its environment.
const (
	binaryVar = "TARTARUS_TEST_FIRECRACKER"
	deviceVar = "TARTARUS_TEST_KVM"     // what stands for /dev/kvm
	groupsVar = "TARTARUS_TEST_CGROUPS" // where this test has its cgroups
)

// groups is a tree of cgroups of this test's own, where this user may make
// any; else it says why not.
func groups(parent string) (*cgroup.Tree, string) {
	tree, err := cgroup.Detect(cgroup.Config{Parent: parent})
	if err != nil {
		return nil, err.Error()
	}
	return tree, ""
}
