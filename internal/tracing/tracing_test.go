package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// exporter is a collector in memory.
type exporter struct {
	mu    sync.Mutex
	spans []sdktrace.ReadOnlySpan
	err   error
	hold  bool // it answers nothing until it is told that there is no patience left
}

func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if e.hold {
		<-ctx.Done()
		return ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	e.spans = append(e.spans, spans...)
	return nil
}

func (e *exporter) Shutdown(context.Context) error { return nil }

func tracerTo(t testing.TB, e *exporter, cfg Config, sampler sdktrace.Sampler) *Tracer {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := newSender(e, cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s), sdktrace.WithIDGenerator(chosen{}), sdktrace.WithSampler(wholeRuns{sampler}))
	return &Tracer{spans: p.Tracer("test"), sender: s}
}

func idOf(n int) sandbox.ID { return sandbox.MakeID(fmt.Sprintf("%026d", n)) }

var at = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func recordOf(id sandbox.ID) sandbox.Record {
	return sandbox.Record{
		ID: id, Tenant: "t", State: sandbox.Failed, CreatedAt: at, EndedAt: at.Add(time.Second), Name: "what a tenant wrote",
		Request: sandbox.Resolved{Command: []string{"what a tenant wrote"}, Labels: map[string]string{"what a tenant wrote": "x"}},
		Exit:    sandbox.ExitRecord{Cause: sandbox.Killed, Message: "what a guest wrote"},
	}
}

// counted is the value of a counter, by the value of its label.
func counted(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				out[l.GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

// A collector that never answers makes nobody wait: what is too much is lost,
// and counted, and the end is bounded.
func TestNobodyWaits(t *testing.T) {
	reg := prometheus.NewRegistry()
	tr := tracerTo(t, &exporter{hold: true}, Config{Metrics: reg}, sdktrace.AlwaysSample())
	const many = 3 * (waitingSpans + batchSpans)
	for n := range many {
		tr.Run(recordOf(idOf(n)))
	}
	got := counted(t, reg)
	if got["ended"] != many || got["lost"] < many-waitingSpans-2*batchSpans || got["sent"] != 0 {
		t.Errorf("counted %v of %d", got, many)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // no patience at all
	if err := tr.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("closing: %v", err)
	}
	tr.Run(recordOf(idOf(1))) // lost, and no harm
	if err := tr.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("closing again: %v", err)
	}
	if got := counted(t, reg); got["lost"] < many-waitingSpans {
		t.Errorf("counted %v of %d", got, many)
	}
}

// What waits is sent at the end, in batches.
func TestTheLastAreSent(t *testing.T) {
	e, reg := &exporter{}, prometheus.NewRegistry()
	tr := tracerTo(t, e, Config{Metrics: reg}, sdktrace.AlwaysSample())
	const many = 2*batchSpans + 7
	for n := range many {
		tr.Run(recordOf(idOf(n)))
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := counted(t, reg); len(e.spans) != many || got["sent"] != many || got["lost"] != 0 {
		t.Errorf("%d came of %d, counted %v", len(e.spans), many, got)
	}
}

// A collector that refuses is told of once.
func TestRefusalsAreSaidOnce(t *testing.T) {
	var b strings.Builder
	e := &exporter{err: errors.New("no")}
	tr := tracerTo(t, e, Config{Logger: slog.New(slog.NewTextHandler(&b, nil))}, sdktrace.AlwaysSample())
	for n := range 3 * batchSpans {
		tr.Run(recordOf(idOf(n)))
	}
	_ = tr.Close(t.Context())
	if n := strings.Count(b.String(), "did not take"); n != 1 {
		t.Errorf("said %d times: %s", n, b.String())
	}
}

// Of a run there are all spans or none, whoever makes them; and nothing in
// them was written by a tenant or a guest.
func TestSpans(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		share := rapid.Float64Range(0, 1).Draw(rt, "share")
		runs := rapid.SliceOfNDistinct(rapid.IntRange(0, 1<<30), 1, 20, func(n int) int { return n }).Draw(rt, "runs")
		a, b := &exporter{}, &exporter{} // two processes
		server, node := tracerTo(t, a, Config{}, sdktrace.TraceIDRatioBased(share)), tracerTo(t, b, Config{}, sdktrace.TraceIDRatioBased(share))
		for _, n := range runs {
			node.Stage(Span{Sandbox: idOf(n), Attempt: 1, Name: "vm", Below: Prepare, Begin: at, End: at, Err: fault.New(fault.Unavailable, "what a guest wrote")})
			node.Stage(Span{Sandbox: idOf(n), Attempt: 1, Name: Prepare, Begin: at, End: at, Err: fmt.Errorf("x: %w", context.Canceled)})
			server.Stage(Span{Sandbox: idOf(n), Name: "request", Begin: at, End: at, Caller: rapid.String().Draw(rt, "traceparent")})
			server.Run(recordOf(idOf(n)))
		}
		for _, tr := range []*Tracer{server, node} {
			if err := tr.Close(context.Background()); err != nil {
				rt.Fatal(err)
			}
		}
		traces := map[string]map[string]sdktrace.ReadOnlySpan{}
		for _, s := range append(a.spans, b.spans...) {
			id := s.SpanContext().TraceID().String()
			if traces[id] == nil {
				traces[id] = map[string]sdktrace.ReadOnlySpan{}
			}
			traces[id][s.Name()] = s
			if text := fmt.Sprint(s.Attributes(), s.Status(), s.Events()); strings.Contains(text, "wrote") {
				rt.Fatalf("a span holds %s", text)
			}
		}
		for _, spans := range traces {
			if len(spans) != 4 || spans["run"].Parent().IsValid() ||
				spans["request"].Parent().SpanID() != spans["run"].SpanContext().SpanID() ||
				spans["vm"].Parent().SpanID() != spans["prepare"].SpanContext().SpanID() ||
				spans["prepare"].Parent().SpanID() != spans["run"].SpanContext().SpanID() {
				rt.Fatalf("that is no tree: %v", spans)
			}
			if spans["vm"].Status().Description != "unavailable" || spans["prepare"].Status().Description != "canceled" {
				rt.Fatalf("%v, %v", spans["vm"].Status(), spans["prepare"].Status())
			}
		}
		if (share == 1 && len(traces) != len(runs)) || (share == 0 && len(traces) != 0) {
			rt.Fatalf("%d of %d at %v", len(traces), len(runs), share)
		}
	})
}

