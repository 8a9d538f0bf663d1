package guestwire

import (
	"bytes"
	"errors"
	"io"
	"strconv"
)

// The sizes of frames.
const (
	MaxFrame   = 64 << 10
	MaxPayload = MaxFrame - headerLen - 1
	MaxData    = 32 << 10 // the bytes of one Data or FileData

	headerLen = 4
	endMark   = 0xA5
	padByte   = 0 // skipped where a frame's type is due
)

// MaxOutstanding is how many requests may wait for their answer.
const MaxOutstanding = 16

// MaxProcesses is how many processes a guest's table holds.
const MaxProcesses = 64

// ErrMalformed is in the chain of every error about bytes that are not what
// the protocol allows.
var ErrMalformed = errors.New("malformed frame")

// malformed says what is wrong with a frame. It holds no bytes of it.
type malformed string

func (m malformed) Error() string        { return ErrMalformed.Error() + ": " + string(m) }
func (m malformed) Is(target error) bool { return target == ErrMalformed }

// Append appends m as a frame to b. It fails, and returns b as it was, when a
// field of m is out of bounds.
func Append(b []byte, m Message) ([]byte, error) {
	start := len(b)
	e := encoder{b: append(b, byte(m.Type()), 0, 0, 0)}
	m.encode(&e)
	n := len(e.b) - start - headerLen
	if e.bad || n > MaxPayload {
		return b[:start], malformed("a field of " + m.Type().String() + " is out of bounds")
	}
	putHeader(e.b[start:], m.Type(), n)
	return append(e.b, endMark), nil
}

func putHeader(b []byte, t Type, n int) {
	b[0], b[1], b[2], b[3] = byte(t), byte(n), byte(n>>8), byte(n>>16)
}

// AppendStart appends s to b, as several frames where it is too long for one:
// Parts numbered s.Req and up, and last the Start itself. It returns also how
// many frames, so request numbers, that were.
func AppendStart(b []byte, s *Start) ([]byte, int, error) {
	var e encoder
	s.encode(&e)
	if e.bad || len(e.b) > MaxStart {
		return b, 0, malformed("the command and its environment are longer than " + strconv.Itoa(MaxStart) + " bytes")
	}
	if len(e.b) <= MaxPayload {
		b, err := Append(b, s)
		return b, 1, err
	}
	// The Start's own number is that of the last frame.
	parts := (len(e.b) - 1) / MaxData
	last := *s
	last.Req = s.Req + uint32(parts)
	e = encoder{}
	last.encode(&e)
	body := e.b
	for i := range parts {
		var err error
		if b, err = Append(b, &Part{Req: s.Req + uint32(i), Data: body[:MaxData]}); err != nil {
			return b, 0, err
		}
		body = body[MaxData:]
	}
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	putHeader(b[start:], TypeStart, len(body))
	b = append(b, body...)
	return append(b, endMark), parts + 1, nil
}

// FrameSize is the length of the whole frame that b, made by Append, begins
// with.
func FrameSize(b []byte) int { return headerLen + int(b[1]) + int(b[2])<<8 + int(b[3])<<16 + 1 }

// Reader takes frames from a stream. It is not for concurrent use.
type Reader struct {
	r    io.Reader
	buf  []byte
	from int // buf[from:to] was read and not taken yet
	to   int
	pads bool // zero bytes between frames are allowed
}

// NewReader makes a reader of the stream r. pads allows zero bytes between
// frames, as the host sends before it resumes.
func NewReader(r io.Reader, pads bool) *Reader {
	return &Reader{r: r, buf: make([]byte, 2*MaxFrame), pads: pads}
}

// Next takes the next frame. The payload is valid until the next call. The
// error is the stream's own (io.ErrUnexpectedEOF when it ends inside a frame)
// or ErrMalformed; after the latter only Seek finds frames again.
func (r *Reader) Next() (Type, []byte, error) {
	if err := r.skipPads(); err != nil {
		return 0, nil, err
	}
	if err := r.need(headerLen); err != nil {
		return 0, nil, err
	}
	h := r.buf[r.from:]
	t, n := Type(h[0]), int(h[1])|int(h[2])<<8|int(h[3])<<16
	if n > MaxPayload {
		return 0, nil, malformed("length " + strconv.Itoa(n) + " is above the bound")
	}
	if !t.valid() {
		return 0, nil, malformed("unknown type " + strconv.Itoa(int(t)))
	}
	if err := r.need(headerLen + n + 1); err != nil {
		return 0, nil, err
	}
	payload := r.buf[r.from+headerLen : r.from+headerLen+n : r.from+headerLen+n]
	end := r.buf[r.from+headerLen+n]
	r.from += headerLen + n + 1
	if end != endMark {
		return 0, nil, malformed("the end mark is missing")
	}
	return t, payload, nil
}

// Buffered reports whether bytes wait that were read already.
func (r *Reader) Buffered() bool { return r.from < r.to }

func (r *Reader) skipPads() error {
	if !r.pads {
		return nil
	}
	for {
		for r.from < r.to && r.buf[r.from] == padByte {
			r.from++
		}
		if r.from < r.to {
			return nil
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
}

// need reads until n bytes wait.
func (r *Reader) need(n int) error {
	for r.to-r.from < n {
		if err := r.fill(); err != nil {
			if errors.Is(err, io.EOF) && r.from < r.to {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// fill reads once, and makes room for it first. No caller leaves more than
// MaxFrame bytes waiting.
func (r *Reader) fill() error {
	if r.from == r.to {
		r.from, r.to = 0, 0
	} else if len(r.buf)-r.from < MaxFrame {
		r.to = copy(r.buf, r.buf[r.from:r.to])
		r.from = 0
	}
	n, err := r.r.Read(r.buf[r.to:])
	r.to += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// Seek skips bytes until a frame comes whose payload begins with prefix; Next
// returns that frame. It gives up with ErrMalformed after limit bytes, unless
// limit is 0.
func (r *Reader) Seek(prefix []byte, limit int) error {
	skipped := 0
	want := headerLen + len(prefix)
	for {
		if i := bytes.Index(r.buf[min(r.from+headerLen, r.to):r.to], prefix); i >= 0 {
			r.from += i
			return nil
		}
		if keep := want - 1; r.to-r.from > keep {
			skipped += r.to - r.from - keep
			r.from = r.to - keep
		}
		if limit > 0 && skipped > limit {
			return malformed("no hello within " + strconv.Itoa(limit) + " bytes")
		}
		if err := r.fill(); err != nil {
			return err
		}
	}
}

// Pad is what the host sends before the HelloHost of a resumed stream.
func Pad() []byte { return make([]byte, MaxFrame) }
