package guestwire

import "strconv"

// Type is the type of a frame.
type Type uint8

// The types. 0 is padding.
const (
	TypeHelloHost Type = iota + 1
	TypeSetup
	TypePutFile
	TypeFileData
	TypePart
	TypeStart
	TypeSignal
	TypeStatsRequest
	TypeShutdown
	TypeRelease
	TypeData
	TypeCredit
	TypeEOF
	TypeHelloGuest
	TypeReply
	TypeStarted
	TypeStartFailed
	TypeExit
	TypeStats
)

type from uint8

const (
	host from = 1 << iota
	guest
)

// frames is the table of frames: a name, who sends it, and an empty message
// to decode into.
var frames = [...]struct {
	name string
	from from
	make func() Message
}{
	TypeHelloHost:    {"HelloHost", host, func() Message { return new(HelloHost) }},
	TypeSetup:        {"Setup", host, func() Message { return new(Setup) }},
	TypePutFile:      {"PutFile", host, func() Message { return new(PutFile) }},
	TypeFileData:     {"FileData", host, func() Message { return new(FileData) }},
	TypePart:         {"Part", host, func() Message { return new(Part) }},
	TypeStart:        {"Start", host, func() Message { return new(Start) }},
	TypeSignal:       {"Signal", host, func() Message { return new(Signal) }},
	TypeStatsRequest: {"StatsRequest", host, func() Message { return new(StatsRequest) }},
	TypeShutdown:     {"Shutdown", host, func() Message { return new(Shutdown) }},
	TypeRelease:      {"Release", host, func() Message { return new(Release) }},
	TypeData:         {"Data", host | guest, func() Message { return new(Data) }},
	TypeCredit:       {"Credit", host | guest, func() Message { return new(Credit) }},
	TypeEOF:          {"EOF", host | guest, func() Message { return new(EOF) }},
	TypeHelloGuest:   {"HelloGuest", guest, func() Message { return new(HelloGuest) }},
	TypeReply:        {"Reply", guest, func() Message { return new(Reply) }},
	TypeStarted:      {"Started", guest, func() Message { return new(Started) }},
	TypeStartFailed:  {"StartFailed", guest, func() Message { return new(StartFailed) }},
	TypeExit:         {"Exit", guest, func() Message { return new(Exit) }},
	TypeStats:        {"Stats", guest, func() Message { return new(Stats) }},
}

func (t Type) valid() bool { return int(t) < len(frames) && frames[t].make != nil }

// String is the name of the frame.
func (t Type) String() string {
	if t.valid() {
		return frames[t].name
	}
	return "type " + strconv.Itoa(int(t))
}

// Message is the content of a frame: a pointer to one of the structs below.
type Message interface {
	Type() Type
	encode(*encoder)
	decode(*decoder)
}

// DecodeFromHost decodes a frame that the host sent. Bytes of the message
// alias payload.
func DecodeFromHost(t Type, payload []byte) (Message, error) { return decodeFrom(host, t, payload) }

// DecodeFromGuest decodes a frame that the guest sent. Bytes of the message
// alias payload.
func DecodeFromGuest(t Type, payload []byte) (Message, error) { return decodeFrom(guest, t, payload) }

func decodeFrom(side from, t Type, payload []byte) (Message, error) {
	if !t.valid() || frames[t].from&side == 0 {
		return nil, malformed("unexpected " + t.String())
	}
	m := frames[t].make()
	if err := Decode(m, payload); err != nil {
		return nil, err
	}
	return m, nil
}

// Decode decodes payload into m, whose type the frame's must be. Bytes of m
// alias payload.
func Decode(m Message, payload []byte) error {
	d := decoder{b: payload}
	m.decode(&d)
	if d.bad || len(d.b) != 0 {
		return malformed("the payload is no " + m.Type().String())
	}
	return nil
}

// Flow is one of a process's streams.
type Flow uint8

// The flows.
const (
	In Flow = iota
	Out
	Err
)

func (f Flow) valid() bool { return f <= Err }

// String is stdin, stdout or stderr.
func (f Flow) String() string {
	switch f {
	case In:
		return "stdin"
	case Out:
		return "stdout"
	case Err:
		return "stderr"
	}
	return "flow " + strconv.Itoa(int(f))
}

// FlowOffset says how far a flow of a process was received.
type FlowOffset struct {
	Proc   uint32
	Flow   Flow
	Offset int64
}

// Status is how a request ended.
type Status uint8

// The statuses.
const (
	StatusOK      Status = iota
	StatusFailed         // it could not be done; message says why
	StatusInvalid        // it made no sense, or came at the wrong time
)

// Usage is what a guest's commands used and ran into, in all. It is the
// guest's word.
type Usage struct {
	MemoryPeak    int64 // bytes
	MemoryCurrent int64 // bytes
	CPUMicros     int64
	DiskWritten   int64 // bytes written to the scratch disk
	OOMKills      int64 // processes killed for want of memory
	ForksRefused  int64 // by the limit of processes
	DiskFull      int64 // 1 if the scratch disk had next to no room left when this was taken
	Processes     int64 // alive when this was taken
}

func (u *Usage) fields() [8]*int64 {
	return [...]*int64{&u.MemoryPeak, &u.MemoryCurrent, &u.CPUMicros, &u.DiskWritten,
		&u.OOMKills, &u.ForksRefused, &u.DiskFull, &u.Processes}
}

func (u *Usage) encode(e *encoder) {
	for _, f := range u.fields() {
		e.offset(*f)
	}
}

func (u *Usage) decode(d *decoder) {
	for _, f := range u.fields() {
		*f = d.offset()
	}
}
