package soak_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// killNowAndThen kills the server again and again, in the middle of whatever
// it does.
func (s *soak) killNowAndThen(ctx context.Context, _ *sync.RWMutex) {
	for pause(ctx, 2*time.Second+time.Duration(rand.IntN(3000))*time.Millisecond) == nil {
		s.kill()
	}
}

// What may be more at the end than after warming up, with no load at either
// time. Go gives memory back late and in large pieces, hence the slack; a
// goroutine, a connection or a buffer that is forgotten for each sandbox, or
// each hundredth, passes it.
const (
	moreMemory     = 1.25
	slackMemory    = 16 << 20
	moreGoroutines = 8

	looksBetween = 10
)

// quiet is what the server holds when nothing is asked of it.
type quiet struct {
	rss        int64
	goroutines float64
}

// watchMemory compares what the server holds after a quarter of the time with
// what it holds at the end.
func (s *soak) watchMemory(ctx context.Context, gate *sync.RWMutex) {
	began := time.Now()
	deadline, _ := ctx.Deadline()
	if pause(ctx, time.Until(deadline)/4) != nil {
		s.t.Error("the time is too short to warm up")
		return
	}
	before := s.sandboxes()
	warm := s.quietly(gate, 0)
	series := []int64{warm.rss >> 20}
	for left := looksBetween; left > 0 && pause(ctx, time.Until(deadline)/time.Duration(left+1)) == nil; left-- {
		series = append(series, s.rss()>>20) // under load
	}
	<-ctx.Done()
	end := s.quietly(gate, warm.goroutines+moreGoroutines)
	s.notes = append(s.notes, fmt.Sprintf("one process for %v, %d sandboxes after warming up: memory %d MB then, %d MB at the end (bound: × %v + %d MB); goroutines %v then, %v at the end (bound: + %d); MB in between, under load: %v",
		time.Since(began).Round(time.Second), s.sandboxes()-before, warm.rss>>20, end.rss>>20, moreMemory, slackMemory>>20, warm.goroutines, end.goroutines, moreGoroutines, series[1:]))
	if most := int64(moreMemory*float64(warm.rss)) + slackMemory; end.rss > most {
		s.t.Errorf("memory grew from %d MB to %d MB", warm.rss>>20, end.rss>>20)
	}
	if end.goroutines > warm.goroutines+moreGoroutines {
		s.t.Errorf("goroutines grew from %v to %v", warm.goroutines, end.goroutines)
	}
}

func (s *soak) sandboxes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.admitted)
}

// settling bounds how long what was asked before takes to be let go of.
const settling = 20 * time.Second

// quietly holds the load back, and looks until there are no more goroutines
// than enough, or for a while: the fewest count.
func (s *soak) quietly(gate *sync.RWMutex, enough float64) (q quiet) {
	gate.Lock()
	defer gate.Unlock()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	wait := settling
	if enough == 0 {
		wait = 2 * time.Second
	}
	for end := time.Now().Add(wait); ; <-look.C {
		m, err := s.metrics("go_goroutines")
		if err != nil {
			s.t.Fatal(err)
		}
		if n := m["go_goroutines"]; q.goroutines == 0 || n < q.goroutines {
			q.goroutines = n
		}
		if q.rss = s.rss(); q.goroutines <= enough || time.Now().After(end) {
			return q
		}
	}
}
