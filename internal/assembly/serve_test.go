package assembly

import (
	"net"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
)

// kvm is a driver that says it has KVM.
type kvm struct{ tartarus.Driver }

func (k kvm) Info() tartarus.Info {
	i := k.Driver.Info()
	i.Accelerator = "kvm"
	return i
}

// Callers beyond this host are served where VMs have KVM, or where it was said
// that they may do without.
func TestBeyondLoopbackNeedsKVM(t *testing.T) {
	fake := fakevm.New(fakevm.Config{})
	beyond, here := &net.TCPAddr{IP: net.IPv4zero, Port: 443}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443}
	for name, c := range map[string]struct {
		addr    net.Addr
		driver  tartarus.Driver
		allowed bool
		serves  bool
	}{
		"loopback, no KVM":                {here, fake, false, true},
		"a socket, no KVM":                {&net.UnixAddr{}, fake, false, true},
		"beyond, KVM":                     {beyond, kvm{fake}, false, true},
		"beyond, no KVM":                  {beyond, fake, false, false},
		"an address, no KVM":              {&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, fake, false, false},
		"beyond, no KVM, but it was said": {beyond, fake, true, true},
	} {
		e := &embedded{cfg: Config{AllowTCG: c.allowed}, driver: c.driver}
		if err := e.mayServe(c.addr); (err == nil) != c.serves || err != nil && !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
