package metrics

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// rowOf is the row of a name. A name without one is a mistake of its caller.
func rowOf(n Name, k Kind) (Row, error) {
	for _, r := range Table() {
		if r.Name == n {
			if r.Kind != k {
				return r, fmt.Errorf("metrics: %s is a %s, not a %s", n, r.Kind, k)
			}
			return r, nil
		}
	}
	return Row{}, fmt.Errorf("metrics: %s is not in the table", n)
}

// guard holds values of labels to a row. It may be used by many at once.
type guard struct {
	labels []Label

	mu   sync.Mutex
	seen []map[string]bool // by label: values of those that are not known here
}

func newGuard(r Row) *guard {
	g := &guard{labels: r.Labels, seen: make([]map[string]bool, len(r.Labels))}
	for i := range g.seen {
		g.seen[i] = map[string]bool{}
	}
	return g
}

func (g *guard) names() (out []string) {
	for _, l := range g.labels {
		out = append(out, l.Name)
	}
	return out
}

// hold is values as they may be told: as many as there are labels, each bounded.
func (g *guard) hold(values []string) []string {
	out := make([]string, len(g.labels))
	for i, l := range g.labels {
		switch {
		case i >= len(values):
			out[i] = Other
		case l.Values != nil && slices.Contains(l.Values, values[i]), l.Values == nil && g.open(i, values[i]):
			out[i] = values[i]
		default:
			out[i] = Other
		}
	}
	return out
}

// longest bounds the value of a label.
const longest = 64

// open says whether a value of a label whose values are not known here may be
// told: the first most of a decent form may.
func (g *guard) open(label int, value string) bool {
	if value == "" || len(value) > longest || sandbox.ID(value).Valid() {
		return false
	}
	for _, r := range value {
		if r <= ' ' || r > '~' {
			return false
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	seen := g.seen[label]
	if !seen[value] && len(seen) < most {
		seen[value] = true
	}
	return seen[value]
}

// closed is every combination of values, or nil if they are not all known.
func (g *guard) closed() [][]string {
	out := [][]string{nil}
	for _, l := range g.labels {
		var longer [][]string
		for _, begin := range out {
			for _, v := range l.Values {
				longer = append(longer, append(slices.Clone(begin), v))
			}
		}
		out = longer
	}
	return out
}

// Counter counts. A nil *Counter counts nothing.
type Counter struct {
	vec   *prometheus.CounterVec
	guard *guard
}

// fewSeries are so few that a counter has them all from the beginning.
const fewSeries = 16

// NewCounter registers the counter of a row; nil without a registerer. If the
// values of its labels are known and few, each series is there from the
// beginning, at 0.
func NewCounter(reg prometheus.Registerer, n Name) (*Counter, error) {
	row, err := rowOf(n, CounterKind)
	if err != nil || reg == nil {
		return nil, err
	}
	g := newGuard(row)
	c := &Counter{guard: g, vec: prometheus.NewCounterVec(prometheus.CounterOpts{Name: string(n), Help: row.Help}, g.names())}
	if all := g.closed(); len(all) <= fewSeries {
		for _, values := range all {
			c.Add(0, values...)
		}
	}
	return c, register(reg, n, c.vec)
}

// Inc adds one.
func (c *Counter) Inc(labels ...string) { c.Add(1, labels...) }

// Add adds v; below 0 it adds nothing.
func (c *Counter) Add(v float64, labels ...string) {
	if c != nil {
		c.vec.WithLabelValues(c.guard.hold(labels)...).Add(max(0, v))
	}
}

// Histogram counts how large values are. A nil *Histogram counts nothing.
type Histogram struct {
	vec   *prometheus.HistogramVec
	guard *guard
}

// NewHistogram is NewCounter for a histogram.
func NewHistogram(reg prometheus.Registerer, n Name) (*Histogram, error) {
	row, err := rowOf(n, HistogramKind)
	if err != nil || reg == nil {
		return nil, err
	}
	g := newGuard(row)
	h := &Histogram{guard: g, vec: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: string(n), Help: row.Help, Buckets: row.Buckets}, g.names())}
	if len(g.labels) <= 1 {
		for _, values := range g.closed() {
			h.vec.WithLabelValues(values...)
		}
	}
	return h, register(reg, n, h.vec)
}

// Observe counts one value.
func (h *Histogram) Observe(v float64, labels ...string) {
	if h != nil {
		h.vec.WithLabelValues(h.guard.hold(labels)...).Observe(v)
	}
}

// Since counts the seconds since then.
func (h *Histogram) Since(then time.Time, labels ...string) {
	h.Observe(time.Since(then).Seconds(), labels...)
}

// Gauge is a number that goes up and down. A nil *Gauge counts nothing.
type Gauge struct{ gauge prometheus.Gauge }

// NewGauge is NewCounter for a gauge without labels.
func NewGauge(reg prometheus.Registerer, n Name) (*Gauge, error) {
	row, err := rowOf(n, GaugeKind)
	if err != nil || reg == nil {
		return nil, err
	}
	g := &Gauge{prometheus.NewGauge(prometheus.GaugeOpts{Name: string(n), Help: row.Help})}
	return g, register(reg, n, g.gauge)
}

// Add adds v, which may be below 0.
func (g *Gauge) Add(v float64) {
	if g != nil {
		g.gauge.Add(v)
	}
}

// Reading is gauges that are read whenever they are asked for.
type Reading struct {
	Names []Name

	// Read tells their values with set; values with the same labels are added
	// up. It may be called by many at once, and ctx bounds it.
	Read func(ctx context.Context, set func(n Name, v float64, labels ...string)) error

	// Failed is told of an error of Read, after which none of them is there;
	// nil: nobody is.
	Failed func(error)
}

// readTimeout bounds a Read.
const readTimeout = 5 * time.Second

// Register registers a reading; without a registerer it does nothing.
func (r Reading) Register(reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	c := &reader{Reading: r, rows: map[Name]*readRow{}}
	for _, n := range r.Names {
		row, err := rowOf(n, GaugeKind)
		if err != nil {
			return err
		}
		g := newGuard(row)
		c.rows[n] = &readRow{guard: g, desc: prometheus.NewDesc(string(n), row.Help, g.names(), nil)}
	}
	return register(reg, r.Names[0], c)
}

// reader is a Reading as a collector.
type reader struct {
	Reading
	rows map[Name]*readRow
}

type readRow struct {
	guard *guard
	desc  *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (r *reader) Describe(out chan<- *prometheus.Desc) {
	for _, row := range r.rows {
		out <- row.desc
	}
}

// Collect implements prometheus.Collector.
func (r *reader) Collect(out chan<- prometheus.Metric) {
	type series struct {
		row    *readRow
		labels []string
		sum    float64
	}
	all := map[string]*series{}
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	err := r.Read(ctx, func(n Name, v float64, labels ...string) {
		row := r.rows[n]
		if row == nil {
			return // it is not this reading's to tell
		}
		labels = row.guard.hold(labels)
		key := fmt.Sprintf("%s%q", n, labels)
		if all[key] == nil {
			all[key] = &series{row: row, labels: labels}
		}
		all[key].sum += v
	})
	if err != nil {
		if r.Failed != nil {
			r.Failed(err)
		}
		return
	}
	for _, s := range all {
		out <- prometheus.MustNewConstMetric(s.row.desc, prometheus.GaugeValue, s.sum, s.labels...)
	}
}

func register(reg prometheus.Registerer, n Name, c prometheus.Collector) error {
	if err := reg.Register(c); err != nil {
		return fmt.Errorf("registering %s: %w", n, err)
	}
	return nil
}
