package firecracker

import (
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// TestCardOnlyJailed: who takes a card takes it by name, and only root does.
func TestCardOnlyJailed(t *testing.T) {
	d := newDriver(t, scripted(t, "good"))
	if i := d.Info(); i.CanNetwork != (os.Getuid() == 0) || !i.CardByName {
		t.Errorf("%+v", i)
	}
}

// TestCardWithoutDevice: a card whose device is not there, or is another
// user's, is an error that says where, and nothing is left.
func TestCardWithoutDevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("an ordinary user's driver takes no card: TestCardOnlyJailed")
		return
	}
	d := newDriver(t, scripted(t, "good"))
	for name, owner := range map[string]int{"none": -1, "another user's": nobody} {
		s := newSpec(t)
		fillDummy(t, &s)
		s.UID, s.GID = nobody-1, nobody-1
		s.NIC = &tartarus.NIC{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Device: "tap0", Namespace: namespace(t, owner)}
		v, err := d.Start(t.Context(), s)
		if err == nil {
			t.Errorf("%s: it started", name)
			err = v.Kill(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), "adding the network card") || fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
		clean(t, s)
	}
}

// namespace is a network namespace of the test's own, with a TAP tap0 of that
// user in it, or without one.
func namespace(t *testing.T, owner int) *os.File {
	t.Helper()
	var f *os.File
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil && owner >= 0 {
			err = makeTAP("tap0", owner)
		}
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func makeTAP(name string, owner int) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	return errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}
