package nodewire

import (
	"context"

	"google.golang.org/grpc/metadata"
)

// requestIDKey is where the ID of the request that a call is made for travels,
// so that what both sides log can be laid side by side. It is for logs alone:
// nobody decides by it.
const requestIDKey = "tartarus-request-id"

// longestRequestID bounds what is believed to be one.
const longestRequestID = 64

// WithRequestID is ctx for calls that are made for a request.
func WithRequestID(ctx context.Context, id string) context.Context {
	if id == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, requestIDKey, id)
}

// RequestID is the ID that came with a call; "" if none did, or one that
// could not be logged as it is.
func RequestID(ctx context.Context) string {
	all := metadata.ValueFromIncomingContext(ctx, requestIDKey)
	if len(all) == 0 {
		return ""
	}
	id := all[len(all)-1]
	if len(id) > longestRequestID {
		return ""
	}
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return ""
		}
	}
	return id
}