func TestCaller(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	if c := callerOf(good); c.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("read as %v", c)
	}
	for _, bad := range []string{"", "x", strings.ToUpper(good), good + "\n", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		if c := callerOf(bad); c.IsValid() {
			t.Errorf("%q was read as %v", bad, c)
		}
	}
}

func TestOpen(t *testing.T) {
	set := func(t *testing.T, pairs ...string) {
		for _, name := range []string{
			"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
			"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG",
		} {
			t.Setenv(name, "")
		}
		for i := 0; i < len(pairs); i += 2 {
			t.Setenv(pairs[i], pairs[i+1])
		}
	}
	const endpoint, url = "OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"
	for name, pairs := range map[string][]string{
		"nothing is said": nil, "disabled": {endpoint, url, "OTEL_SDK_DISABLED", "true"}, "none": {endpoint, url, "OTEL_TRACES_EXPORTER", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			set(t, pairs...)
			tr, err := Open(t.Context(), Config{})
			if tr != nil || err != nil {
				t.Errorf("%v, %v", tr, err)
			}
			tr.Run(recordOf(idOf(1)))
			tr.Stage(Span{Sandbox: idOf(1)})
			if err := tr.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	for name, pairs := range map[string][]string{
		"gRPC": {"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, "no such sampler": {"OTEL_TRACES_SAMPLER", "soup"},
		"no share": {"OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG", "NaN"},
	} {
		t.Run(name, func(t *testing.T) {
			set(t, append(pairs, endpoint, url)...)
			_, err := Open(t.Context(), Config{})
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != fault.InvalidArgument || f.Hint == "" || f.Field != pairs[len(pairs)-2] {
				t.Errorf("%#v", err)
			}
		})
	}
	for _, pairs := range [][]string{nil, {"OTEL_TRACES_SAMPLER", "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG", "0.5"}, {"OTEL_TRACES_SAMPLER", "always_off"}} {
		t.Run(fmt.Sprint("on ", pairs), func(t *testing.T) {
			set(t, append(pairs, endpoint, url)...)
			tr, err := Open(t.Context(), Config{})
			if tr == nil || err != nil {
				t.Fatal(err)
			}
			if err := tr.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// BenchmarkOff is what tracing costs where it is off.
func BenchmarkOff(b *testing.B) {
	var tr *Tracer
	id := idOf(1)
	for b.Loop() {
		tr.Stage(Span{Sandbox: id, Name: "vm", Below: Prepare, Begin: at, End: at})
	}
}
