package guestwire

// DefaultWindow is how many bytes of a flow may be on their way.
const DefaultWindow = 128 << 10

// SendBuffer is the sending end of a flow: it keeps the bytes that the other
// end has not got yet, so that they can be sent again after a break. It is not
// for concurrent use. Offsets: acked ≤ sent ≤ end ≤ acked + size.
type SendBuffer struct {
	buf   []byte // a ring; the byte at offset o is at o % len
	size  int
	acked int64 // the other end has everything before it
	sent  int64
	end   int64 // everything before it was put in
	limit int64 // the other end's credit
}

// NewSendBuffer makes the sending end of a flow that keeps size bytes. Memory
// is taken when there is something to keep.
func NewSendBuffer(size int) *SendBuffer { return &SendBuffer{size: size} }

// Free is how many bytes can be put in.
func (s *SendBuffer) Free() int { return s.size - int(s.end-s.acked) }

// Space is where the next bytes go: fill it from the start and Commit. It may
// be shorter than Free, and is empty only if Free is 0.
func (s *SendBuffer) Space() []byte {
	if s.buf == nil {
		s.buf = make([]byte, s.size)
	}
	at := int(s.end % int64(s.size))
	return s.buf[at:min(s.size, at+s.Free())]
}

// Commit puts in the first n bytes of Space.
func (s *SendBuffer) Commit(n int) { s.end += int64(n) }

// End is the offset behind the last byte that was put in.
func (s *SendBuffer) End() int64 { return s.end }

// Pending reports whether there are bytes to send and credit for them.
func (s *SendBuffer) Pending() bool { return s.sent < min(s.end, s.limit) }

// Drained reports whether all that was put in was sent.
func (s *SendBuffer) Drained() bool { return s.sent == s.end }

// Next is what to send next, at most limit bytes, and its offset. Sent says
// that it was sent. It aliases the buffer, until those bytes are acknowledged.
func (s *SendBuffer) Next(limit int) (int64, []byte) {
	n := min(int64(limit), min(s.end, s.limit)-s.sent)
	if n <= 0 {
		return s.sent, nil
	}
	at := int(s.sent % int64(s.size))
	return s.sent, s.buf[at:min(s.size, at+int(n))]
}

// Sent says that the first n bytes of Next were sent.
func (s *SendBuffer) Sent(n int) { s.sent += int64(n) }

// Credit takes a Credit of the other end. One that contradicts what was sent,
// or what it said before, is an error.
func (s *SendBuffer) Credit(acked, limit int64) error {
	if acked < s.acked || acked > s.sent || limit < s.limit || limit < acked {
		return malformed("the credit contradicts what was said before")
	}
	s.acked, s.limit = acked, limit
	return nil
}

// Resume begins again at offset, as the other end said in its hello. There is
// no credit until the next Credit.
func (s *SendBuffer) Resume(offset int64) error {
	if offset < s.acked || offset > s.end {
		return malformed("the flow cannot be resumed there")
	}
	s.acked, s.sent, s.limit = offset, offset, 0
	return nil
}

// Window is the receiving end of a flow: it says what may come, and when to
// give new credit. It is not for concurrent use.
type Window struct {
	size     int64
	received int64
	taken    int64
	limit    int64 // the credit that was given
	final    int64 // -1 until it is known
}

// NewWindow makes the receiving end of a flow.
func NewWindow(size int) *Window { return &Window{size: int64(size), final: -1} }

// Receive takes note of a Data. One that leaves a gap, says something again,
// or goes beyond credit or end is an error.
func (w *Window) Receive(offset int64, n int) error {
	switch {
	case offset != w.received:
		return malformed("data at the wrong offset")
	case offset+int64(n) > w.limit:
		return malformed("data without credit")
	case w.final >= 0 && offset+int64(n) > w.final:
		return malformed("data behind the end")
	}
	w.received += int64(n)
	return nil
}

// Finish takes note of the final offset. It may be said again, the same.
func (w *Window) Finish(final int64) error {
	if final < w.received || w.final >= 0 && w.final != final {
		return malformed("the final offset contradicts what was said before")
	}
	w.final = final
	return nil
}

// Take says that n bytes are out of the way, and reports whether it is time
// to give credit.
func (w *Window) Take(n int) bool {
	w.taken += int64(n)
	return w.Due()
}

// Due reports whether it is time to give credit.
func (w *Window) Due() bool {
	if w.final >= 0 && w.limit >= w.final {
		return false
	}
	return w.taken+w.size-w.limit >= w.size/4
}

// Grant gives new credit: what to say in a Credit.
func (w *Window) Grant() (acked, limit int64) {
	w.limit = max(w.limit, w.taken+w.size)
	return w.received, w.limit
}

// Received is how far the flow has come.
func (w *Window) Received() int64 { return w.received }

// Done reports whether everything up to the final offset was taken.
func (w *Window) Done() bool { return w.final >= 0 && w.taken == w.final }

// Missing is how many bytes up to the final offset were not taken; 0 while it
// is not known.
func (w *Window) Missing() int64 {
	if w.final < 0 {
		return 0
	}
	return w.final - w.taken
}
