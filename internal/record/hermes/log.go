package hermes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// DefaultCap is how many bytes of output a log takes unless told otherwise.
const DefaultCap = 16 << 20

// indexEvery is how many bytes of output lie between two marks of the index.
const indexEvery = 256 << 10

// Log is the log of one sandbox. All methods may be called at once. Whoever
// made it calls Finish, and removes the file when it is not needed any more.
type Log struct {
	path string
	cap  int64 // of output
	room int64 // of file: bounds what the framing of tiny pieces may cost

	mu        sync.Mutex
	f         *os.File // nil once finished
	buf       []byte   // reused by Append
	at        mark     // the end of what readers may see
	index     []mark   // every indexEvery bytes; [0] is the beginning
	truncated bool
	marked    bool // truncated, and the file says so
	ended     bool
	waiting   bool          // somebody waits for changed
	changed   chan struct{} // closed and replaced when readers wait and at grows
}

// Create makes an empty log at path, which must not exist. At most capBytes of
// output are taken (DefaultCap if 0).
func Create(path string, capBytes int64) (*Log, error) {
	if capBytes < 0 {
		return nil, fault.New(fault.InvalidArgument, "a log cannot take %d bytes", capBytes)
	}
	if capBytes == 0 {
		capBytes = DefaultCap
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("creating the log: %w", err)
	}
	head, at := header(time.Now())
	if _, err := f.Write(head); err != nil {
		return nil, errors.Join(fmt.Errorf("creating the log: %w", err), f.Close(), os.Remove(path))
	}
	return &Log{
		path: path, cap: capBytes, room: fileRoom(capBytes),
		f: f, at: at, index: []mark{at}, changed: make(chan struct{}),
	}, nil
}

// fileRoom is the size that the file of a log may reach.
func fileRoom(capBytes int64) int64 { return 4*capBytes + 64<<10 }

// Recover opens the log of a writer that died, cuts a torn end off and
// finishes it. Of a file that is no log nothing is changed.
func Recover(path string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("recovering a log: %w", err)
	}
	l := &Log{path: path, f: f, changed: make(chan struct{})}
	if err := l.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("recovering a log: %w", err), f.Close())
	}
	l.cap, l.room = l.at.offset, l.at.pos
	if l.ended {
		l.f = nil
		return l, f.Close()
	}
	if err := l.rewind(); err != nil {
		return nil, errors.Join(fmt.Errorf("recovering a log: %w", err), f.Close())
	}
	return l, l.Finish()
}

// scan finds the end of what is whole.
func (l *Log) scan() error {
	d := newDecoder(l.f, mark{})
	if err := d.readHeader(); err != nil {
		return err
	}
	l.index = []mark{d.at}
	for {
		l.at = d.at
		rec, err := d.next()
		if err != nil {
			return nil //nolint:nilerr // what cannot be read is the torn end, and is cut
		}
		if l.truncated && rec.kind != kindEnd {
			return nil
		}
		l.truncated = l.truncated || rec.kind == kindTruncated
		l.marked = l.truncated
		l.note(d.at)
		if rec.kind == kindEnd {
			l.at, l.ended = d.at, true
			return nil
		}
	}
}

// note keeps at in the index where one is due.
func (l *Log) note(at mark) {
	if at.offset-l.index[len(l.index)-1].offset >= indexEvery {
		l.index = append(l.index, at)
	}
}

// Append adds output that arrived at t. What does not fit is dropped, marked
// and no error. data stays the caller's. When the disk cannot take it the log
// is truncated there, and the first such error is returned.
func (l *Log) Append(stream string, t time.Time, data []byte) error {
	var k kind
	switch stream {
	case Stdout:
		k = kindStdout
	case Stderr:
		k = kindStderr
	default:
		return fault.New(fault.InvalidArgument, "a log has no stream %q", stream)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return fault.New(fault.Conflict, "the log is finished")
	}
	if l.truncated || len(data) == 0 {
		return nil
	}
	full := int64(len(data)) > l.cap-l.at.offset
	if full {
		data = data[:l.cap-l.at.offset]
	}
	at, micros := l.at, t.UnixMicro()
	l.buf = l.buf[:0]
	for len(data) > 0 {
		n := min(len(data), MaxData)
		if at.pos+int64(n) > l.room {
			full = true
			break
		}
		l.buf, at = at.appendRecord(l.buf, k, micros, data[:n])
		l.note(at)
		data = data[n:]
	}
	if full {
		l.buf, at = at.appendRecord(l.buf, kindTruncated, micros, nil)
	}
	return l.write(at, full)
}

// write writes buf and lets readers see it; l.mu is held.
func (l *Log) write(at mark, truncates bool) error {
	if _, err := l.f.Write(l.buf); err != nil {
		l.truncated = true
		l.wake()
		for len(l.index) > 1 && l.index[len(l.index)-1].pos > l.at.pos {
			l.index = l.index[:len(l.index)-1]
		}
		return errors.Join(fault.Wrap(fault.Unavailable, err, "the log cannot be written"), l.rewind())
	}
	l.at = at
	if truncates {
		l.truncated, l.marked = true, true
	}
	l.wake()
	return nil
}

