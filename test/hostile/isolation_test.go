package hostile_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/testkit"
	"github.com/tartarus-vm/tartarus/test/realvm"
)

// TestRecordedIsolation: the isolation in a record is what the kernel says of
// the process that ran the VM, with an agent that is root and one that is not.
func TestRecordedIsolation(t *testing.T) {
	starts := map[string]func(*testing.T, string, ...string) *realvm.Up{"this user": realvm.StartUp}
	if os.Geteuid() == 0 {
		starts["an ordinary user"] = realvm.StartUpAsNobody
	}
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			state := realvm.NewState(t)
			u := start(t, state)
			id := u.Run(shell("sleep 100").body(t)).ID
			u.Follow(id, func(state string) bool { return state == "running" })
			found, err := testkit.Layers(vmmOf(t, state), u.Cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			kill(&u.Server, id)
			rec := u.Ended(id)
			told := append(slices.Clone(rec.Isolation.Confinement), rec.Isolation.Missing...)
			compared := 0
			for layer, is := range found {
				known := slices.ContainsFunc(told, func(s string) bool { return s == layer || strings.HasPrefix(s, layer+":") })
				if !known {
					continue // a driver with a jail has other names for some
				}
				compared++
				if has := slices.Contains(rec.Isolation.Confinement, layer); has != is {
					t.Errorf("%s: the record says %v, the kernel %v", layer, has, is)
				}
			}
			t.Logf("%d layers compared; on: %v; missing: %q", compared, rec.Isolation.Confinement, rec.Isolation.Missing)
			if compared < 6 {
				t.Errorf("only %d layers were compared", compared)
			}
			u.End()
			realvm.NothingLeft(t, state)
		})
	}
}

// vmmOf is the pid of the one VMM of a state folder.
func vmmOf(t *testing.T, state string) int {
	t.Helper()
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, exe := range exes {
		dir := filepath.Dir(exe)
		to, err := os.Readlink(exe)
		name := filepath.Base(to)
		if err != nil || !strings.HasPrefix(name, "qemu-system") && !strings.HasPrefix(name, "firecracker") {
			continue
		}
		if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); name != "firecracker" && (err != nil || !strings.Contains(string(line), state)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, pid)
	}
	if len(found) != 1 {
		t.Fatalf("there are %d VMMs, not one", len(found))
	}
	return found[0]
}
