package olympus

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/metrics"
)

// meters are the server's own metrics.
type meters struct {
	requests   *metrics.Counter
	seconds    *metrics.Histogram
	streams    *metrics.Gauge
	admissions *metrics.Counter
	refusals   *metrics.Counter
}

func newMeters(reg prometheus.Registerer) (*meters, error) {
	var m meters
	var errs [5]error
	m.requests, errs[0] = metrics.NewCounter(reg, metrics.APIRequests)
	m.seconds, errs[1] = metrics.NewHistogram(reg, metrics.APIRequestSeconds)
	m.streams, errs[2] = metrics.NewGauge(reg, metrics.APIStreams)
	m.admissions, errs[3] = metrics.NewCounter(reg, metrics.Admissions)
	m.refusals, errs[4] = metrics.NewCounter(reg, metrics.Refusals)
	return &m, errors.Join(errs[:]...)
}

// answered counts a request that is over.
func (m *meters) answered(method, code string, began time.Time) {
	m.requests.Inc(method, code)
	m.seconds.Since(began, method)
}

// admitted counts what became of a request to run.
func (m *meters) admitted(created bool, err error) {
	if err == nil {
		outcome := metrics.OutcomeAdmitted
		if !created {
			outcome = metrics.OutcomeRepeated
		}
		m.admissions.Inc(outcome)
		return
	}
	kind := shown(err).Kind.String()
	m.admissions.Inc(kind)
	var r refusal
	if !errors.As(err, &r) {
		m.refusals.Inc(kind, metrics.RuleNone)
		return
	}
	for _, reason := range r.reasons {
		m.refusals.Inc(kind, reason.Rule)
	}
}
