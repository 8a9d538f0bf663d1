package styx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The tables are named after the bridge: one of family bridge, which holds
// sandboxes to their own addresses, and one of family ip, which holds them to
// their contracts. The sets in them:
//
//	guests     port . MAC . address     who is who
//	floor      addresses                what nobody reaches
//	private    addresses                what only a grant in it reaches
//	contracts  address → chain          one chain a sandbox
const (
	setGuests    = "guests"
	setFloor     = "floor"
	setPrivate   = "private"
	mapContracts = "contracts"
	chainRefuse  = "refuse"
)

// Where the chains stand among those of others. Contracts are held before
// anybody's destination NAT: they are about what the guest asked for.
const (
	first      = nftables.ChainPriority(-300)
	beforeDNAT = nftables.ChainPriority(-150)
	usual      = nftables.ChainPriority(0)
	sourceNAT  = nftables.ChainPriority(100)
	final      = nftables.ChainPriority(300)
)

// socketBytes are the buffers of a netlink socket: with the kernel's default
// the answers to a large contract are lost.
const socketBytes = 4 << 20

// rules are a batch for the firewall about one bridge. Nothing happens until
// flush, which is one atomic transaction.
type rules struct {
	cfg Config
	c   *nftables.Conn
	ids uint32 // of the batch's sets
}

func (c Config) rules() (*rules, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBytes), c.SetWriteBuffer(socketBytes))
	}))
	if err != nil {
		return nil, fmt.Errorf("speaking to the firewall: %w", err)
	}
	return &rules{cfg: c, c: conn}, nil
}

func (r *rules) ip() *nftables.Table {
	return &nftables.Table{Name: r.cfg.Bridge, Family: nftables.TableFamilyIPv4}
}

func (r *rules) bridge() *nftables.Table {
	return &nftables.Table{Name: r.cfg.Bridge, Family: nftables.TableFamilyBridge}
}

func (r *rules) guests() *nftables.Set {
	return &nftables.Set{
		Table: r.bridge(), Name: setGuests, ID: r.id(), Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr),
	}
}

func (r *rules) contracts() *nftables.Set {
	return &nftables.Set{
		Table: r.ip(), Name: mapContracts, ID: r.id(), IsMap: true,
		KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict,
	}
}

// id numbers a set within the batch.
func (r *rules) id() uint32 { r.ids++; return r.ids }

func (r *rules) flush(what string) error {
	if err := r.c.Flush(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (r *rules) rule(c *nftables.Chain, parts ...part) {
	r.c.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: slices.Concat(parts...)})
}

func (r *rules) base(name string, table *nftables.Table, kind nftables.ChainType, hook *nftables.ChainHook, at nftables.ChainPriority) *nftables.Chain {
	return r.c.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: &at})
}

// ready reports whether both tables are there.
func (r *rules) ready() (bool, error) {
	n := 0
	for _, want := range []*nftables.Table{r.ip(), r.bridge()} {
		tables, err := r.c.ListTablesOfFamily(want.Family)
		if err != nil {
			return false, fmt.Errorf("listing the firewall's tables: %w", err)
		}
		if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == want.Name }) {
			n++
		}
	}
	return n == 2, nil
}

// make puts both tables in the place of what there is of them.
func (r *rules) make() error {
	r.wipe()
	if err := errors.Join(r.makeBridge(), r.makeIP()); err != nil {
		return fmt.Errorf("writing the firewall's rules: %w", err)
	}
	return r.flush("making the firewall's tables")
}

// wipe takes both tables away, there or not.
func (r *rules) wipe() {
	for _, t := range []*nftables.Table{r.ip(), r.bridge()} {
		r.c.AddTable(t)
		r.c.DelTable(t)
	}
}

func (r *rules) remove() error {
	r.wipe()
	return r.flush("removing the firewall's tables")
}

