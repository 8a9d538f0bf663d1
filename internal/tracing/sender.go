package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/tartarus-vm/tartarus/internal/metrics"
)

const (
	waitingSpans = 4096 // at most; more are lost
	batchSpans   = 512  // in one message
	batchEvery   = time.Second
)

// sender sends spans, in batches, from one goroutine. It is used in place of
// the SDK's own because that tells errors to a logger of the whole process, and
// is not waited for when its end is cut short.
type sender struct {
	to    sdktrace.SpanExporter
	log   *slog.Logger
	spans *metrics.Counter
	took  *metrics.Histogram

	queue chan sdktrace.ReadOnlySpan
	stop  chan struct{} // closed by close
	done  chan struct{} // closed when run has returned
	once  sync.Once
	err   error // of close

	ctx    context.Context // of sending; canceled when there is no patience left
	cancel context.CancelFunc

	failing bool // of run alone: it was told
}

func newSender(to sdktrace.SpanExporter, cfg Config) (*sender, error) {
	spans, err := metrics.NewCounter(cfg.Metrics, metrics.TraceSpans)
	if err != nil {
		return nil, err
	}
	took, err := metrics.NewHistogram(cfg.Metrics, metrics.TraceExportSeconds)
	if err != nil {
		return nil, err
	}
	s := &sender{
		to: to, log: cfg.Logger, spans: spans, took: took,
		queue: make(chan sdktrace.ReadOnlySpan, waitingSpans), stop: make(chan struct{}), done: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.run()
	return s, nil
}

// OnStart implements sdktrace.SpanProcessor.
func (s *sender) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd takes a span over. It never waits.
func (s *sender) OnEnd(span sdktrace.ReadOnlySpan) {
	s.spans.Inc(metrics.SpansEnded)
	select {
	case s.queue <- span:
	default:
		s.spans.Inc(metrics.SpansLost)
	}
}

// ForceFlush implements sdktrace.SpanProcessor; close is what flushes.
func (s *sender) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdktrace.SpanProcessor.
func (s *sender) Shutdown(ctx context.Context) error { return s.close(ctx) }

// close sends what waits until ctx ends, and waits for the goroutine.
func (s *sender) close(ctx context.Context) error {
	s.once.Do(func() {
		close(s.stop)
		select {
		case <-s.done:
		case <-ctx.Done():
			s.err = fmt.Errorf("sending the last spans: %w", ctx.Err())
		}
		s.cancel()
		<-s.done
		s.err = errors.Join(s.err, s.to.Shutdown(context.WithoutCancel(ctx)))
	})
	return s.err
}

// run sends until stop, and then what is left.
func (s *sender) run() {
	defer close(s.done)
	tick := time.NewTicker(batchEvery)
	defer tick.Stop()
	var batch []sdktrace.ReadOnlySpan
	for {
		select {
		case span := <-s.queue:
			if batch = append(batch, span); len(batch) < batchSpans {
				continue
			}
		case <-tick.C:
		case <-s.stop:
			for len(s.queue) > 0 {
				batch = append(batch, <-s.queue)
			}
			for len(batch) > batchSpans {
				s.send(batch[:batchSpans])
				batch = batch[batchSpans:]
			}
			s.send(batch)
			return
		}
		s.send(batch)
		batch = nil
	}
}

// send sends one batch; one that is not taken is lost.
func (s *sender) send(batch []sdktrace.ReadOnlySpan) {
	if len(batch) == 0 {
		return
	}
	began := time.Now()
	err := s.to.ExportSpans(s.ctx, batch)
	s.took.Since(began)
	if err == nil {
		s.spans.Add(float64(len(batch)), metrics.SpansSent)
		if s.failing {
			s.log.Info("the collector takes traces again")
		}
		s.failing = false
		return
	}
	s.spans.Add(float64(len(batch)), metrics.SpansLost)
	level := slog.LevelWarn
	if s.failing { // it was said
		level = slog.LevelDebug
	}
	s.failing = true
	s.log.Log(s.ctx, level, "the collector did not take traces", "spans", len(batch), "error", err)
}
