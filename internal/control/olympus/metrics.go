package olympus

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the server's own. No label holds a tenant or a sandbox.
type metrics struct {
	requests   *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	streams    prometheus.Gauge
	admissions *prometheus.CounterVec
	refusals   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tartarus_api_requests_total", Help: "Requests, by method and error code (ok without one).",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tartarus_api_request_seconds", Help: "How long requests took; streams and waits for as long as they were open.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"method"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tartarus_api_streams", Help: "Open streams and waits.",
		}),
		admissions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tartarus_admissions_total", Help: "Requests to run, by outcome: admitted, repeated, or the error code.",
		}, []string{"outcome"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tartarus_refusals_total", Help: "Reasons of refusals, by judge and the policy's name for the rule.",
		}, []string{"judge", "rule"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.streams, m.admissions, m.refusals} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}
