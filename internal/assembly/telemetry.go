package assembly

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tartarus-vm/tartarus/internal/control/census"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// lastSpans bounds how long the end of a process waits for its last spans.
const lastSpans = 3 * time.Second

// openTelemetry makes what the parts count and trace with.
func (e *embedded) openTelemetry(ctx context.Context) (err error) {
	e.metrics = prometheus.NewRegistry()
	if err := errors.Join(e.metrics.Register(collectors.NewGoCollector()),
		e.metrics.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))); err != nil {
		return err
	}
	version := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	if e.tracer, err = tracing.Open(ctx, tracing.Config{Version: version, Metrics: e.metrics, Logger: e.log}); err != nil {
		return err
	}
	e.later(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSpans)
		defer cancel()
		if err := e.tracer.Close(ctx); err != nil {
			e.log.Warn("the last traces were not sent", "error", err) // no failure of ours
		}
		return nil
	})
	e.census, err = census.New(census.Config{Metrics: e.metrics, Tracer: e.tracer, Logger: e.log})
	return err
}
