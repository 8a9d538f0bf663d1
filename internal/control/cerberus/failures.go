package cerberus

import (
	"cmp"
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

func (f *failures) add(source string, now time.Time) {
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
	sources[source]++
}

// take removes and returns the counts of the minutes that have ended by now.
func (f *failures) take(now time.Time) map[time.Time]map[string]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[time.Time]map[string]int64{}
	for minute, sources := range f.minutes {
		if !now.Before(minute.Add(time.Minute)) {
			out[minute] = sources
			delete(f.minutes, minute)
		}
	}
	return out
}

// Due returns, once, an audit entry for each source and minute that ended by
// now in which bad tokens came, oldest first. The caller writes them. At its
// end it asks once more with a time a minute ahead.
func (g *Guard) Due(now time.Time) []sandbox.AuditEntry {
	var out []sandbox.AuditEntry
	for minute, sources := range g.failed.take(now) {
		for source, count := range sources {
			out = append(out, sandbox.AuditEntry{
				Time: minute, Source: source, Action: "authenticate", Decision: sandbox.Deny,
				Reasons: []sandbox.Reason{{
					Judge: "cerberus", Rule: "token",
					Message: fmt.Sprintf("%d calls with a bad token within one minute", count),
				}},
			})
		}
	}
	slices.SortFunc(out, func(a, b sandbox.AuditEntry) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Source, b.Source))
	})
	return out
}
