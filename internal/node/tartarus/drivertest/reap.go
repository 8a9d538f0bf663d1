package drivertest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// helperVar, in a process's environment, makes it an agent that starts the VM
// described there and never ends it.
const helperVar = "TARTARUS_DRIVERTEST_SPEC"

// HelperMain plays an agent that dies, if this process is to: then it does not
// return. newDriver makes the driver under test.
func HelperMain(newDriver func() (tartarus.Driver, error)) {
	text := os.Getenv(helperVar)
	if text == "" {
		return
	}
	if err := helper(text, newDriver); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func helper(text string, newDriver func() (tartarus.Driver, error)) error {
	var s tartarus.Spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	d, err := newDriver()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	vm, err := d.Start(ctx, s)
	if err != nil {
		return err
	}
	h, err := json.Marshal(vm.Handle())
	if err != nil {
		return err
	}
	fmt.Println(string(h))
	<-ctx.Done() // or SIGKILL, which is the point
	return ctx.Err()
}

// leave starts a VM in another process and kills that process.
func leave(t *testing.T, k *kit, s tartarus.Spec) tartarus.Handle {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(k.ctx(t), self, "-test.run=^$")
	cmd.Env = append(os.Environ(), helperVar+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	kerr := cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	var h tartarus.Handle
	if err != nil || kerr != nil || json.Unmarshal(line, &h) != nil {
		t.Fatalf("the other agent: %q, %v, %v", line, err, kerr)
	}
	return h
}

// reapLeftover: what an agent that was killed left is ended by the next, and
// its folder and disk serve again.
func reapLeftover(t *testing.T, k *kit, withHandle bool) {
	s := k.spec(t)
	h := leave(t, k, s)
	if h.Driver != k.driver.Info().Name {
		t.Errorf("handle %+v", h)
	}
	if h.Pid != 0 && len(processesOf(t, s)) == 0 {
		t.Error("the VM ended with its agent although it has no lifeline")
	}
	if !withHandle {
		h = tartarus.Handle{}
	}
	for range 2 {
		if err := k.driver.Reap(k.ctx(t), s.Dir, h); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, s)
	}
	k.kill(t, k.start(t, s))
	// An old handle names nobody any more, whoever has the pid now.
	h.Pid, h.StartTime = os.Getpid(), 1
	if err := k.driver.Reap(k.ctx(t), s.Dir, h); err != nil {
		t.Fatal(err)
	}
}

// reapNothing: there may be nothing to reap.
func reapNothing(t *testing.T, k *kit) {
	s := k.spec(t)
	for _, h := range []tartarus.Handle{{}, {Driver: k.driver.Info().Name, Pid: os.Getpid(), StartTime: 1, BootID: "another"}} {
		if err := k.driver.Reap(k.ctx(t), s.Dir, h); err != nil {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		t.Fatal(err)
	}
	if err := k.driver.Reap(k.ctx(t), s.Dir, tartarus.Handle{}); err != nil {
		t.Errorf("without a folder: %v", err)
	}
}

// reapOwn: reaping a VM of this very process ends it too.
func reapOwn(t *testing.T, k *kit) {
	s := k.spec(t)
	vm := k.start(t, s)
	if err := k.driver.Reap(k.ctx(t), s.Dir, vm.Handle()); err != nil {
		t.Fatal(err)
	}
	await(k.ctx(t), t, vm)
}
