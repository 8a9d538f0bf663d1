// Package soak holds the endless run: mixed load with faults for as long as
// asked, on a whole server in a process of its own whose VMs are fakes.
package soak_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// length is how long the load lasts: `make soak FOR=20m`.
var length = flag.Duration("for", 24*time.Second, "how long to load the server")

// roleVar makes this binary the server: its value is the folder that holds its
// state, policy, kernel and the file of orders.
const roleVar = "TARTARUS_SOAK_SERVER"

func TestMain(m *testing.M) {
	launcher.Main()
	if dir := os.Getenv(roleVar); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// policy lets a tenant load the server and be refused now and then.
const policy = `version: 1
tenants:
  local:
    quota: {live: 60, running: 12, vcpus: 1000, memory_mib: 1000000, disk_mib: 1000000, rate_per_minute: 1000000, burst: 100000}
defaults: {template: base, log_bytes: 262144}
rules:
  - name: no-root
    deny: request.user == "root"
    reason: Nothing runs as root here.
`

// serve is an up on fakes, which notes each order to execute outside its state.
// It ends with its standard input.
func serve(dir string) error {
	orders, err := os.OpenFile(filepath.Join(dir, "orders"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer orders.Close()
	ctx, stop := context.WithCancel(context.Background())
	go func() { // as long as the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	vms := fakevm.New(fakevm.Config{Script: script})
	return assembly.Run(ctx, assembly.Config{
		StateDir: filepath.Join(dir, "s"), Policy: filepath.Join(dir, "policy.yaml"), Listen: "127.0.0.1:0",
		Host: &assembly.Host{
			Driver: testkit.WatchOrders(vms, func(id sandbox.ID) { fmt.Fprintln(orders, id) }),
			Kernel: filepath.Join(dir, "vmlinux"),
		},
		Capacity: sandbox.Capacity{VCPUs: 10, MemoryMiB: 1 << 20, DiskMiB: 1 << 20},
	}, func(r assembly.Running) { fmt.Println(r.Addresses[1]) })
}

// script has VMs behave as real ones do: most boot, some are slow, some die
// while they boot.
func script(n int, _ tartarus.Spec) fakevm.Script {
	switch n % 20 {
	case 7:
		return fakevm.Script{NeverBoots: true, EndAfter: 20 * time.Millisecond}
	case 13:
		return fakevm.Script{BootDelay: 200 * time.Millisecond, KillDelay: 100 * time.Millisecond}
	}
	return fakevm.Script{BootDelay: time.Duration(n%5) * 5 * time.Millisecond}
}

// TestSoak loads a server for as long as asked. In the first half of the time
// it is killed again and again; the second half belongs to one process, whose
// memory and goroutines must stay.
func TestSoak(t *testing.T) {
	s := newSoak(t)
	began := time.Now()
	s.underLoad(*length/2, s.killNowAndThen)
	s.underLoad(*length/2, s.watchMemory)
	s.stop()
	s.nothingLostNothingTwice()
	s.nothingLeft()
	t.Logf("%v of load:\n%s", time.Since(began).Round(time.Second), s.summary())
}

// nothingLostNothingTwice holds what was admitted against what was executed.
// Whoever asked for a sandbox has waited for its end.
func (s *soak) nothingLostNothingTwice() {
	b, err := os.ReadFile(filepath.Join(s.dir, "orders"))
	if err != nil {
		s.t.Fatal(err)
	}
	ordered := map[string]int{}
	for id := range strings.FieldsSeq(string(b)) {
		if ordered[id]++; ordered[id] == 2 {
			s.t.Errorf("%s was executed twice", id)
		}
	}
	for id, end := range s.admitted { // nobody else is at it any more
		switch {
		case end == "":
			s.t.Errorf("%s was admitted, and nobody knows how it ended", id)
		case end == "exited" && ordered[id] != 1:
			s.t.Errorf("%s ended by itself and was executed %d times", id, ordered[id])
		}
	}
	for id := range ordered {
		if _, known := s.admitted[id]; !known {
			s.t.Errorf("%s was executed, and nobody asked for it", id)
		}
	}
	s.count("executed, each once", int64(len(ordered)))
	if len(s.admitted) == 0 || len(ordered) == 0 {
		s.t.Error("nothing ran: the test is blind")
	}
}

// nothingLeft looks for what the server should have taken with it. Cgroups and
// network links are not looked for: fakes have none, and others on this host
// may.
func (s *soak) nothingLeft() {
	state := filepath.Join(s.dir, "s")
	inv, err := testkit.TakeInventory(testkit.Scope{Mark: state, Dirs: []string{state}})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, line := range inv.More(s.before) {
		ofARun := strings.Contains(line, "/sandboxes/") || strings.Contains(line, "/local/") || strings.Contains(line, "/journal/sb-")
		if strings.HasPrefix(line, "process ") || strings.HasPrefix(line, "mount ") || strings.HasPrefix(line, "file ") && ofARun {
			s.t.Errorf("left: %s", line)
		}
	}
}