// makeBridge: the frames of a port carry its sandbox's MAC and address, in
// both directions, and the gateway's at the other end. VLANs, IPv6 and whatever
// else there is are dropped.
func (r *rules) makeBridge() error {
	t := r.c.AddTable(r.bridge())
	guests := r.guests()
	if err := r.c.AddSet(guests, nil); err != nil {
		return err
	}
	port, gateway := []byte(r.cfg.portPrefix()), bytes4(r.cfg.Gateway.Addr())

	from := r.base("from_guests", t, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, first)
	r.rule(from, iifname.isNo(port), accept)
	r.rule(from, isIPv4, etherTarget.is(macOf(r.cfg.Gateway.Addr())), in(guests, iifname, etherSource, ipSource), accept)
	r.rule(from, isARP, arpTargetIP.is(gateway), in(guests, iifname, etherSource, arpSenderIP),
		in(guests, iifname, arpSenderMAC, arpSenderIP), accept)
	r.rule(from, drop)

	to := r.base("to_guests", t, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, final)
	r.rule(to, oifname.isNo(port), accept)
	r.rule(to, isIPv4, in(guests, oifname, etherTarget, ipTarget), accept)
	r.rule(to, isARP, arpSenderIP.is(gateway), accept)
	r.rule(to, drop)
	return nil
}

// makeIP: what comes from the bridge is refused unless a contract accepts it,
// and only what belongs to that goes back.
func (r *rules) makeIP() error {
	t := r.c.AddTable(r.ip())
	closed, err := r.ranges(t, setFloor, slices.Concat(floor, r.cfg.Floor, []netip.Prefix{r.cfg.Gateway.Masked()}))
	if err != nil {
		return err
	}
	if _, err := r.ranges(t, setPrivate, private); err != nil {
		return err
	}
	contracts := r.contracts()
	if err := r.c.AddSet(contracts, nil); err != nil {
		return err
	}
	here := whole(r.cfg.Bridge)

	refuse := r.c.AddChain(&nftables.Chain{Name: chainRefuse, Table: t})
	const prohibited = 13
	r.rule(refuse, part{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: prohibited}})

	from := r.base("from_guests", t, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, beforeDNAT)
	r.rule(from, iifname.isNo(here), accept)
	r.rule(from, in(closed, ipTarget), goTo(chainRefuse))
	r.rule(from, notElsewhere(), goTo(chainRefuse))
	r.rule(from, part{ipSource.load(reg1), &expr.Lookup{
		SourceRegister: reg1, IsDestRegSet: true, SetName: contracts.Name, SetID: contracts.ID, // DestRegister 0: the verdict's
	}})
	r.rule(from, goTo(chainRefuse))

	// Nothing of what follows would meet a packet that was refused above: it
	// stands against destination NAT of others, and against what comes to the
	// bridge from elsewhere.
	through := r.base("through", t, nftables.ChainTypeFilter, nftables.ChainHookForward, usual)
	r.rule(through, iifname.is(here), in(closed, ipTarget), drop)
	r.rule(through, oifname.is(here), belongs(), accept)
	r.rule(through, oifname.is(here), drop)
	to := r.base("to_host", t, nftables.ChainTypeFilter, nftables.ChainHookInput, usual)
	r.rule(to, iifname.is(here), drop)
	out := r.base("from_host", t, nftables.ChainTypeFilter, nftables.ChainHookOutput, usual)
	for _, kind := range []byte{3, 11} { // unreachable, with our own refusals; time exceeded
		r.rule(out, oifname.is(here), l4proto.is([]byte{unix.IPPROTO_ICMP}), icmpType.is([]byte{kind}), accept)
	}
	r.rule(out, oifname.is(here), drop)

	nat := r.base("source", t, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, sourceNAT)
	r.rule(nat, oifname.isNo(here), within4(ipSource, r.cfg.Gateway), part{&expr.Masq{}})
	return nil
}

