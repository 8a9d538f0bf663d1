package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/testkit"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// TestLabRoad: the whole road on Firecracker, by the command line and over
// HTTP, and the record says what the VM ran in.
func TestLabRoad(t *testing.T) {
	state := realvm.NewState(t)
	r := realvm.Finish(t, realvm.Command(realvm.Patience(t), state, "run", "--", "uname", "-a"))
	if r.Code != 0 || !strings.HasPrefix(r.Stdout, "Linux sb-") {
		t.Errorf("%+v", r)
	}
	s := realvm.StartServer(t, state, orders(t), "")
	code, b := s.Call("POST", "/sandbox/run?wait=120s", `{"command": ["sh", "-c", "id -u; exit 4"]}`)
	rec := realvm.Decode[realvm.Record](t, b)
	if code != http.StatusOK || rec.Exit.Cause != "exited" || rec.Exit.Code == nil || *rec.Exit.Code != 4 {
		t.Errorf("%d %s", code, b)
	}
	if rec.Runtime.Driver != "firecracker" || rec.Runtime.Version == "" || rec.Isolation.Accelerator != "kvm" {
		t.Errorf("it ran in %+v, %+v", rec.Runtime, rec.Isolation)
	}
	for _, layer := range []string{"jail", "own_uid", "private_root", "no_capabilities", "vmm_seccomp", "cgroup_memory", "cgroup_swap_off", "pid_namespace", "network_namespace"} {
		if !slices.Contains(rec.Isolation.Confinement, layer) {
			t.Errorf("without the layer %s: %+v", layer, rec.Isolation)
		}
	}
	s.Stop()
	realvm.NothingLeft(t, state)
}

// TestLabNothingIsLeft: after twelve runs, four of them killed at random
// moments in different ways, the host is as it was.
func TestLabNothingIsLeft(t *testing.T) {
	state := realvm.NewState(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	scope := testkit.Scope{Dirs: []string{"/run", "/srv", "/dev/shm", "/var/tmp"}}
	before, err := testkit.TakeInventory(scope)
	if err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(policyOfNetwork), 0o600); err != nil {
		t.Fatal(err)
	}
	s := realvm.StartServer(t, state, orders(t), policy)
	kills := []func(s *realvm.Server, id string){killByCall, killVMM, killByCall, killVMM}
	var wg sync.WaitGroup
	turns := make(chan struct{}, 3) // how many at once
	for i := range 12 {
		network := ""
		if i%2 == 0 {
			network = `, "network": {"allow": [{"cidr": "198.51.100.10/32", "ports": [80]}]}`
		}
		moment := time.Duration(random.Int64N(int64(10 * time.Second)))
		turns <- struct{}{}
		rec := s.Run(fmt.Sprintf(`{"command": ["sh", "-c", "echo %d"]%s}`, i, network))
		wg.Go(func() {
			defer func() { <-turns }()
			if i%3 == 2 { // the others end by themselves
				time.Sleep(moment)
				kills[i/3](s, rec.ID)
			}
			rec = s.Ended(rec.ID)
			if killed := i%3 == 2; !killed && rec.State != "succeeded" || killed && !slices.Contains([]string{"exited", "killed", "guest_lost", "start_failed"}, rec.Exit.Cause) {
				t.Errorf("run %d: %+v", i, rec)
			}
		})
	}
	wg.Wait()
	s.Stop()
	after, err := testkit.TakeInventory(scope)
	if err != nil {
		t.Fatal(err)
	}
	if more, less := after.More(before), before.More(after); len(more)+len(less) > 0 {
		t.Errorf("there is more: %q, and less: %q", more, less)
	}
	realvm.NothingLeft(t, state)
}

func killByCall(s *realvm.Server, id string) {
	if code, b := s.Call("DELETE", "/sandbox/"+id+"?grace=0s", ""); code != http.StatusOK {
		s.T.Errorf("killing %s: %d %s", id, code, b)
	}
}

// killVMM kills every process of the sandbox's VM at once, if there are any.
func killVMM(s *realvm.Server, id string) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		s.T.Error(err)
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
		if err == nil && strings.Contains(string(cmdline), id) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
		}
	}
}
