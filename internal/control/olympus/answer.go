package olympus

import (
	"net/http"
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
}

func newAnswer(w http.ResponseWriter, timeout time.Duration) *answer {
	return &answer{ResponseWriter: w, rc: http.NewResponseController(w), timeout: timeout}
}

// limit bounds what f writes. The deadline does not outlive f, since HTTP/2
// would end an idle stream with it.
func (a *answer) limit(f func()) {
	_ = a.rc.SetWriteDeadline(time.Now().Add(a.timeout)) // a writer that cannot is a test's
	f()
	_ = a.rc.SetWriteDeadline(time.Time{})
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
func (a *answer) finish() { _ = a.rc.SetWriteDeadline(time.Now().Add(a.timeout)) }
