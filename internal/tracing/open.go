package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Config is what a Tracer is made of. Where to send, and how, is said by the
// standard variables of the environment (OTEL_EXPORTER_OTLP_ENDPOINT and so
// on), which the exporter reads.
type Config struct {
	Version string                // of this program; "" is not told
	Metrics prometheus.Registerer // nil: none
	Logger  *slog.Logger          // nil: none
}

// on reports whether the environment asks for traces.
func on() bool {
	if v, err := strconv.ParseBool(os.Getenv("OTEL_SDK_DISABLED")); err == nil && v {
		return false
	}
	if os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// Open makes the tracer that the environment asks for, nil if it asks for
// none. The collector need not be there. The caller closes it.
func Open(ctx context.Context, cfg Config) (*Tracer, error) {
	if !on() {
		return nil, nil
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if v := os.Getenv(name); v != "" && v != "http/protobuf" {
			return nil, fault.Invalid(name, "leave it away, and name the collector's HTTP port, 4318 by default", "traces are sent as http/protobuf, not as %q", v)
		}
	}
	sampler, err := samplerOf(os.Getenv("OTEL_TRACES_SAMPLER"), os.Getenv("OTEL_TRACES_SAMPLER_ARG"))
	if err != nil {
		return nil, err
	}
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "tartarus")),
		resource.WithAttributes(attribute.String("service.version", cfg.Version)), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("reading OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	to, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("making the exporter of traces: %w", err)
	}
	s, err := newSender(to, cfg)
	if err != nil {
		return nil, errors.Join(err, to.Shutdown(ctx))
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s), sdktrace.WithIDGenerator(chosen{}),
		sdktrace.WithSampler(wholeRuns{sampler}), sdktrace.WithResource(res))
	return &Tracer{spans: provider.Tracer("tartarus"), sender: s}, nil
}

// samplerOf is the sampler that the standard variables name. Those that go by
// a parent are taken for what they do without one: no run has a parent.
func samplerOf(name, arg string) (sdktrace.Sampler, error) {
	switch strings.TrimPrefix(name, "parentbased_") {
	case "", "always_on":
		return sdktrace.AlwaysSample(), nil
	case "always_off":
		return sdktrace.NeverSample(), nil
	case "traceidratio":
		if arg == "" {
			return sdktrace.AlwaysSample(), nil
		}
		share, err := strconv.ParseFloat(arg, 64)
		if err != nil || !(share >= 0 && share <= 1) {
			return nil, fault.Invalid("OTEL_TRACES_SAMPLER_ARG", "give a number from 0 to 1", "%q is no share of the runs", arg)
		}
		return sdktrace.TraceIDRatioBased(share), nil
	}
	return nil, fault.Invalid("OTEL_TRACES_SAMPLER", "use always_on, always_off or traceidratio", "there is no sampler %q", name)
}

// Close sends what waits, until ctx ends, and ends the tracer. Spans that come
// later are lost.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.sender.close(ctx)
}
