package olympus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
)

// The forms that a stream is answered in.
const (
	formLines  = "application/x-ndjson"
	formPlain  = "text/plain"
	formEvents = "text/event-stream"
)

// formOf picks the first form of the Accept header that is offered.
func formOf(r *http.Request, offered ...string) (string, error) {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	if strings.TrimSpace(accept) == "" {
		return offered[0], nil
	}
	for part := range strings.SplitSeq(accept, ",") {
		kind, _, err := mime.ParseMediaType(part)
		if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
			continue
		}
		switch kind {
		case "*/*", "application/*", "application/json", "application/jsonl", "application/x-ndjson":
			return offered[0], nil
		case "text/*":
			kind = formPlain
		}
		for _, o := range offered {
			if kind == o {
				return o, nil
			}
		}
	}
	return "", fault.Invalid("Accept", "It comes as "+strings.Join(offered, ", ")+".", "none of the forms asked for is offered")
}

// sink writes one stream to its caller.
type sink struct {
	w     *answer
	form  string
	flush bool // after each piece

	mu sync.Mutex // the keeper writes, too
}

// open begins a stream. What guests wrote is for programs, never for a
// browser to show.
func open(w *answer, form, file string, flush bool) *sink {
	h := w.Header()
	h.Set("Content-Type", form)
	if form == formPlain {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": file}))
	}
	h.Set("X-Accel-Buffering", "no")
	return &sink{w: w, form: form, flush: flush}
}

// begin sends the headers, so that a follower knows that it was let in.
func (k *sink) begin() error {
	k.w.WriteHeader(http.StatusOK)
	if k.flush {
		return gone(k.w.FlushError())
	}
	return nil
}

func (k *sink) write(b []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := k.w.Write(b); err != nil {
		return gone(err)
	}
	if k.flush {
		return gone(k.w.FlushError())
	}
	return nil
}

// piece writes one JSON value: as a line, or as a server-sent event.
func (k *sink) piece(name, id string, line []byte) error {
	line = bytes.TrimSuffix(line, []byte("\n"))
	if k.form != formEvents {
		return k.write(append(line, '\n'))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\n", name)
	if id != "" {
		fmt.Fprintf(&b, "id: %s\n", id)
	}
	fmt.Fprintf(&b, "data: %s\n\n", line)
	return k.write(b.Bytes())
}

// keep writes a comment now and then, so that proxies and clients see that an
// event stream lives. stop ends it and waits for it.
func (k *sink) keep(every time.Duration) (stop func()) {
	if k.form != formEvents {
		return func() {}
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				if k.write([]byte(": still here\n\n")) != nil {
					return
				}
			}
		}
	})
	return func() { close(end); wg.Wait() }
}

// close ends the stream: with err, if there is one, as its last piece.
func (k *sink) close(err error, requestID string) error {
	switch {
	case errors.As(err, new(told)):
		return err
	case err == nil && k.form == formEvents:
		return k.piece("end", "", []byte("{}"))
	case err == nil:
		return nil
	case k.form == formPlain:
		return err // the answer is cut off: that is how its reader knows
	}
	line, merr := json.Marshal(lineOf(shown(err), requestID))
	if merr != nil {
		return merr
	}
	if werr := k.piece("error", "", line); werr != nil {
		return werr
	}
	return told{err}
}

// logLine is an entry of a log in JSON.
type logLine struct {
	Offset     int64   `json:"offset"`
	Stream     string  `json:"stream,omitempty"`
	Time       string  `json:"time,omitempty"`
	Text       *string `json:"text,omitempty"`
	DataBase64 []byte  `json:"data_base64,omitempty"`
	Truncated  bool    `json:"truncated,omitempty"`
}

// logSink writes the entries of a log.
type logSink struct {
	*sink
	held hermes.Entry // the begin of a character whose rest has not come yet
}

// entry writes e. A character that two entries share is put together, so that
// text stays text.
func (k *logSink) entry(e hermes.Entry) error {
	if k.form == formPlain {
		if e.Stream == hermes.Truncated {
			return nil
		}
		return k.write(e.Data)
	}
	if h := k.held; len(h.Data) > 0 {
		if e.Stream == h.Stream && e.Offset == h.Offset+int64(len(h.Data)) {
			e.Offset, e.Data = h.Offset, append(h.Data, e.Data...)
		} else if err := k.line(h); err != nil {
			return err
		}
		k.held = hermes.Entry{}
	}
	if n := len(e.Data) - halfRune(e.Data); n < len(e.Data) && utf8.Valid(e.Data[:n]) {
		k.held = e
		k.held.Offset, k.held.Data = e.Offset+int64(n), bytes.Clone(e.Data[n:])
		e.Data = e.Data[:n]
		if n == 0 {
			return nil
		}
	}
	return k.line(e)
}

// rest writes what was held back.
func (k *logSink) rest() error {
	if len(k.held.Data) == 0 {
		return nil
	}
	e := k.held
	k.held = hermes.Entry{}
	return k.line(e)
}

func (k *logSink) line(e hermes.Entry) error {
	l := logLine{Offset: e.Offset, Stream: e.Stream}
	if !e.Time.IsZero() {
		l.Time = e.Time.UTC().Format(time.RFC3339Nano)
	}
	switch {
	case e.Stream == hermes.Truncated:
		l.Stream, l.Truncated = "", true
	case utf8.Valid(e.Data):
		text := string(e.Data)
		l.Text = &text
	default:
		l.DataBase64 = e.Data
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(l); err != nil {
		return fmt.Errorf("encoding output: %w", err)
	}
	return k.piece("log", strconv.FormatInt(e.Offset+int64(len(e.Data)), 10), b.Bytes())
}

// halfRune is how many bytes at the end of b begin a character without ending
// it.
func halfRune(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

// lastEventID is where an event stream is to go on after its connection broke.
func lastEventID(r *http.Request) (int64, bool, error) {
	text := r.Header.Get("Last-Event-ID")
	if text == "" {
		return 0, false, nil
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 0 || id > maxOffset {
		return 0, false, fault.Invalid("Last-Event-ID", "Send the id of the last event, or none.", "that is no id of an event")
	}
	return id, true, nil
}
