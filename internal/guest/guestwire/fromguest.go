package guestwire

// magicGuest begins every HelloGuest.
const magicGuest = 0x54_52_54_47_0d_0a_7f_02

// HelloGuest answers HelloHost. Its layout never changes.
type HelloGuest struct {
	Nonce      uint64 // HelloHost's
	Version    uint16 // what both speak from here on; 0 if there is none
	Generation uint32 // HelloHost's; a higher one means that it was overtaken, and nothing follows
	LastReq    uint32 // the last request that was carried out
	Ready      bool   // Setup was carried out
	Flows      []FlowOffset
}

// HelloGuestPrefix is how the payload of the HelloGuest to that nonce begins.
func HelloGuestPrefix(nonce uint64) []byte {
	e := encoder{}
	e.u64(magicGuest)
	e.u64(nonce)
	return e.b
}

// Reply is the answer to a request without one of its own.
type Reply struct {
	Req     uint32
	Status  Status
	Message string // why, unless it is StatusOK
}

// Started answers a Start that worked.
type Started struct {
	Req  uint32
	Proc uint32
}

// StartFailed answers a Start that did not work. There is no such process.
type StartFailed struct {
	Req     uint32
	Proc    uint32
	Code    uint8 // as a shell's: 127 not found, 126 not executable, 125 all else
	Message string
}

// Exit is the end of a process.
type Exit struct {
	Proc   uint32
	Code   int32 // 0 to 255; 0 if a signal ended it
	Signal uint8 // 0 if it exited
	Out    int64 // all that was ever written to stdout; data may still come
	Err    int64
	Usage  Usage
}

// Stats is the answer to StatsRequest.
type Stats struct {
	Req   uint32
	Usage Usage
}

// Type is TypeHelloGuest.
func (*HelloGuest) Type() Type { return TypeHelloGuest }

// Type is TypeReply.
func (*Reply) Type() Type { return TypeReply }

// Type is TypeStarted.
func (*Started) Type() Type { return TypeStarted }

// Type is TypeStartFailed.
func (*StartFailed) Type() Type { return TypeStartFailed }

// Type is TypeExit.
func (*Exit) Type() Type { return TypeExit }

// Type is TypeStats.
func (*Stats) Type() Type { return TypeStats }

func (m *HelloGuest) encode(e *encoder) {
	e.u64(magicGuest)
	e.u64(m.Nonce)
	e.u16(m.Version)
	e.u32(m.Generation)
	e.u32(m.LastReq)
	e.bool(m.Ready)
	e.flows(m.Flows)
}

func (m *HelloGuest) decode(d *decoder) {
	d.bad = d.u64() != magicGuest || d.bad
	m.Nonce = d.u64()
	m.Version = d.u16()
	m.Generation = d.u32()
	m.LastReq = d.u32()
	m.Ready = d.bool()
	m.Flows = d.flows()
}

func (m *Reply) encode(e *encoder) {
	e.u32(m.Req)
	e.bad = e.bad || m.Status > StatusInvalid
	e.u8(uint8(m.Status))
	e.str(m.Message, MaxMessage)
}

func (m *Reply) decode(d *decoder) {
	m.Req = d.u32()
	m.Status = Status(d.u8())
	d.bad = d.bad || m.Status > StatusInvalid
	m.Message = d.str(MaxMessage)
}

func (m *Started) encode(e *encoder) {
	e.u32(m.Req)
	e.u32(m.Proc)
}

func (m *Started) decode(d *decoder) {
	m.Req = d.u32()
	m.Proc = d.u32()
}

func (m *StartFailed) encode(e *encoder) {
	e.u32(m.Req)
	e.u32(m.Proc)
	e.u8(m.Code)
	e.str(m.Message, MaxMessage)
}

func (m *StartFailed) decode(d *decoder) {
	m.Req = d.u32()
	m.Proc = d.u32()
	m.Code = d.u8()
	m.Message = d.str(MaxMessage)
}

// valid insists on one meaning: an exit code, or a signal.
func (m *Exit) valid() bool {
	return m.Code >= 0 && m.Code <= 255 && m.Signal <= 64 && (m.Signal == 0 || m.Code == 0)
}

func (m *Exit) encode(e *encoder) {
	e.bad = e.bad || !m.valid()
	e.u32(m.Proc)
	e.u32(uint32(m.Code))
	e.u8(m.Signal)
	e.offset(m.Out)
	e.offset(m.Err)
	m.Usage.encode(e)
}

func (m *Exit) decode(d *decoder) {
	m.Proc = d.u32()
	m.Code = int32(d.u32())
	m.Signal = d.u8()
	m.Out = d.offset()
	m.Err = d.offset()
	m.Usage.decode(d)
	d.bad = d.bad || !m.valid()
}

func (m *Stats) encode(e *encoder) {
	e.u32(m.Req)
	m.Usage.encode(e)
}

func (m *Stats) decode(d *decoder) {
	m.Req = d.u32()
	m.Usage.decode(d)
}