// ranges makes a set of networks.
func (r *rules) ranges(t *nftables.Table, name string, prefixes []netip.Prefix) (*nftables.Set, error) {
	s := &nftables.Set{Table: t, Name: name, ID: r.id(), Interval: true, KeyType: nftables.TypeIPAddr}
	var elements []nftables.SetElement
	for _, i := range intervals(prefixes) {
		elements = append(elements, nftables.SetElement{Key: bytes4(i.first)})
		if i.end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: bytes4(i.end), IntervalEnd: true})
		}
	}
	return s, r.c.AddSet(s, elements)
}

// add puts a sandbox's contract into force: one transaction, the whole
// contract or nothing of it.
func (r *rules) add(s slot, grants []allow) error {
	t := r.ip()
	c := r.c.AddChain(&nftables.Chain{Name: chainOf(s), Table: t})
	r.c.FlushChain(c) // of a sandbox before that was not removed in order
	private := &nftables.Set{Name: setPrivate}
	closed := false
	for _, g := range grants {
		if !g.private && !closed {
			r.rule(c, in(private, ipTarget), goTo(chainRefuse))
			closed = true
		}
		ports, err := r.ports(t, g.ports)
		if err != nil {
			return err
		}
		r.rule(c, within4(ipTarget, g.to), l4proto.is([]byte{g.proto}), ports, accept)
	}
	err := errors.Join(
		r.c.SetAddElements(r.guests(), []nftables.SetElement{{Key: r.guestKey(s)}}),
		r.c.SetAddElements(r.contracts(), []nftables.SetElement{r.contractElement(s)}))
	if err != nil {
		return err
	}
	return r.flush("putting the contract into force")
}

// ports matches one of the target ports.
func (r *rules) ports(t *nftables.Table, ports []uint16) (part, error) {
	if len(ports) == 1 {
		return targetPort.is(binary.BigEndian.AppendUint16(nil, ports[0])), nil
	}
	s := &nftables.Set{Table: t, Name: "__set%d", ID: r.id(), Anonymous: true, Constant: true, KeyType: nftables.TypeInetService}
	elements := make([]nftables.SetElement, len(ports))
	for i, p := range ports {
		elements[i].Key = binary.BigEndian.AppendUint16(nil, p)
	}
	return in(s, targetPort), r.c.AddSet(s, elements)
}

// drop takes a sandbox's contract away, and with it everything that it could
// reach. It must be there.
func (r *rules) drop(s slot) error {
	err := errors.Join(
		r.c.SetDeleteElements(r.contracts(), []nftables.SetElement{r.contractElement(s)}),
		r.c.SetDeleteElements(r.guests(), []nftables.SetElement{{Key: r.guestKey(s)}}))
	if err != nil {
		return err
	}
	r.c.DelChain(&nftables.Chain{Name: chainOf(s), Table: r.ip()})
	return r.flush("taking the contract back")
}

// held are the slots whose contracts are in force.
func (r *rules) held() (map[slot]bool, error) {
	elements, err := r.c.GetSetElements(r.contracts())
	if err != nil {
		return nil, fmt.Errorf("listing the contracts in force: %w", err)
	}
	out := map[slot]bool{}
	for _, e := range elements {
		if a, ok := netip.AddrFromSlice(e.Key); ok {
			if s, ok := r.cfg.slotOfAddress(a); ok {
				out[s] = true
			}
		}
	}
	return out, nil
}

func chainOf(s slot) string { return fmt.Sprintf("contract_%d", s) }

// guestKey is the name, the MAC and the address of a slot, each padded to the
// kernel's words.
func (r *rules) guestKey(s slot) []byte {
	a := r.cfg.address(s)
	b := append(whole(r.cfg.portName(s)), macOf(a)...)
	return append(append(b, 0, 0), bytes4(a)...)
}

func (r *rules) contractElement(s slot) nftables.SetElement {
	return nftables.SetElement{
		Key: bytes4(r.cfg.address(s)), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chainOf(s)},
	}
}

func bytes4(a netip.Addr) []byte { b := a.As4(); return b[:] }

func nativeU32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
