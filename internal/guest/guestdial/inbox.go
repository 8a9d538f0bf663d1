package guestdial

import "github.com/tartarus-vm/tartarus/internal/guest/guestwire"

// inbox keeps the output of a process that came and was not delivered, in the
// order in which it came. Its memory is bounded by the windows: the bytes lie
// in one ring a flow, and the order is a list of runs of 8 bytes each.
type inbox struct {
	flows [2]inflow
	runs  []run
	head  int // runs[:head] are delivered
}

type inflow struct {
	window *guestwire.Window
	ring   []byte
	size   int
	from   int64 // offset of the first byte in the ring
	due    bool  // credit is to be given on this stream
}

type run struct {
	flow uint32
	n    uint32
}

func newInbox() inbox {
	var b inbox
	for i := range b.flows {
		b.flows[i] = inflow{window: guestwire.NewWindow(guestwire.DefaultWindow), size: guestwire.DefaultWindow, due: true}
	}
	return b
}

// of is a flow's state; only Out and Err have one.
func (b *inbox) of(f guestwire.Flow) *inflow {
	if f == guestwire.Out {
		return &b.flows[0]
	}
	return &b.flows[1]
}

func (b *inbox) put(f guestwire.Flow, offset int64, data []byte) error {
	w := b.of(f)
	if err := w.window.Receive(offset, len(data)); err != nil {
		return err
	}
	w.grow(int(offset-w.from) + len(data))
	for at := offset; len(data) > 0; {
		n := copy(w.ring[at%int64(len(w.ring)):], data)
		data = data[n:]
		at += int64(n)
		b.queue(uint32(f), uint32(n))
	}
	return nil
}

// grow makes the ring hold n bytes; the window sees to it that n is never more
// than its size.
func (w *inflow) grow(n int) {
	if n <= len(w.ring) {
		return
	}
	size := max(4096, len(w.ring))
	for size < n {
		size *= 2
	}
	ring := make([]byte, min(size, w.size))
	for at := w.from; len(w.ring) > 0 && at < w.from+int64(len(w.ring)); at++ {
		ring[at%int64(len(ring))] = w.ring[at%int64(len(w.ring))]
	}
	w.ring = ring
}

// queue adds to the last run if it is of the same flow and not being
// delivered.
func (b *inbox) queue(flow, n uint32) {
	if last := len(b.runs) - 1; last >= b.head && b.runs[last].flow == flow {
		b.runs[last].n += n
		return
	}
	if b.head > 0 && len(b.runs) == cap(b.runs) {
		b.runs = b.runs[:copy(b.runs, b.runs[b.head:])]
		b.head = 0
	}
	b.runs = append(b.runs, run{flow, n})
}

// next is what to deliver next; it stays as it is until took.
func (b *inbox) next() (guestwire.Flow, int64, []byte) {
	if b.head == len(b.runs) {
		return 0, 0, nil
	}
	r := b.runs[b.head]
	w := b.of(guestwire.Flow(r.flow))
	at := int(w.from % int64(len(w.ring)))
	n := min(int(r.n), len(w.ring)-at, guestwire.MaxData)
	return guestwire.Flow(r.flow), w.from, w.ring[at : at+n : at+n]
}

// took says that n bytes of next were delivered, and reports whether to give
// credit.
func (b *inbox) took(f guestwire.Flow, n int) bool {
	r := &b.runs[b.head]
	if r.n -= uint32(n); r.n == 0 {
		b.head++
	}
	w := b.of(f)
	w.from += int64(n)
	if w.window.Take(n) {
		w.due = true
	}
	return w.due
}

// credit is the Credit to send now, or nil.
func (b *inbox) credit(f guestwire.Flow) *guestwire.Credit {
	w := b.of(f)
	if !w.due {
		return nil
	}
	w.due = false
	acked, limit := w.window.Grant()
	return &guestwire.Credit{Flow: f, Acked: acked, Limit: limit}
}

func (b *inbox) finish(f guestwire.Flow, final int64) error { return b.of(f).window.Finish(final) }

func (b *inbox) received(f guestwire.Flow) int64 { return b.of(f).window.Received() }

// resume gives all credit again on a new stream.
func (b *inbox) resume() {
	for i := range b.flows {
		b.flows[i].due = true
	}
}

// done reports whether all there ever is was delivered.
func (b *inbox) done() bool { return b.flows[0].window.Done() && b.flows[1].window.Done() }

func (b *inbox) missing() int64 {
	return b.flows[0].window.Missing() + b.flows[1].window.Missing()
}
