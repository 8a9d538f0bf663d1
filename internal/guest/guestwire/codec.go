package guestwire

import "encoding/binary"

// The bounds of fields. A decoder refuses more, an encoder too.
const (
	MaxPath     = 4096
	MaxName     = 256
	MaxMessage  = 1024
	MaxEntropy  = 1024
	MaxFlows    = 192 // in a hello: three for each of MaxProcesses
	MaxFile     = 64 << 20
	MaxStrings  = 8192    // of argv, and of env
	MaxStart    = 1 << 20 // a Start's payload, put together from its parts
	MaxOffset   = 1 << 62
	maxStartStr = MaxStart
)

// encoder appends fields to b; bad is set when one is out of bounds.
type encoder struct {
	b   []byte
	bad bool
}

func (e *encoder) u8(v uint8)   { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16) { e.b = binary.LittleEndian.AppendUint16(e.b, v) }
func (e *encoder) u32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *encoder) i64(v int64)  { e.u64(uint64(v)) }

func (e *encoder) bool(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}

// offset is a count of bytes: never negative, and far from overflow.
func (e *encoder) offset(v int64) {
	e.bad = e.bad || v < 0 || v > MaxOffset
	e.i64(v)
}

func (e *encoder) flow(f Flow) {
	e.bad = e.bad || !f.valid()
	e.u8(uint8(f))
}

func (e *encoder) str(s string, limit int) {
	if len(s) > limit || len(s) > 1<<16-1 {
		e.bad = true
		return
	}
	e.u16(uint16(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) data(p []byte, limit int) {
	if len(p) > limit {
		e.bad = true
		return
	}
	e.u32(uint32(len(p)))
	e.b = append(e.b, p...)
}

// long is a string that may be longer than 64 KiB.
func (e *encoder) long(s string) {
	if len(s) > maxStartStr {
		e.bad = true
		return
	}
	e.u32(uint32(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) longs(list []string) {
	if len(list) > MaxStrings {
		e.bad = true
		return
	}
	e.u16(uint16(len(list)))
	for _, s := range list {
		e.long(s)
	}
}

func (e *encoder) flows(list []FlowOffset) {
	if len(list) > MaxFlows {
		e.bad = true
		return
	}
	e.u16(uint16(len(list)))
	for _, f := range list {
		e.u32(f.Proc)
		e.flow(f.Flow)
		e.offset(f.Offset)
	}
}

// decoder takes fields from b; bad is set when one is cut off, out of bounds
// or not in its only form. Once it is bad every field is zero.
type decoder struct {
	b   []byte
	bad bool
}

// take is the next n bytes, which alias the payload; nil when there are fewer.
func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if p := d.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) i64() int64 { return int64(d.u64()) }

func (d *decoder) bool() bool {
	v := d.u8()
	d.bad = d.bad || v > 1
	return v == 1
}

func (d *decoder) offset() int64 {
	v := d.i64()
	if v < 0 || v > MaxOffset {
		d.bad = true
		return 0
	}
	return v
}

func (d *decoder) flow() Flow {
	f := Flow(d.u8())
	d.bad = d.bad || !f.valid()
	return f
}

func (d *decoder) str(limit int) string {
	n := int(d.u16())
	if n > limit {
		d.bad = true
		return ""
	}
	return string(d.take(n))
}

// data aliases the payload.
func (d *decoder) data(limit int) []byte {
	n := d.u32()
	if uint64(n) > uint64(limit) {
		d.bad = true
		return nil
	}
	return d.take(int(n))
}

func (d *decoder) long() string {
	n := d.u32()
	if n > maxStartStr {
		d.bad = true
		return ""
	}
	return string(d.take(int(n)))
}

func (d *decoder) longs() []string {
	n := int(d.u16())
	// Each string takes 4 bytes at least, so n cannot make us allocate more
	// than the payload is worth.
	if n > MaxStrings || n*4 > len(d.b) {
		d.bad = true
		return nil
	}
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = d.long()
	}
	return list
}

func (d *decoder) flows() []FlowOffset {
	n := int(d.u16())
	if n > MaxFlows || n*13 > len(d.b) {
		d.bad = true
		return nil
	}
	if n == 0 {
		return nil
	}
	list := make([]FlowOffset, n)
	for i := range list {
		list[i] = FlowOffset{Proc: d.u32(), Flow: d.flow(), Offset: d.offset()}
	}
	return list
}
