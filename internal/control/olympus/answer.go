package olympus

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// answer is a ResponseWriter that gives its client a bounded time for each
// write: a slow reader may be slow for ever, one that stopped may not. It also
// remembers whether the answer has begun.
type answer struct {
	http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	begun   atomic.Bool

	mu   sync.Mutex
	over bool // guarded by mu: nothing more is written, or it is the HTTP server's
}

func newAnswer(w http.ResponseWriter, timeout time.Duration) *answer {
	return &answer{ResponseWriter: w, rc: http.NewResponseController(w), timeout: timeout}
}

// limit bounds what f writes. The deadline does not outlive f, since HTTP/2
// would end an idle stream with it.
func (a *answer) limit(f func()) {
	a.deadline(time.Now().Add(a.timeout))
	f()
	a.deadline(time.Time{})
}

// deadline sets until when may be written, unless the answer is over.
func (a *answer) deadline(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over {
		_ = a.rc.SetWriteDeadline(t) // a writer that cannot is a test's
	}
}

// cutOff ends a write under way, and all to come. It may be called at any time
// by anybody.
func (a *answer) cutOff() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over {
		a.over = true
		_ = a.rc.SetWriteDeadline(time.Now().Add(-time.Second))
	}
}

// WriteHeader begins the answer.
func (a *answer) WriteHeader(code int) {
	a.begun.Store(true)
	a.ResponseWriter.WriteHeader(code)
}

// Write writes within the time limit.
func (a *answer) Write(b []byte) (n int, err error) {
	a.begun.Store(true)
	a.limit(func() { n, err = a.ResponseWriter.Write(b) })
	return n, err
}

// Flush sends what was written, for callers that cannot be told of errors.
func (a *answer) Flush() { _ = a.FlushError() }

// FlushError sends what was written.
func (a *answer) FlushError() (err error) {
	a.begun.Store(true)
	a.limit(func() { err = a.rc.Flush() })
	return err
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// finish bounds what the HTTP server itself writes after the handler.
func (a *answer) finish() {
	a.deadline(time.Now().Add(a.timeout))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
}
