package olympus

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

// shown is what the caller is told of err: a kind and a message that was
// written for callers. Everything else about err is for our log.
func shown(err error) *fault.Error {
	var e *fault.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &e):
		if e.Kind != fault.Internal {
			return e
		}
	case errors.As(err, &tooLarge):
		return fault.New(fault.TooLarge, "the request is larger than %d bytes", tooLarge.Limit).
			WithHint("Send less; large inputs belong into a template.")
	case errors.Is(err, context.Canceled), status.Code(err) == codes.Canceled:
		return fault.New(fault.Unavailable, "the call was canceled")
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return fault.New(fault.Unavailable, "the call ran out of time")
	case status.Code(err) == codes.ResourceExhausted:
		return fault.New(fault.TooLarge, "the message is larger than its bound")
	}
	return fault.New(fault.Internal, "something went wrong inside Tartarus").
		WithHint("The server's log has the cause under the request_id.")
}

// wireError is an error as callers see it, over HTTP.
type wireError struct {
	Code       string `json:"code"`
	Message    string `json:"message"`
	Hint       string `json:"hint,omitempty"`
	Field      string `json:"field,omitempty"`
	RequestID  string `json:"request_id"`
	ID         string `json:"id,omitempty"`
	RetryAfter string `json:"retry_after,omitempty"`
}

// errorLine is the body of an error, and the last line of a stream that broke.
type errorLine struct {
	Error wireError `json:"error"`
}

func lineOf(e *fault.Error, requestID string) errorLine {
	w := wireError{
		Code: e.Kind.String(), Message: e.Message, Hint: e.Hint, Field: e.Field,
		RequestID: requestID, ID: e.Sandbox,
	}
	if e.RetryAfter > 0 {
		w.RetryAfter = strconv.FormatFloat(e.RetryAfter.Seconds(), 'f', -1, 64) + "s"
	}
	return errorLine{w}
}

// writeError answers an HTTP request with err, if nothing was answered yet.
func writeError(w http.ResponseWriter, err error, requestID string) {
	e := shown(err)
	body, merr := json.Marshal(lineOf(e, requestID))
	if merr != nil { // strings cannot fail
		body = []byte(`{"error":{"code":"internal"}}`)
	}
	h := w.Header()
	h.Del("Content-Disposition")
	h.Del("Location")
	h.Set("Content-Type", "application/json")
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(wholeSeconds(e.RetryAfter), 10))
	}
	if e.Kind == fault.Unauthenticated {
		h.Set("WWW-Authenticate", `Bearer realm="tartarus"`)
	}
	w.WriteHeader(e.Kind.Row().HTTP)
	_, _ = w.Write(append(body, '\n')) // the caller is gone: there is nobody to tell
}

// wholeSeconds rounds up, since a retry that comes too early is in vain.
func wholeSeconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}

// statusOf is err as a gRPC status with the contract's Error as its detail.
func statusOf(err error, requestID string) error {
	if err == nil {
		return nil
	}
	e := shown(err)
	detail := &apiv1.Error{
		Code: e.Kind.String(), Message: clean(e.Message), Hint: clean(e.Hint), Field: clean(e.Field),
		RequestId: requestID, Id: e.Sandbox,
	}
	if e.RetryAfter > 0 {
		detail.RetryAfter = durationpb.New(e.RetryAfter)
	}
	s := status.New(codes.Code(e.Kind.Row().GRPC), detail.GetMessage())
	if with, derr := s.WithDetails(detail); derr == nil {
		s = with
	}
	return s.Err()
}

// clean is s as protobuf can carry it.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
