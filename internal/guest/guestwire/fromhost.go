package guestwire

import "slices"

// magicHost begins every HelloHost.
const magicHost = 0x54_52_54_53_0d_0a_7f_01

// HelloHost opens a stream. Its layout never changes.
type HelloHost struct {
	Nonce      uint64 // random; HelloGuest repeats it
	MinVersion uint16
	MaxVersion uint16
	Generation uint32 // from 1, higher for each stream
	Acked      uint32 // the last request whose answer the host has
	Flows      []FlowOffset
}

// HelloHostPrefix is how the payload of every HelloHost begins.
func HelloHostPrefix() []byte {
	e := encoder{}
	e.u64(magicHost)
	return e.b
}

// RootKind says what the commands see as /.
type RootKind uint8

// The kinds of root.
const (
	RootDisks     RootKind = iota // the template's disk under the scratch disk
	RootInitramfs                 // what the guest booted with: for trials without disks
)

// Words on the kernel's command line, for the init of a guest that will be
// saved.
const (
	// WordWarm has it read the files of its template that commands read first.
	WordWarm = "tartarus.warm"

	// WordExactClock has it give up a boot whose timer it would have to mend
	// for as long as the guest lives: all that go on from it would wake for that.
	WordExactClock = "tartarus.exactclock"
)

// Setup gives a guest its identity and limits. It is the first request, and may
// come again as long as the guest has no process: a VM that waited for its
// sandbox becomes that sandbox's with it.
type Setup struct {
	Req         uint32
	Hostname    string
	WallClock   int64  // nanoseconds since 1970; 0 leaves the clock alone
	Entropy     []byte // fresh random bytes of the host
	MachineID   string // 32 hexadecimal digits, or "" for none
	User        string // owns files and runs commands, unless they say otherwise; as in Start
	MemoryBytes int64  // for all commands together; 0 for what the guest can spare
	Processes   int64  // at once; 0 for no limit but the kernel's
	Root        RootKind
	Network     *Network // nil: none is set up; since version 2
}

// Network is how the guest's one card is set up. There is no resolver.
type Network struct {
	MAC     [6]byte // of the card that is meant
	Address [4]byte
	Bits    uint8 // of the network's prefix, 1 to 30
	Gateway [4]byte
}

// PutFile writes a file, whose content follows in FileData. An empty file has
// none. Missing folders are made. The owner is Setup's user.
type PutFile struct {
	Req  uint32
	Path string // absolute, clean
	Mode uint32 // permission bits
	Size int64
}

// FileData is the next piece of the file of the last PutFile.
type FileData struct {
	Req  uint32
	Data []byte // aliases the payload
}

// Part is a piece of a Start that is too long for one frame.
type Part struct {
	Req  uint32
	Data []byte // aliases the payload
}

// Start starts a process.
type Start struct {
	Req       uint32
	Proc      uint32   // its number from here on
	Argv      []string // argv[0] is looked up in PATH if it has no slash
	Env       []string // NAME=value; PATH, HOME and USER are added where missing
	Cwd       string   // "" for the user's home
	MakeCwd   bool     // make Cwd, the user's, if it is missing
	User      string   // name or number, with :group if wanted; "" for Setup's
	StdinOpen bool     // In is a stream; otherwise it is empty
	TTY       bool     // reserved: must be false
}

// Signal sends a signal to a process and its group. A process that has ended
// is no error.
type Signal struct {
	Req    uint32
	Proc   uint32
	Signal uint8
}

// StatsRequest asks for Stats.
type StatsRequest struct{ Req uint32 }

// Shutdown ends all processes and powers the guest off after the answer.
type Shutdown struct{ Req uint32 }

// Release lets the guest forget an ended process. It has no answer.
type Release struct {
	Req  uint32
	Proc uint32
}

// Data is bytes of a flow.
type Data struct {
	Proc   uint32
	Flow   Flow
	Offset int64  // of the first byte, from the start of the flow
	Bytes  []byte // 1 to MaxData; aliases the payload
}

