package mnemosyne_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/control/mnemosyne"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/metrics"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is one in memory that can be made to fail.
type sink struct {
	mu     sync.Mutex
	lines  []string
	broken error
	tries  int
	hang   bool // until the end of ctx
}

func (s *sink) Name() string { return "memory" }
func (s *sink) Kind() string { return metrics.SinkFile }

func (s *sink) Write(ctx context.Context, line []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries++
	if s.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if s.broken == nil {
		s.lines = append(s.lines, string(line))
	}
	return s.broken
}

func (s *sink) set(broken error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func (s *sink) tried() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries
}

// world is a keeper that runs, inside a bubble with a clock of its own.
type world struct {
	t     *testing.T
	book  *memledger.Ledger
	ring  *seal.Ring
	sinks []*sink
	reg   *prometheus.Registry
	stop  func()
}

func run(t *testing.T, sinks ...*sink) *world {
	t.Helper()
	key, ring := keyAndRing(t)
	w := &world{t: t, book: memledger.New(), ring: ring, sinks: sinks, reg: prometheus.NewRegistry()}
	cfg := mnemosyne.Config{Book: w.book, Key: key, Writer: "up", Metrics: w.reg}
	for _, s := range sinks {
		cfg.Sinks = append(cfg.Sinks, s)
	}
	k, err := mnemosyne.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *world) add(n int) {
	w.t.Helper()
	for range n {
		if err := w.book.Audit(w.t.Context(), entry("run")); err != nil {
			w.t.Fatal(err)
		}
	}
}

// counts are those of the checkpoints that a sink has.
func (w *world) counts(s *sink) []int64 {
	w.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []int64
	for _, l := range s.lines {
		c, err := w.ring.OpenCheckpoint([]byte(l))
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, c.Count)
	}
	return out
}

func (w *world) wants(s *sink, when string, want ...int64) {
	w.t.Helper()
	synctest.Wait()
	if got := w.counts(s); !slices.Equal(got, want) {
		w.t.Errorf("%s there are checkpoints of %d entries, want %d", when, got, want)
	}
}

// metric is the count of checkpoints with an outcome.
func (w *world) metric(outcome string) float64 {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == outcome {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

// A checkpoint comes after enough entries, or after enough time with one, and
// at the end; never without anything new.
func TestWhenCheckpointsAreMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		w := run(t, s)
		w.wants(s, "of an empty log")
		w.add(1)
		time.Sleep(time.Second)
		w.wants(s, "after the first entry", 1)
		w.add(99)
		time.Sleep(30 * time.Second)
		w.wants(s, "after fewer than a hundred, within a minute", 1)
		w.add(1)
		time.Sleep(time.Second)
		w.wants(s, "after a hundred", 1, 101)
		w.add(1)
		time.Sleep(time.Minute)
		w.wants(s, "after a minute", 1, 101, 102)
		time.Sleep(time.Hour)
		w.wants(s, "after an hour without entries", 1, 101, 102)
		w.add(1)
		time.Sleep(time.Second)
		w.wants(s, "with one that came late", 1, 101, 102, 103)
		w.add(1)
		synctest.Wait()
		w.stop()
		w.wants(s, "at the end", 1, 101, 102, 103, 104)
	})
}

// Whoever starts says where the log stands, so that what happened to it
// meanwhile shows.
func TestACheckpointAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, _ := keyAndRing(t)
		book, s := memledger.New(), &sink{}
		if err := book.Audit(t.Context(), entry("run")); err != nil {
			t.Fatal(err)
		}
		k, err := mnemosyne.New(mnemosyne.Config{Book: book, Key: key, Writer: "up", Sinks: []mnemosyne.Sink{s}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		synctest.Wait()
		if s.tried() != 1 {
			t.Error("none was made")
		}
		cancel()
		if err := <-done; err != nil || s.tried() != 1 {
			t.Errorf("%v; %d were made", err, s.tried())
		}
	})
}

// A sink that fails is tried again, gets what waited, in order, and holds up
// no other.
func TestASinkThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := &sink{broken: errors.New("no space")}, &sink{}
		w := run(t, bad, good)
		for range 3 {
			w.add(100)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		made := w.counts(good)
		if n := len(made); n < 3 || made[n-1] <= 200 {
			t.Errorf("the sink beside has %d", made)
		}
		if w.metric("failed") == 0 {
			t.Error("no failure was counted")
		}
		bad.set(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		made = w.counts(good)
		w.wants(bad, "once it works", made...)
		if kept := w.metric("kept"); kept != float64(2*len(made)) {
			t.Errorf("%v were counted as kept, of %d twice", kept, len(made))
		}
	})
}

// What waits is bounded; the newest stays, and covers what was lost.
func TestASinkThatFailsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := &sink{broken: errors.New("no space")}, &sink{}
		w := run(t, bad, good)
		for range 200 {
			w.add(100)
			time.Sleep(time.Second)
		}
		bad.set(nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		got, made := w.counts(bad), w.counts(good)
		if n := len(got); n > 70 || n < 2 || got[n-1] != 20000 || !slices.IsSorted(got) {
			t.Errorf("it has %d", got)
		}
		if lost := w.metric("lost"); len(made) < 200 || lost != float64(len(made)-len(got)) {
			t.Errorf("%v were counted as lost, of %d", lost, len(made))
		}
	})
}

// The end waits for a sink, but not for ever.
func TestTheEndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, s := range map[string]*sink{"fails": {broken: errors.New("no space")}, "hangs": {hang: true}} {
			w := run(t, s)
			w.add(5)
			began := time.Now()
			w.stop()
			if took := time.Since(began); took > 6*time.Second || s.tried() == 0 {
				t.Errorf("a sink that %s: the end took %v, after %d tries", name, took, s.tried())
			}
		}
	})
}

// broken is a book that cannot answer for a while.
type broken struct {
	*memledger.Ledger
	mu  sync.Mutex
	err error
}

func (b *broken) AuditHead(ctx context.Context) (ledger.AuditHead, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return ledger.AuditHead{}, b.err
	}
	return b.Ledger.AuditHead(ctx)
}

func TestALedgerThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, _ := keyAndRing(t)
		book, s := &broken{Ledger: memledger.New(), err: fault.New(fault.Unavailable, "no")}, &sink{}
		k, err := mnemosyne.New(mnemosyne.Config{Book: book, Key: key, Writer: "up", Sinks: []mnemosyne.Sink{s}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		if err := book.Audit(t.Context(), entry("run")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		book.mu.Lock()
		book.err = nil
		book.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.tried() != 1 {
			t.Errorf("%d checkpoints were made", s.tried())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestConfig(t *testing.T) {
	key, _ := keyAndRing(t)
	for name, cfg := range map[string]mnemosyne.Config{
		"no book": {Key: key, Writer: "up"}, "no key": {Book: memledger.New(), Writer: "up"}, "no writer": {Book: memledger.New(), Key: key},
		"less than nothing": {Book: memledger.New(), Key: key, Writer: "up", Every: -1},
	} {
		if _, err := mnemosyne.New(cfg); err == nil || !strings.HasPrefix(err.Error(), "mnemosyne") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
