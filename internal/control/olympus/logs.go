package olympus

import (
	"bytes"
	"context"
	"errors"
	"time"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// logQuery is which part of an output is wanted.
type logQuery struct {
	offset int64
	follow bool
	stream string // "" for both
	tail   int    // lines; -1 for all
}

// maxTail bounds the lines that are remembered to find the last ones.
const maxTail = 10000

func logQueryOf(req *apiv1.LogsRequest) (logQuery, error) {
	q := logQuery{offset: int64(req.GetOffset()), follow: req.GetFollow(), stream: req.GetStream(), tail: -1}
	if o := req.GetOffset(); !(o >= 0 && o <= maxOffset) || float64(q.offset) != o {
		return q, fault.Invalid("offset", "Send a whole number from 0 on.", "offset is not a byte's")
	}
	switch q.stream {
	case "", hermes.Stdout, hermes.Stderr:
	default:
		return q, fault.Invalid("stream", "Send stdout or stderr, or leave it away for both.", "there is no stream %q", shorten(q.stream))
	}
	if req.Tail != nil {
		if q.tail = int(req.GetTail()); q.tail < 0 || q.tail > maxTail {
			return q, fault.Invalid("tail", "Send 0 to 10000 lines.", "tail is not from 0 to %d", maxTail)
		}
	}
	return q, nil
}

// logs hands the wanted part of an output to yield.
func (s *Server) logs(ctx context.Context, rec sandbox.Record, q logQuery, yield func(hermes.Entry) error) error {
	wanted := func(e hermes.Entry) bool {
		return q.stream == "" || e.Stream == q.stream || e.Stream == hermes.Truncated
	}
	from := q.offset
	if q.tail >= 0 {
		t := tail{starts: make([]int64, 0, min(q.tail, 1024)), most: q.tail, end: from, lineEnded: true}
		if err := s.output(ctx, rec, from, false, func(e hermes.Entry) error {
			t.add(e, wanted(e))
			return nil
		}); err != nil {
			return err
		}
		from = t.from()
	}
	return s.output(ctx, rec, from, q.follow, func(e hermes.Entry) error {
		if !wanted(e) {
			return nil
		}
		return yield(e)
	})
}

// tail finds where the last lines begin.
type tail struct {
	most      int
	starts    []int64 // of the last lines, a ring once it is full
	oldest    int     // in a full ring
	end       int64
	lineEnded bool // the next byte begins a line
}

func (t *tail) add(e hermes.Entry, wanted bool) {
	t.end = e.Offset + int64(len(e.Data))
	if !wanted {
		return
	}
	for i := 0; i < len(e.Data); {
		if t.lineEnded {
			t.push(e.Offset + int64(i))
		}
		n := bytes.IndexByte(e.Data[i:], '\n')
		if t.lineEnded = n >= 0; !t.lineEnded {
			return
		}
		i += n + 1
	}
}

func (t *tail) push(start int64) {
	switch {
	case t.most == 0:
	case len(t.starts) < t.most:
		t.starts = append(t.starts, start)
	default:
		t.starts[t.oldest] = start
		t.oldest = (t.oldest + 1) % t.most
	}
}

func (t *tail) from() int64 {
	if len(t.starts) == 0 {
		return t.end
	}
	return t.starts[t.oldest]
}

// How often a live sandbox is looked at again where nothing wakes us: other
// processes' changes to the ledger, and a log that its node has not made yet.
const (
	pollRecord = time.Second
	pollLog    = 250 * time.Millisecond
)

// output hands the output from offset on to yield: from the node while the
// sandbox is there, from the kept log afterwards, and from one to the other
// when it ends in between.
func (s *Server) output(ctx context.Context, rec sandbox.Record, offset int64, follow bool, yield func(hermes.Entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var changed <-chan struct{}
	if follow {
		changed = s.cfg.Records.Watch(ctx)
		var err error
		if rec, err = s.cfg.Records.Get(ctx, rec.ID); err != nil { // it may have changed before we watched
			return err
		}
	}
	var yieldErr error
	take := func(e hermes.Entry) error {
		if e.Stream != hermes.Truncated {
			offset = e.Offset + int64(len(e.Data))
		}
		yieldErr = yield(e)
		return yieldErr
	}
	for {
		if !rec.State.Live() {
			return s.kept(ctx, rec, offset, take)
		}
		var err error
		every := pollRecord
		if rec.State.Accepted() {
			err = s.cfg.Nodes.Logs(ctx, rec, offset, follow, take)
			if err == nil || yieldErr != nil {
				return errors.Join(yieldErr, err)
			}
			every = pollLog
		}
		if ctx.Err() != nil {
			return ended(ctx)
		}
		again, gerr := s.cfg.Records.Get(ctx, rec.ID)
		switch {
		case gerr != nil:
			return gerr
		case err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Conflict):
			return err
		case !again.State.Live():
		case !follow && fault.Is(err, fault.NotFound), !follow && err == nil:
			return nil // there is none yet
		case !follow:
			return err
		default:
			if err := pause(ctx, changed, every); err != nil {
				return err
			}
			if again, err = s.cfg.Records.Get(ctx, rec.ID); err != nil {
				return err
			}
		}
		rec = again
	}
}

// pause waits for a change, or for a while.
func pause(ctx context.Context, changed <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
	if ctx.Err() != nil { // changed is closed by then, too
		return ended(ctx)
	}
	return nil
}

// kept hands the log of an ended sandbox to yield, from offset on.
func (s *Server) kept(ctx context.Context, rec sandbox.Record, offset int64, yield func(hermes.Entry) error) error {
	if rec.LogDigest == "" {
		return nil // it never ran
	}
	blob, err := s.cfg.Blobs.Open(ctx, rec.LogDigest)
	if fault.Is(err, fault.NotFound) {
		return fault.Wrap(fault.NotFound, err, "the output of %s is not kept any more", rec.ID)
	}
	if err != nil {
		return err
	}
	defer blob.Close()
	end := offset
	for e, err := range hermes.Decode(blob) {
		switch {
		case errors.Is(err, hermes.ErrUnfinished): // all that was written before its node died
			return yield(hermes.Entry{Offset: end, Stream: hermes.Truncated, Time: rec.EndedAt})
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ended(ctx)
		}
		if e.Stream != hermes.Truncated {
			end = e.Offset + int64(len(e.Data))
			if end <= offset {
				continue
			}
			if skip := offset - e.Offset; skip > 0 {
				e.Offset, e.Data = offset, e.Data[skip:]
			}
		}
		if err := yield(e); err != nil {
			return err
		}
	}
	return nil
}
