package cli

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress shows long work on stderr: one line that changes on a terminal,
// plain lines elsewhere.
type progress struct {
	w     io.Writer
	width int // of the terminal; 0: there is none

	mu     sync.Mutex
	latest Step
	drawn  time.Time // when the terminal's line was
	open   bool      // the terminal's line waits for its end
	stale  bool      // it does not show the latest
}

func (a *app) progress() *progress {
	p := &progress{w: a.io.Err}
	if a.io.ErrTerminal {
		p.width = a.io.ErrWidth
		if p.width <= 0 {
			p.width = usualWidth
		}
	}
	return p
}

const (
	redrawEvery = 100 * time.Millisecond // at most
	usualWidth  = 80
	barWidth    = 24
	bar         = "########################"
)

func (p *progress) step(s Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := s.Name != p.latest.Name
	if p.width == 0 {
		if next {
			fmt.Fprintln(p.w, escape(s.Name))
		}
		p.latest = s
		return
	}
	if next {
		p.endLine()
	}
	p.latest, p.open, p.stale = s, true, true
	if next || time.Since(p.drawn) >= redrawEvery {
		p.draw()
	}
}

func (p *progress) draw() {
	fmt.Fprintf(p.w, "\r\x1b[K%s", line(p.latest, p.width))
	p.drawn, p.stale = time.Now(), false
}

// line is s in less than width columns, so that it never wraps.
func line(s Step, width int) string {
	behind := ""
	switch {
	case s.Total > 0:
		part := min(max(float64(s.Done)/float64(s.Total), 0), 1)
		behind = fmt.Sprintf(" [%-*s] %3.0f%%", barWidth, bar[:int(part*barWidth)], 100*part)
	case s.Done > 0:
		behind = fmt.Sprintf(" %.1f MiB", float64(s.Done)/(1<<20))
	}
	return shorten(escape(s.Name), max(width-1-len(behind), 8)) + behind
}

func (p *progress) endLine() {
	if p.stale {
		p.draw()
	}
	if p.open {
		fmt.Fprintln(p.w)
		p.open = false
	}
}

// end closes an open line.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLine()
}
