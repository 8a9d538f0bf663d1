package client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// The codes of errors.
const (
	InvalidArgument = "invalid_argument"
	Unauthenticated = "unauthenticated"
	PolicyDenied    = "policy_denied"
	NotFound        = "not_found"
	Conflict        = "conflict"
	TooLarge        = "too_large"
	QuotaExceeded   = "quota_exceeded"
	Unsupported     = "unsupported"
	Unavailable     = "unavailable"
	Internal        = "internal"
)

// Error is what a server answered, or why it could not be asked.
type Error struct {
	Code       string        // one of the codes above, or one that a newer server knows
	Message    string        // what happened
	Hint       string        // what to do about it; may be empty
	Field      string        // the request's field, as in network.allow[0].cidr; may be empty
	RequestID  string        // under which the server's log has more; empty when it was not asked
	ID         string        // the refused sandbox's, with PolicyDenied; else empty
	RetryAfter time.Duration // 0 unless time helps

	cause error
}

// Error is code and message. The hint is apart, for who shows it.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code
	}
	return e.Code + ": " + e.Message
}

// Unwrap makes the end of a call's own context recognisable with errors.Is.
func (e *Error) Unwrap() error { return e.cause }

// CodeOf is the code of err; Internal for an error that no server made, and ""
// for nil.
func CodeOf(err error) string {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Code
	}
	return Internal
}

// ofStatus are the codes of statuses that no server of ours made: gRPC's own,
// or a proxy's.
var ofStatus = map[codes.Code]string{
	codes.InvalidArgument:    InvalidArgument,
	codes.OutOfRange:         InvalidArgument,
	codes.Unauthenticated:    Unauthenticated,
	codes.PermissionDenied:   PolicyDenied,
	codes.NotFound:           NotFound,
	codes.AlreadyExists:      Conflict,
	codes.FailedPrecondition: Conflict,
	codes.Aborted:            Conflict,
	codes.ResourceExhausted:  TooLarge,
	codes.Unimplemented:      Unsupported,
	codes.Unavailable:        Unavailable,
	codes.Canceled:           Unavailable,
	codes.DeadlineExceeded:   Unavailable,
}

// convert is err as an *Error; nil for nil. The end of a stream stays io.EOF.
func convert(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range s.Details() {
		if e, ok := d.(*apiv1.Error); ok {
			return &Error{
				Code: e.GetCode(), Message: e.GetMessage(), Hint: e.GetHint(), Field: e.GetField(),
				RequestID: e.GetRequestId(), ID: e.GetId(), RetryAfter: e.GetRetryAfter().AsDuration(),
			}
		}
	}
	e := &Error{Code: ofStatus[s.Code()], Message: s.Message()}
	switch s.Code() {
	case codes.Canceled:
		e.Message, e.cause = "the call was canceled", context.Canceled
	case codes.DeadlineExceeded:
		e.Message, e.cause = "the call ran out of time", context.DeadlineExceeded
	case codes.Unavailable:
		e.Message, e.Hint = "the server cannot be reached: "+s.Message(), "Is it running, and is this its address?"
	case codes.Unimplemented:
		e.Hint = "The server may be older than this client."
	}
	if e.Code == "" {
		e.Code = Internal
	}
	return e
}

func unaryErrors(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return convert(next(ctx, method, req, reply, cc, opts...))
}

func streamErrors(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := next(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, convert(err)
	}
	return converting{s}, nil
}

// converting is a stream whose errors are *Error.
type converting struct{ grpc.ClientStream }

// RecvMsg receives.
func (c converting) RecvMsg(m any) error { return convert(c.ClientStream.RecvMsg(m)) }

// SendMsg sends.
func (c converting) SendMsg(m any) error { return convert(c.ClientStream.SendMsg(m)) }
