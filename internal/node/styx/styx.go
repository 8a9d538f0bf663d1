// Package styx is the network of a sandbox: the NetworkContract, held on the
// node.
//
// A sandbox with a contract gets a card on a bridge of ours, behind NAT, and
// its contract as firewall rules in tables of our own. What is not granted is
// denied, and below every grant there is a floor that none can lower. A
// sandbox without a contract gets no card at all, which is the safest
// contract.
//
//	guest ── port (isolated) ── bridge ── contract ── floor ── NAT ── uplink
//
// A port of the bridge takes only frames with its sandbox's own MAC and IPv4
// address, and delivers only what is for them; there is no IPv6. The kernel
// holds all state: ports are named by slot number, a slot's MAC and address
// follow from its number, and what was before us is written on the bridge. So
// whatever a process that died left can be found and removed by the next one.
//
// All of this happens in the network namespace of the process, and only once a
// first sandbox needs it; Close undoes it when no sandbox is left on the host.
//
// Not covered: whoever empties the whole ruleset of the host (as `nft flush
// ruleset` does) takes the contracts of running sandboxes away with it.
package styx

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/hostlock"
)

// Config is where sandboxes' cards are. The zero value is usable by root.
type Config struct {
	// Bridge is the name of the bridge, and of the tables; tartarus0 if empty.
	// Its ports are named after it.
	Bridge string

	// Gateway is the host's address on the bridge and the network of the
	// sandboxes; 172.16.0.1/16 if zero.
	Gateway netip.Prefix

	// Floor is what no sandbox reaches besides what none ever may: the
	// addresses of nodes, API and stores.
	Floor []netip.Prefix

	// Lock is the file by which the processes of a host take turns; one in
	// /run/tartarus if empty.
	Lock string

	Logger *slog.Logger // nil discards
}

// The defaults.
const (
	DefaultBridge  = "tartarus0"
	DefaultGateway = "172.16.0.1/16"
	DefaultLock    = hostlock.Dir + "/network.lock"
)

// bridgeName leaves room for the longest port's name behind it.
var bridgeName = regexp.MustCompile(`^[a-z][a-z0-9]{0,8}$`)

// Networks of another size have no room, or more slots than names.
const minBits, maxBits = 16, 29

func (c Config) withDefaults() Config {
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if c.Gateway == (netip.Prefix{}) {
		c.Gateway = netip.MustParsePrefix(DefaultGateway)
	}
	if c.Lock == "" {
		c.Lock = DefaultLock
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate reports the first setting that cannot be.
func (c Config) Validate() error {
	c = c.withDefaults()
	if !bridgeName.MatchString(c.Bridge) {
		return fault.Invalid("bridge", "give up to 9 lower-case letters and digits, as in tartarus0", "%q is no name for a bridge", c.Bridge)
	}
	g := c.Gateway
	if !g.IsValid() || !g.Addr().Is4() || g.Bits() < minBits || g.Bits() > maxBits || g.Addr() != g.Masked().Addr().Next() {
		return fault.Invalid("gateway", "give the first address of a private network of /16 to /29, as in 172.16.0.1/16", "%s is no network for sandboxes", g)
	}
	if !within(private, g.Masked()) {
		return fault.Invalid("gateway", "take it out of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16", "%s is no private network", g)
	}
	for i, p := range c.Floor {
		if !p.IsValid() {
			return fault.Invalid(fmt.Sprintf("floor[%d]", i), "give networks of the form address/bits", "an entry of the floor is malformed")
		}
	}
	if !filepath.IsAbs(c.Lock) {
		return fault.Invalid("lock", "give an absolute path", "%q is no absolute path", c.Lock)
	}
	return nil
}

// Network gives sandboxes their cards. All methods may be called at once, by
// any number of processes of a host.
type Network struct {
	host host
	lock string
	turn chan struct{} // holds a value while a goroutine has the turn
}

// New makes a Network. It touches nothing until the first Attach; Detect says
// whether that can work.
func New(cfg Config) (*Network, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	return &Network{host: newHost(cfg), lock: cfg.Lock, turn: make(chan struct{}, 1)}, nil
}
