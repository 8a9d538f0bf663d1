// Package fault is the one table of errors: every error that crosses a
// boundary has a kind, and a kind has one code, one HTTP status, one gRPC
// code and one exit code.
//
// What happened is the message; what to do about it is the hint, kept apart.
// Context is added by wrapping: fmt.Errorf("starting vm %q: %w", id, err)
// keeps kind, hint and field.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Kind is the kind of an error. The zero value is Internal, so that an error
// nobody classified never tells a caller more than it should.
type Kind int

// The kinds.
const (
	Internal Kind = iota
	InvalidArgument
	Unauthenticated
	PolicyDenied
	NotFound
	Conflict
	TooLarge
	QuotaExceeded
	Unsupported
	Unavailable
)

// Row is a row of the table of errors.
type Row struct {
	Kind    Kind
	Code    string // in error.code
	HTTP    int    // RFC 9110
	GRPC    uint32 // google.golang.org/grpc/codes
	Exit    int    // of run and wait, whose other exit codes are the command's own; other commands exit 1
	Meaning string
}

// failed is what docker run exits with when it is docker that failed.
const failed = 125

// table is what olympus, client and docs/errors.md go by.
var table = []Row{
	{InvalidArgument, "invalid_argument", 400, 3, failed, "A field is malformed or out of bounds; field names it."},
	{Unauthenticated, "unauthenticated", 401, 16, failed, "No token, or one that is unknown, expired or revoked."},
	{PolicyDenied, "policy_denied", 403, 7, failed, "A rule of the policy, or a missing scope, refuses it."},
	{NotFound, "not_found", 404, 5, failed, "There is no such thing, or it is another tenant's."},
	{Conflict, "conflict", 409, 6, failed, "It contradicts what is there already, or the state does not allow it."},
	{TooLarge, "too_large", 413, 8, failed, "The request is larger than its bound."},
	{QuotaExceeded, "quota_exceeded", 429, 8, failed, "The tenant's limit is used up: which, used and limit are in the message."},
	{Unsupported, "unsupported", 501, 12, failed, "This host or driver cannot do it; the message says what is missing."},
	{Unavailable, "unavailable", 503, 14, failed, "It cannot be done now; try again after Retry-After."},
	{Internal, "internal", 500, 13, failed, "A fault of Tartarus; its log has the cause under the request_id."},
}

// Table is a copy of the table of errors.
func Table() []Row { return append([]Row(nil), table...) }

// Row is the row of kind k.
func (k Kind) Row() Row {
	for _, r := range table {
		if r.Kind == k {
			return r
		}
	}
	return Internal.Row()
}

// String is the code of k.
func (k Kind) String() string { return k.Row().Code }

// KindOfCode is the kind with that code; Internal for one not in the table.
func KindOfCode(code string) Kind {
	for _, r := range table {
		if r.Code == code {
			return r.Kind
		}
	}
	return Internal
}

// Error is an error with a kind. Make it with New, or with one of the With
// methods from another.
type Error struct {
	Kind       Kind
	Message    string        // what happened, for the caller; never a secret
	Hint       string        // what to do about it; may be empty
	Field      string        // the request's field, as in files[2].path; may be empty
	Sandbox    string        // the refused sandbox's ID, for PolicyDenied; may be empty
	RetryAfter time.Duration // 0 unless time helps
	cause      error         // for our log only; may be nil
}

// New makes an error of a kind.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// Invalid makes an InvalidArgument error on a field.
func Invalid(field, hint, format string, args ...any) *Error {
	return &Error{Kind: InvalidArgument, Field: field, Hint: hint, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an error of a kind out of one that has none. The text of err goes
// to the log and not to the caller.
func Wrap(k Kind, err error, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...), cause: err}
}

// WithHint is e with a hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// WithRetryAfter is e with the time after which a retry may help.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// Error is the message, and the cause where there is one.
func (e *Error) Error() string {
	if e.cause != nil {
		return e.Message + ": " + e.cause.Error()
	}
	return e.Message
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.cause }

// KindOf is the kind of the first Error in err's chain; Internal without one.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}
