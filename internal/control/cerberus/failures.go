package cerberus

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	// maxSources bounds the sources that are counted apart in one minute.
	maxSources  = 1024
	manySources = "other sources"
	// maxMinutes bounds the minutes that are kept when nobody collects them;
	// later ones are counted with the last.
	maxMinutes = 60
)

// failures counts bad tokens by minute and source.
type failures struct {
	mu      sync.Mutex
	minutes map[time.Time]map[string]int64 // guarded by mu
	last    time.Time                      // guarded by mu: the newest minute there is
}

// count is the failures of one source in one minute.
type count struct {
	minute time.Time
	source string
	calls  int64
}

func (c count) entry() sandbox.AuditEntry {
	return sandbox.AuditEntry{
		Time: c.minute, Source: c.source, Action: "authenticate", Decision: sandbox.Deny,
		Reasons: []sandbox.Reason{{
			Judge: "cerberus", Rule: "token",
			Message: fmt.Sprintf("%d calls with a bad token within one minute", c.calls),
		}},
	}
}

func (f *failures) add(source string, now time.Time, calls int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.minutes == nil {
		f.minutes = map[time.Time]map[string]int64{}
	}
	minute := now.UTC().Truncate(time.Minute)
	sources, ok := f.minutes[minute]
	if !ok && len(f.minutes) >= maxMinutes {
		minute = f.last
		sources = f.minutes[minute]
	} else if !ok {
		sources = map[string]int64{}
		f.minutes[minute] = sources
		f.last = minute
	}
	if _, ok := sources[source]; !ok && len(sources) >= maxSources {
		source = manySources
	}
	sources[source] += calls
}

// due removes and returns the counts of the minutes that have ended by now,
// oldest first.
func (f *failures) due(now time.Time) []count {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []count
	for minute, sources := range f.minutes {
		if now.Before(minute.Add(time.Minute)) {
			continue
		}
		for source, calls := range sources {
			out = append(out, count{minute, source, calls})
		}
		delete(f.minutes, minute)
	}
	slices.SortFunc(out, func(a, b count) int { return cmp.Or(a.minute.Compare(b.minute), cmp.Compare(a.source, b.source)) })
	return out
}

// Due returns, once, an audit entry for each source and minute that ended by
// now in which bad tokens came, oldest first. The caller writes them; WriteDue
// is the same for one that can fail.
func (g *Guard) Due(now time.Time) []sandbox.AuditEntry {
	var out []sandbox.AuditEntry
	for _, c := range g.failed.due(now) {
		out = append(out, c.entry())
	}
	return out
}

// WriteDue writes what Due would return. What cannot be written is counted
// again, and due next time. At its end a server calls it once more with a time
// a minute ahead.
func (g *Guard) WriteDue(ctx context.Context, now time.Time, write func(context.Context, sandbox.AuditEntry) error) error {
	due := g.failed.due(now)
	for i, c := range due {
		if err := write(ctx, c.entry()); err != nil {
			for _, rest := range due[i:] {
				g.failed.add(rest.source, rest.minute, rest.calls)
			}
			return fmt.Errorf("writing the audit of bad tokens: %w", err)
		}
	}
	return nil
}