// Credit says how far the receiver of a flow has it, and how far the other
// end may send.
type Credit struct {
	Proc  uint32
	Flow  Flow
	Acked int64
	Limit int64 // never falls
}

// EOF ends a flow. From the sender: there is no more than Offset bytes. From
// the receiver: nobody reads beyond Offset.
type EOF struct {
	Proc   uint32
	Flow   Flow
	Offset int64
}

// Type is TypeHelloHost.
func (*HelloHost) Type() Type { return TypeHelloHost }

// Type is TypeSetup.
func (*Setup) Type() Type { return TypeSetup }

// Type is TypePutFile.
func (*PutFile) Type() Type { return TypePutFile }

// Type is TypeFileData.
func (*FileData) Type() Type { return TypeFileData }

// Type is TypePart.
func (*Part) Type() Type { return TypePart }

// Type is TypeStart.
func (*Start) Type() Type { return TypeStart }

// Type is TypeSignal.
func (*Signal) Type() Type { return TypeSignal }

// Type is TypeStatsRequest.
func (*StatsRequest) Type() Type { return TypeStatsRequest }

// Type is TypeShutdown.
func (*Shutdown) Type() Type { return TypeShutdown }

// Type is TypeRelease.
func (*Release) Type() Type { return TypeRelease }

// Type is TypeData.
func (*Data) Type() Type { return TypeData }

// Type is TypeCredit.
func (*Credit) Type() Type { return TypeCredit }

// Type is TypeEOF.
func (*EOF) Type() Type { return TypeEOF }

func (m *HelloHost) encode(e *encoder) {
	e.u64(magicHost)
	e.u64(m.Nonce)
	e.u16(m.MinVersion)
	e.u16(m.MaxVersion)
	e.u32(m.Generation)
	e.u32(m.Acked)
	e.flows(m.Flows)
}

func (m *HelloHost) decode(d *decoder) {
	d.bad = d.u64() != magicHost || d.bad
	m.Nonce = d.u64()
	m.MinVersion = d.u16()
	m.MaxVersion = d.u16()
	m.Generation = d.u32()
	m.Acked = d.u32()
	m.Flows = d.flows()
}

func (m *Setup) encode(e *encoder) {
	e.u32(m.Req)
	e.str(m.Hostname, MaxName)
	e.i64(m.WallClock)
	e.data(m.Entropy, MaxEntropy)
	e.str(m.MachineID, MaxName)
	e.str(m.User, MaxName)
	e.offset(m.MemoryBytes)
	e.offset(m.Processes)
	e.bad = e.bad || m.Root > RootInitramfs
	e.u8(uint8(m.Root))
	if n := m.Network; n != nil { // it ends here without, as in version 1
		e.bad = e.bad || !n.valid()
		e.b = slices.Concat(e.b, n.MAC[:], n.Address[:], []byte{n.Bits}, n.Gateway[:])
	}
}

func (m *Setup) decode(d *decoder) {
	m.Req = d.u32()
	m.Hostname = d.str(MaxName)
	m.WallClock = d.i64()
	m.Entropy = d.data(MaxEntropy)
	m.MachineID = d.str(MaxName)
	m.User = d.str(MaxName)
	m.MemoryBytes = d.offset()
	m.Processes = d.offset()
	m.Root = RootKind(d.u8())
	d.bad = d.bad || m.Root > RootInitramfs
	m.Network = nil
	if len(d.b) == 0 || d.bad {
		return
	}
	m.Network = new(Network)
	for _, f := range [][]byte{m.Network.MAC[:], m.Network.Address[:]} {
		copy(f, d.take(len(f)))
	}
	m.Network.Bits = d.u8()
	copy(m.Network.Gateway[:], d.take(len(m.Network.Gateway)))
	d.bad = d.bad || !m.Network.valid()
}

// maxBits leaves room for a gateway and a guest.
const maxBits = 30

func (n *Network) valid() bool { return n.Bits >= 1 && n.Bits <= maxBits && n.MAC[0]&1 == 0 }

