package guestd

import "github.com/tartarus-vm/tartarus/internal/guest/guestwire"

// output is the way to the host. Control frames wait in one buffer and go
// ahead of data, which stays in its flow's own buffer until its turn. What is
// said again after a hello keeps the control buffer bounded.
type output struct {
	port    Port
	control []byte
	frame   []byte // what is being written
	rest    []byte // the end of frame that was not written yet
}

// send queues a control frame.
func (o *output) send(m guestwire.Message) {
	// Only a field out of bounds fails, and all of ours are made within.
	if b, err := guestwire.Append(o.control, m); err == nil {
		o.control = b
	}
}

// raw queues a control frame that is encoded already.
func (o *output) raw(frame []byte) { o.control = append(o.control, frame...) }

// reset forgets all that was not written, the rest of a torn frame too.
func (o *output) reset() { o.control, o.rest = o.control[:0], nil }

// flush writes what can be written, at most turns frames of data, and reports
// whether it stopped only because of that.
func (o *output) flush(next func() guestwire.Message, turns int) bool {
	for {
		for len(o.rest) > 0 {
			n, err := o.port.Write(o.rest)
			if err != nil {
				return false
			}
			o.rest = o.rest[n:]
		}
		o.frame = o.frame[:0]
		if len(o.control) > 0 {
			o.frame, o.control = o.control, o.frame
		} else {
			if turns == 0 {
				return true
			}
			turns--
			m := next()
			if m == nil {
				return false
			}
			var err error
			if o.frame, err = guestwire.Append(o.frame, m); err != nil {
				return false
			}
		}
		o.rest = o.frame
	}
}
