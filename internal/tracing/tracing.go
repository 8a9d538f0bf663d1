// Package tracing is the traces of runs: one for each sandbox, a span for each
// stage of its road, sent to a collector over OTLP where one is configured.
//
// Nothing of a trace travels with a request. The trace's ID and those of the
// spans that have others below them are made out of the sandbox's ID, which the
// signed verdict and order carry anyway; so every process that has a hand in a
// sandbox, after a restart too, adds to the same trace, and nobody has to
// believe what another said of it.
//
// Spans are made when they are over, out of times that were taken anyway.
// Attributes are identifiers, numbers and words of our own tables: no command,
// no text of tenants or guests, no message of an error.
package tracing

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Tracer makes traces. A nil *Tracer makes none, and costs nothing.
type Tracer struct {
	spans  trace.Tracer
	sender *sender
}

// The names of spans that others are below.
const (
	nameRun = "run"

	// Prepare is the span of a node's preparation; its steps are below it.
	Prepare = "prepare"
)

// Span is one stage of a sandbox's road, which is over.
type Span struct {
	Sandbox    sandbox.ID
	Attempt    int // 0 before it was placed
	Name       string
	Below      string // Prepare, or "" for the whole run
	Begin, End time.Time
	Err        error       // of the stage; its kind is told
	Attrs      []slog.Attr // strings, numbers and truths

	// Caller is the traceparent header of a request; the span links to what it
	// names. Anybody may send any: it is a link, and never a parent.
	Caller string
}

// Stage makes the span of a stage.
func (t *Tracer) Stage(s Span) {
	if t == nil || !s.Sandbox.Valid() {
		return
	}
	id := ids{span: random()}
	parent := spanID(s.Sandbox, 0, nameRun)
	if s.Name == Prepare {
		id.span = spanID(s.Sandbox, s.Attempt, Prepare)
	} else if s.Below != "" {
		parent = spanID(s.Sandbox, s.Attempt, s.Below)
	}
	ctx := trace.ContextWithRemoteSpanContext(withIDs(id), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: traceID(s.Sandbox), SpanID: parent, TraceFlags: trace.FlagsSampled, Remote: true,
	}))
	opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindInternal)}
	if from := callerOf(s.Caller); from.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: from}))
	}
	if s.Attempt > 0 {
		s.Attrs = append(s.Attrs, slog.Int("attempt", s.Attempt))
	}
	t.make(ctx, s, opts...)
}

// Run makes the span of a whole run, from its creation to its end.
func (t *Tracer) Run(rec sandbox.Record) {
	if t == nil || !rec.ID.Valid() || rec.EndedAt.IsZero() {
		return
	}
	ctx := withIDs(ids{trace: traceID(rec.ID), span: spanID(rec.ID, 0, nameRun)})
	s := Span{Sandbox: rec.ID, Name: nameRun, Begin: rec.CreatedAt, End: rec.EndedAt, Attrs: []slog.Attr{
		slog.String("tenant", rec.Tenant), slog.String("state", string(rec.State)), slog.String("cause", string(rec.Exit.Cause)),
		slog.Int("attempt", rec.Runtime.Attempt), slog.String("node", rec.Node),
		slog.String("driver", rec.Runtime.Driver), slog.String("accelerator", rec.Runtime.Accelerator), slog.String("start", rec.Runtime.Start),
		slog.Int("vcpus", rec.Request.Resources.VCPUs), slog.Int64("memory_mib", rec.Request.Resources.MemoryMiB),
	}}
	t.make(ctx, s)
}

// make hands a span, which is over, to the sender.
func (t *Tracer) make(ctx context.Context, s Span, opts ...trace.SpanStartOption) {
	attrs := []attribute.KeyValue{attribute.String("sandbox", string(s.Sandbox))}
	for _, a := range s.Attrs {
		if kv := attributeOf(a); kv.Valid() {
			attrs = append(attrs, kv)
		}
	}
	opts = append(opts, trace.WithTimestamp(s.Begin), trace.WithAttributes(attrs...))
	_, span := t.spans.Start(ctx, s.Name, opts...)
	switch {
	case errors.Is(s.Err, context.Canceled):
		span.SetStatus(codes.Error, "canceled")
	case s.Err != nil:
		span.SetStatus(codes.Error, fault.KindOf(s.Err).String())
	}
	span.End(trace.WithTimestamp(s.End))
}

// attributeOf is a, or nothing where it is empty or of another kind.
func attributeOf(a slog.Attr) attribute.KeyValue {
	switch v := a.Value; v.Kind() {
	case slog.KindString:
		if v.String() != "" {
			return attribute.String(a.Key, v.String())
		}
	case slog.KindInt64:
		return attribute.Int64(a.Key, v.Int64())
	case slog.KindFloat64:
		return attribute.Float64(a.Key, v.Float64())
	case slog.KindBool:
		return attribute.Bool(a.Key, v.Bool())
	}
	return attribute.KeyValue{}
}

// callerOf reads a traceparent header; the zero value if it is none.
func callerOf(header string) trace.SpanContext {
	if header == "" {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": header})
	return trace.SpanContextFromContext(ctx)
}

// traceID is the trace of a sandbox.
func traceID(id sandbox.ID) (out trace.TraceID) {
	sum := sha256.Sum256([]byte("tartarus trace\x00" + string(id)))
	copy(out[:], sum[:])
	return out
}

// spanID is the ID of a span that others are below.
func spanID(id sandbox.ID, attempt int, name string) (out trace.SpanID) {
	sum := sha256.Sum256(fmt.Appendf(nil, "tartarus span\x00%s\x00%d\x00%s", id, attempt, name))
	copy(out[:], sum[:])
	return out
}

func random() (out trace.SpanID) {
	binary.BigEndian.PutUint64(out[:], rand.Uint64()|1) // never zero
	return out
}

// ids are what a span is to be called.
type ids struct {
	trace trace.TraceID
	span  trace.SpanID
}

type idsKey struct{}

func withIDs(i ids) context.Context { return context.WithValue(context.Background(), idsKey{}, i) }

// chosen gives spans the IDs that were chosen for them.
type chosen struct{}

// NewIDs implements sdktrace.IDGenerator.
func (chosen) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	i, _ := ctx.Value(idsKey{}).(ids)
	return i.trace, i.span
}

// NewSpanID implements sdktrace.IDGenerator.
func (chosen) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	i, _ := ctx.Value(idsKey{}).(ids)
	return i.span
}

// wholeRuns samples by the trace alone, so that of a run there are all spans
// or none, whichever process makes them.
type wholeRuns struct{ sdktrace.Sampler }

// ShouldSample implements sdktrace.Sampler.
func (w wholeRuns) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	p.ParentContext = context.Background()
	return w.Sampler.ShouldSample(p)
}
