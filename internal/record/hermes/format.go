package hermes

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"iter"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// The streams of an Entry.
const (
	Stdout    = "stdout"
	Stderr    = "stderr"
	Truncated = "truncated" // the last entry of a log that was full; it has no data
)

// Entry is a part of a log.
type Entry struct {
	Offset int64  // of the first byte of Data, over both streams
	Stream string // Stdout, Stderr or Truncated
	Time   time.Time
	Data   []byte // the receiver's; at most MaxData
}

// MaxData bounds the data of one entry.
const MaxData = 32 << 10

// ErrUnfinished is the last thing that Decode says of a log that has no end:
// its writer died. What came before it is good.
var ErrUnfinished = errors.New("the log has no end: its writer died")

var errDamaged = fault.New(fault.Conflict, "the log is damaged")

const (
	magic      = "tartarus log 1\n"
	headerSize = len(magic) + 8
)

type kind byte

const (
	kindStdout kind = 1 + iota
	kindStderr
	kindTruncated
	kindEnd
)

func (k kind) hasData() bool { return k == kindStdout || k == kindStderr }

func (k kind) stream() string {
	switch k {
	case kindStdout:
		return Stdout
	case kindStderr:
		return Stderr
	}
	return Truncated
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mark is a place between two records, with all that decoding needs to go on
// from there.
type mark struct {
	pos    int64 // in the file
	offset int64 // over both streams
	micros int64 // time of the record before
	crc    uint32
}

func header(start time.Time) ([]byte, mark) {
	micros := start.UnixMicro()
	b := binary.LittleEndian.AppendUint64([]byte(magic), uint64(micros))
	return b, mark{pos: int64(headerSize), micros: micros, crc: crc32.Checksum(b, castagnoli)}
}

// appendRecord appends a record to b and returns the place behind it. A time
// before the last one is counted as the last one.
func (m mark) appendRecord(b []byte, k kind, micros int64, data []byte) ([]byte, mark) {
	begin := len(b)
	delta := max(0, micros-m.micros)
	b = append(b, byte(k))
	b = binary.AppendUvarint(b, uint64(delta))
	if k.hasData() {
		b = binary.AppendUvarint(b, uint64(len(data)))
		b = append(b, data...)
		m.offset += int64(len(data))
	}
	m.crc = crc32.Update(m.crc, castagnoli, b[begin:])
	b = binary.LittleEndian.AppendUint32(b, m.crc)
	m.micros += delta
	m.pos += int64(len(b) - begin)
	return b, m
}

// record is one decoded record.
type record struct {
	kind   kind
	offset int64
	time   time.Time
	data   []byte
}

func (r record) entry() Entry {
	return Entry{Offset: r.offset, Stream: r.kind.stream(), Time: r.time, Data: r.data}
}

// decoder reads records. Its errors are io.EOF between two records,
// io.ErrUnexpectedEOF inside one, errDamaged, and those of the reader.
type decoder struct {
	r  *bufio.Reader
	at mark // behind the last good record
}

func newDecoder(r io.Reader, at mark) *decoder {
	return &decoder{r: bufio.NewReaderSize(r, MaxData+64), at: at}
}

// readHeader is for a decoder that begins at the beginning.
func (d *decoder) readHeader() error {
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(d.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	if string(b[:len(magic)]) != magic {
		return errDamaged
	}
	micros := int64(binary.LittleEndian.Uint64(b[len(magic):]))
	_, d.at = header(time.UnixMicro(micros))
	return nil
}

// crcReader feeds what it reads into a checksum.
type crcReader struct {
	d   *decoder
	crc uint32
	n   int64
}

func (c *crcReader) ReadByte() (byte, error) {
	b, err := c.d.r.ReadByte()
	if err == nil {
		c.crc = crc32.Update(c.crc, castagnoli, []byte{b})
		c.n++
	}
	return b, err
}

// uvarint reads a number of at most limit, in its shortest form.
func (c *crcReader) uvarint(limit uint64) (uint64, error) {
	before := c.n
	v, err := binary.ReadUvarint(c)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return 0, io.ErrUnexpectedEOF
	case err != nil:
		return 0, errDamaged
	}
	if v > limit || int64(len(binary.AppendUvarint(nil, v))) != c.n-before {
		return 0, errDamaged
	}
	return v, nil
}

// maxMicros keeps sums of times within an int64.
const maxMicros = int64(1) << 60

func (d *decoder) next() (record, error) {
	c := &crcReader{d: d, crc: d.at.crc}
	b, err := c.ReadByte()
	if err != nil {
		return record{}, err
	}
	rec := record{kind: kind(b), offset: d.at.offset}
	if rec.kind < kindStdout || rec.kind > kindEnd {
		return record{}, errDamaged
	}
	delta, err := c.uvarint(uint64(maxMicros))
	if err != nil {
		return record{}, err
	}
	after := d.at
	after.micros += int64(delta)
	if after.micros < d.at.micros || after.micros > maxMicros {
		return record{}, errDamaged
	}
	rec.time = time.UnixMicro(after.micros).UTC()
	if rec.kind.hasData() {
		if rec.data, err = c.data(); err != nil {
			return record{}, err
		}
	}
	var sum [4]byte
	if _, err := io.ReadFull(d.r, sum[:]); err != nil {
		return record{}, unexpected(err)
	}
	if binary.LittleEndian.Uint32(sum[:]) != c.crc {
		return record{}, errDamaged
	}
	after.crc = c.crc
	after.offset += int64(len(rec.data))
	after.pos += c.n + int64(len(sum))
	d.at = after
	return rec, nil
}

func (c *crcReader) data() ([]byte, error) {
	n, err := c.uvarint(MaxData)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errDamaged
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(c.d.r, data); err != nil {
		return nil, unexpected(err)
	}
	c.crc = crc32.Update(c.crc, castagnoli, data)
	c.n += int64(n)
	return data, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Decode reads an ended log, as Log wrote it. A log that has no end yields all
// that is whole and then ErrUnfinished; a damaged one yields what is good and
// then an error of kind Conflict. After an error nothing follows.
func Decode(r io.Reader) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d := newDecoder(r, mark{})
		if err := d.readHeader(); err != nil {
			yield(Entry{}, decodeError(err))
			return
		}
		full := false
		for {
			rec, err := d.next()
			switch {
			case err != nil:
				yield(Entry{}, decodeError(err))
				return
			case rec.kind == kindEnd:
				if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
					yield(Entry{}, errDamaged)
				}
				return
			case full: // only the end may follow
				yield(Entry{}, errDamaged)
				return
			}
			full = rec.kind == kindTruncated
			if !yield(rec.entry(), nil) {
				return
			}
		}
	}
}

func decodeError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrUnfinished
	}
	return err
}
