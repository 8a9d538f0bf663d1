package nodewire

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// domain marks the details that StatusOf adds as ours.
const domain = "tartarus"

// The keys of the details' metadata.
const (
	keyHint       = "hint"
	keyField      = "field"
	keySandbox    = "sandbox"
	keyRetryAfter = "retry_after"
)

// StatusOf is err as a gRPC status error with kind, hint and field in its
// details; nil for nil. A Conflict between control plane and node is
// FAILED_PRECONDITION: what was asked is overtaken, and asking again cannot
// help. The cause inside an error stays behind, for our log only.
func StatusOf(err error) error {
	if err == nil {
		return nil
	}
	var e *fault.Error
	if !errors.As(err, &e) {
		return plainStatus(err)
	}
	message := err.Error()
	if e.Unwrap() != nil {
		message = e.Message
	}
	s := status.New(code(e.Kind), message)
	info := &errdetails.ErrorInfo{Reason: e.Kind.String(), Domain: domain, Metadata: map[string]string{}}
	put := func(key, value string) {
		if value != "" {
			info.Metadata[key] = value
		}
	}
	put(keyHint, e.Hint)
	put(keyField, e.Field)
	put(keySandbox, e.Sandbox)
	if e.RetryAfter > 0 {
		put(keyRetryAfter, strconv.FormatInt(int64(e.RetryAfter), 10))
	}
	if with, derr := s.WithDetails(info); derr == nil {
		s = with
	}
	return s.Err()
}

func plainStatus(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "out of time")
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.Error(codes.Internal, "an internal error; the log of this side has the cause")
}

func code(k fault.Kind) codes.Code {
	if k == fault.Conflict {
		return codes.FailedPrecondition
	}
	return codes.Code(k.Row().GRPC)
}

// FromStatus is the error that StatusOf was given, as far as it travels; nil
// for nil. An error of the transport itself is Unavailable: whether the call
// was carried out is then not known. The end of the caller's own context
// stays recognisable with errors.Is.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return fault.Wrap(fault.Unavailable, err, "the call was not answered")
		}
		return err
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return fromInfo(s.Message(), info)
		}
	}
	switch s.Code() {
	case codes.Canceled:
		return fault.Wrap(fault.Unavailable, context.Canceled, "the call was not answered")
	case codes.DeadlineExceeded:
		return fault.Wrap(fault.Unavailable, context.DeadlineExceeded, "the call was not answered")
	}
	return fault.New(kind(s.Code()), "%s", s.Message())
}

func fromInfo(message string, info *errdetails.ErrorInfo) error {
	m := info.GetMetadata()
	e := fault.New(fault.KindOfCode(info.GetReason()), "%s", message)
	e.Hint, e.Field, e.Sandbox = m[keyHint], m[keyField], m[keySandbox]
	if n, err := strconv.ParseInt(m[keyRetryAfter], 10, 64); err == nil && n > 0 {
		e.RetryAfter = time.Duration(n)
	}
	return e
}

// kind is for statuses without our details: gRPC's own, or a proxy's.
func kind(c codes.Code) fault.Kind {
	switch c {
	case codes.FailedPrecondition, codes.Aborted:
		return fault.Conflict
	case codes.ResourceExhausted:
		return fault.TooLarge // the transport's bound on messages
	}
	for _, r := range fault.Table() {
		if r.GRPC == uint32(c) {
			return r.Kind
		}
	}
	return fault.Unavailable
}