func (m *PutFile) encode(e *encoder) {
	e.u32(m.Req)
	e.str(m.Path, MaxPath)
	e.u32(m.Mode)
	e.bad = e.bad || m.Mode > 0o777 || m.Size > MaxFile
	e.offset(m.Size)
}

func (m *PutFile) decode(d *decoder) {
	m.Req = d.u32()
	m.Path = d.str(MaxPath)
	m.Mode = d.u32()
	m.Size = d.offset()
	d.bad = d.bad || m.Mode > 0o777 || m.Size > MaxFile
}

func (m *FileData) encode(e *encoder) {
	e.u32(m.Req)
	e.data(m.Data, MaxData)
}

func (m *FileData) decode(d *decoder) {
	m.Req = d.u32()
	m.Data = d.data(MaxData)
}

func (m *Part) encode(e *encoder) {
	e.u32(m.Req)
	e.data(m.Data, MaxData)
}

func (m *Part) decode(d *decoder) {
	m.Req = d.u32()
	m.Data = d.data(MaxData)
}

func (m *Start) encode(e *encoder) {
	e.u32(m.Req)
	e.u32(m.Proc)
	e.longs(m.Argv)
	e.longs(m.Env)
	e.str(m.Cwd, MaxPath)
	e.bool(m.MakeCwd)
	e.str(m.User, MaxName)
	e.bool(m.StdinOpen)
	e.bool(m.TTY)
}

func (m *Start) decode(d *decoder) {
	m.Req = d.u32()
	m.Proc = d.u32()
	m.Argv = d.longs()
	m.Env = d.longs()
	m.Cwd = d.str(MaxPath)
	m.MakeCwd = d.bool()
	m.User = d.str(MaxName)
	m.StdinOpen = d.bool()
	m.TTY = d.bool()
}

func (m *Signal) encode(e *encoder) {
	e.u32(m.Req)
	e.u32(m.Proc)
	e.bad = e.bad || m.Signal > 64
	e.u8(m.Signal)
}

func (m *Signal) decode(d *decoder) {
	m.Req = d.u32()
	m.Proc = d.u32()
	m.Signal = d.u8()
	d.bad = d.bad || m.Signal > 64
}

func (m *StatsRequest) encode(e *encoder) { e.u32(m.Req) }
func (m *StatsRequest) decode(d *decoder) { m.Req = d.u32() }
func (m *Shutdown) encode(e *encoder)     { e.u32(m.Req) }
func (m *Shutdown) decode(d *decoder)     { m.Req = d.u32() }

func (m *Release) encode(e *encoder) {
	e.u32(m.Req)
	e.u32(m.Proc)
}

func (m *Release) decode(d *decoder) {
	m.Req = d.u32()
	m.Proc = d.u32()
}

func (m *Data) encode(e *encoder) {
	e.u32(m.Proc)
	e.flow(m.Flow)
	e.offset(m.Offset)
	e.bad = e.bad || len(m.Bytes) == 0
	e.data(m.Bytes, MaxData)
}

func (m *Data) decode(d *decoder) {
	m.Proc = d.u32()
	m.Flow = d.flow()
	m.Offset = d.offset()
	m.Bytes = d.data(MaxData)
	d.bad = d.bad || len(m.Bytes) == 0
}

func (m *Credit) encode(e *encoder) {
	e.u32(m.Proc)
	e.flow(m.Flow)
	e.offset(m.Acked)
	e.offset(m.Limit)
}

func (m *Credit) decode(d *decoder) {
	m.Proc = d.u32()
	m.Flow = d.flow()
	m.Acked = d.offset()
	m.Limit = d.offset()
}

func (m *EOF) encode(e *encoder) {
	e.u32(m.Proc)
	e.flow(m.Flow)
	e.offset(m.Offset)
}

func (m *EOF) decode(d *decoder) {
	m.Proc = d.u32()
	m.Flow = d.flow()
	m.Offset = d.offset()
}