// Cut marks the log as truncated: output is known to have been lost, and what
// came after it is not taken.
func (l *Log) Cut(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.truncated {
		return nil
	}
	var at mark
	l.buf, at = l.at.appendRecord(l.buf[:0], kindTruncated, t.UnixMicro(), nil)
	return l.write(at, true)
}

// rewind cuts off what lies behind l.at.
func (l *Log) rewind() error {
	if err := l.f.Truncate(l.at.pos); err != nil {
		return err
	}
	_, err := l.f.Seek(l.at.pos, io.SeekStart)
	return err
}

// wake tells the readers that wait; l.mu is held.
func (l *Log) wake() {
	if l.waiting {
		close(l.changed)
		l.changed, l.waiting = make(chan struct{}), false
	}
}

// Finish ends the log: no Append after it, and followers come to their end.
// The file is then ready to be kept as a blob. It may be called again.
func (l *Log) Finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil
	}
	var b []byte
	at := l.at
	if l.truncated && !l.marked {
		b, at = at.appendRecord(b, kindTruncated, at.micros, nil)
	}
	b, at = at.appendRecord(b, kindEnd, at.micros, nil)
	_, err := l.f.Write(b)
	if err != nil {
		err = errors.Join(fault.Wrap(fault.Unavailable, err, "the log cannot be finished"), l.rewind())
	} else {
		l.at = at
	}
	l.ended = true
	l.wake()
	err = errors.Join(err, l.f.Close())
	l.f = nil
	return err
}

// Path is the log's file.
func (l *Log) Path() string { return l.path }

// Bytes is how much output the log holds.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at.offset
}

// Truncated reports whether output was dropped because the log, or the disk,
// was full.
func (l *Log) Truncated() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.truncated
}

// Read yields the log from an offset on: what is there, and with follow also
// what comes, until the log is finished. An offset in the middle of a record
// gets the rest of it. When ctx ends, its error is the last thing it yields.
// The file may be removed while it is read.
func (l *Log) Read(ctx context.Context, from int64, follow bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if from < 0 {
			yield(Entry{}, fault.Invalid("offset", "offsets begin at 0", "the offset %d is negative", from))
			return
		}
		f, err := os.Open(l.path)
		if err != nil {
			yield(Entry{}, fault.Wrap(fault.NotFound, err, "the log is gone"))
			return
		}
		defer func() { _ = f.Close() }() // only read
		r := &reader{log: l, f: f, from: from, at: l.seek(from)}
		for {
			end, wait := l.visible()
			more, err := r.drain(ctx, end.pos, yield)
			if err != nil {
				yield(Entry{}, err)
			}
			if err != nil || !more {
				return
			}
			if wait == nil || !follow {
				if l.unmarked() {
					yield(Entry{Offset: r.at.offset, Stream: Truncated, Time: time.UnixMicro(r.at.micros).UTC()}, nil)
				}
				return
			}
			if r.at.pos < end.pos {
				continue
			}
			select {
			case <-l.grown(end.pos):
			case <-ctx.Done():
				yield(Entry{}, ctx.Err())
				return
			}
		}
	}
}

// seek is the last mark of the index that is not behind offset.
func (l *Log) seek(offset int64) mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	best := l.index[0]
	for _, m := range l.index {
		if m.offset <= offset && m.pos <= l.at.pos {
			best = m
		}
	}
	return best
}

// visible is how far readers may read, and a channel that is nil once nothing
// will follow.
func (l *Log) visible() (mark, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.truncated {
		return l.at, nil
	}
	return l.at, l.changed
}

// unmarked reports whether the log is truncated, and what readers see of the
// file does not say so.
func (l *Log) unmarked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.truncated && !l.marked && !l.ended
}

// grown is closed as soon as there is more than up to pos, or no more to come.
func (l *Log) grown(pos int64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.pos > pos || l.ended || l.truncated {
		now := make(chan struct{})
		close(now)
		return now
	}
	l.waiting = true
	return l.changed
}

// reader is one Read under way.
type reader struct {
	log  *Log
	f    *os.File
	from int64
	at   mark
}

// drain yields what lies before end; false once the receiver has had enough.
func (r *reader) drain(ctx context.Context, end int64, yield func(Entry, error) bool) (bool, error) {
	if r.at.pos >= end {
		return true, nil
	}
	d := newDecoder(io.NewSectionReader(r.f, r.at.pos, end-r.at.pos), r.at)
	for {
		if err := ctx.Err(); err != nil {
			return true, err
		}
		rec, err := d.next()
		r.at = d.at
		switch {
		case errors.Is(err, io.EOF):
			return true, nil
		case err != nil:
			return true, fmt.Errorf("reading the log: %w", err)
		case rec.kind == kindEnd:
			continue
		}
		if e, ok := rec.from(r.from); ok && !yield(e, nil) {
			return false, nil
		}
	}
}

// from is the part of the record that does not lie before offset.
func (r record) from(offset int64) (Entry, bool) {
	e := r.entry()
	if skip := offset - r.offset; skip > 0 && r.kind.hasData() {
		if skip >= int64(len(r.data)) {
			return Entry{}, false
		}
		e.Offset, e.Data = offset, r.data[skip:]
	}
	return e, true
}
