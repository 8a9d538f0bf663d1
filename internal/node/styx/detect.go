package styx

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Detect reports why this process cannot give sandboxes a network card; nil if
// it can. It finds out by giving one, in a network namespace of the trial's
// own: the host's network is only looked at.
func Detect(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	lacks := func(err error, what, hint string) error {
		return fault.Wrap(fault.Unsupported, err, "sandboxes get no network card here: %s", what).WithHint("%s", hint)
	}
	if !capable(unix.CAP_NET_ADMIN) {
		return lacks(nil, "this process has not the capability CAP_NET_ADMIN", "run as root, or give it CAP_NET_ADMIN and CAP_SYS_ADMIN")
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return lacks(err, "/dev/net/tun cannot be opened", "load the kernel module: modprobe tun")
	}
	_ = tun.Close()
	h := newHost(cfg.withDefaults())
	if b, err := h.bridge(); err != nil {
		return err
	} else if b == nil {
		if err := h.free(); err != nil {
			return err
		}
	}
	err = inNewNamespace(h.trial)
	if errors.Is(err, unix.EPERM) {
		return lacks(err, "a network namespace cannot be made", "run as root, or give it CAP_SYS_ADMIN besides CAP_NET_ADMIN")
	}
	if err != nil {
		return lacks(err, "the kernel lacks a bridge, nftables (bridge, nat, fib, reject) or conntrack", "use a kernel of 5.10 or later that has them; its modules may have to be loaded")
	}
	return nil
}

// trial walks the road of a card, up to where it would be used.
func (h host) trial() error {
	w := Want{Contract: sandbox.NetworkContract{Allow: []sandbox.Grant{
		{CIDR: "198.51.100.0/24", Protocol: "tcp", Ports: []int{80, 443}},
		{CIDR: "10.0.0.0/8", Protocol: "udp", Ports: []int{53}},
	}}}
	grants, err := compile(w.Contract)
	if err != nil {
		return err
	}
	card, err := h.attach(w, grants)
	if err != nil {
		return err
	}
	s, _ := h.cfg.slotOfName(card.Name)
	return errors.Join(h.forget(s), card.Close()) // the rest ends with the namespace
}

func newHost(cfg Config) host { return host{cfg: cfg} }

// capable reports whether this process has a capability in effect.
func capable(c int) bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
