package themis

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/metrics"
)

// Book writes down which policies held.
type Book interface {
	// Activate writes down, durably, that p holds from now on, and what that
	// changes. It is nothing new when p was the last one. origin is the file
	// that p was read from; "" for the built-in policy.
	Activate(ctx context.Context, p *Policy, origin string) error
}

// SourceConfig is what a Source is made of.
type SourceConfig struct {
	Path   string        // a file or a folder, as for Load; "" for the built-in policy
	Book   Book          // nil: nothing is written down
	Poll   time.Duration // how often the file is looked at beside what the kernel tells; 15 s if 0
	Settle time.Duration // how long the folder must be quiet before the file is read; 250 ms if 0
	Logger *slog.Logger  // nil: none

	Metrics prometheus.Registerer // nil: none
}

const (
	defaultPoll   = 15 * time.Second
	defaultSettle = 250 * time.Millisecond
	// A folder that is never quiet is read all the same, after this many times Settle.
	mostSettles = 20
)

// Source hands out the policy that holds now, and takes over a new version
// when the file has one. Who judges a request asks once and keeps to that
// value.
//
// A version holds only after the book has it, so that every version that a
// verdict names can be read later. One that is broken, or that the book cannot
// take now, changes nothing: the one that held goes on to hold, and Status says
// why.
type Source struct {
	cfg    SourceConfig
	active atomic.Pointer[Policy]
	status atomic.Pointer[Status]

	reload  sync.Mutex // one Reload at a time; guards what follows
	refused [sha256.Size]byte
	why     error // of the text refused; nil if none is
}

// Status says how the file and the policy that holds are to each other.
type Status struct {
	Origin    string    // the file; "" for the built-in policy
	Problem   string    // why what the file has now was not taken; "" if it holds
	Hint      string    // what to do about it
	ProblemAt time.Time // since when
}

// OpenSource reads the policy, which must be a good one, and has the book
// write it down. Without Run it changes only by Reload.
func OpenSource(ctx context.Context, cfg SourceConfig) (*Source, error) {
	if cfg.Poll == 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Settle == 0 {
		cfg.Settle = defaultSettle
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Path != "" {
		abs, err := filepath.Abs(cfg.Path)
		if err != nil {
			return nil, err
		}
		cfg.Path = abs
	}
	s := &Source{cfg: cfg}
	s.status.Store(&Status{})
	if _, err := s.Reload(ctx); err != nil {
		return nil, err
	}
	return s, metrics.Reading{Names: []metrics.Name{metrics.PolicyRefused}, Read: s.tell}.Register(cfg.Metrics)
}

// tell reads the metrics.
func (s *Source) tell(_ context.Context, set func(n metrics.Name, v float64, labels ...string)) error {
	refused := 0.0
	if s.Status().Problem != "" {
		refused = 1
	}
	set(metrics.PolicyRefused, refused)
	return nil
}

// Active is the policy that holds now.
func (s *Source) Active() *Policy { return s.active.Load() }

// Status says whether what the file has now holds.
func (s *Source) Status() Status { return *s.status.Load() }

// Reload reads the policy again and tells whether another one holds now. After
// an error the one that held goes on to hold.
func (s *Source) Reload(ctx context.Context) (changed bool, err error) {
	s.reload.Lock()
	defer s.reload.Unlock()
	text, file := []byte(defaultText), ""
	if s.cfg.Path != "" {
		text, file, err = read(s.cfg.Path)
	}
	if err == nil {
		changed, err = s.take(ctx, text, file)
	}
	s.note(ctx, file, err)
	return changed, err
}

// take lets a text hold, if it can.
func (s *Source) take(ctx context.Context, text []byte, file string) (changed bool, err error) {
	if old := s.active.Load(); old != nil && old.text == string(text) {
		s.why = nil
		return false, nil
	}
	sum := sha256.Sum256(text)
	if s.why != nil && s.refused == sum {
		return false, s.why
	}
	p, err := Parse(text)
	if err != nil {
		if file != "" {
			err = &inFile{file, err}
		}
		s.refused, s.why = sum, err
		return false, err
	}
	s.why = nil
	if s.cfg.Book != nil {
		if err := s.cfg.Book.Activate(ctx, p, file); err != nil {
			return false, err
		}
	}
	s.active.Store(p)
	s.cfg.Logger.InfoContext(ctx, "policy holds", "version", p.version, "file", file)
	return true, nil
}

// inFile is an error in a policy file.
type inFile struct {
	file string
	err  error
}

func (e *inFile) Error() string { return e.file + ": " + e.err.Error() }
func (e *inFile) Unwrap() error { return e.err }

// note keeps and logs what became of a reload: each problem once.
func (s *Source) note(ctx context.Context, file string, err error) {
	old := s.status.Load()
	now := Status{Origin: file}
	if err != nil {
		now = Status{Origin: old.Origin, Problem: "it cannot be taken over now", ProblemAt: time.Now()}
		var f *fault.Error
		if errors.As(err, &f) {
			now.Problem, now.Hint = f.Message, f.Hint
		}
		if old.Problem == now.Problem {
			now.ProblemAt = old.ProblemAt
		}
	}
	s.status.Store(&now)
	switch {
	case s.active.Load() == nil || errors.Is(err, errMoving) || ctx.Err() != nil: // the caller says it, or it is not over
	case err != nil && old.Problem != now.Problem:
		s.cfg.Logger.ErrorContext(ctx, "a new policy is refused; the one before goes on to hold",
			"version", s.Active().Version(), "file", file, "error", err)
	case err == nil && old.Problem != "":
		s.cfg.Logger.InfoContext(ctx, "the policy file is good again", "version", s.Active().Version(), "file", file)
	}
}
