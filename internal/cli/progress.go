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
	w        io.Writer
	terminal bool

	mu      sync.Mutex
	current string
	last    time.Time
	open    bool // a line on the terminal waits for its end
}

func (a *app) progress() *progress {
	return &progress{w: a.io.Err, terminal: a.io.ErrTerminal}
}

// redrawEvery bounds how often a line changes.
const redrawEvery = 100 * time.Millisecond

func (p *progress) step(s Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.Skipped {
		return
	}
	if !p.terminal {
		p.plain(s)
		return
	}
	if s.Name == p.current && !s.Finished && time.Since(p.last) < redrawEvery {
		return
	}
	if s.Name != p.current {
		p.endLine()
	}
	p.current, p.last, p.open = s.Name, time.Now(), true
	fmt.Fprintf(p.w, "\r\x1b[K%s", line(s))
	if s.Finished {
		p.endLine()
		p.current = ""
	}
}

func (p *progress) plain(s Step) {
	if s.Name != p.current {
		fmt.Fprintf(p.w, "%s\n", escape(s.Name))
		p.current = s.Name
	}
	if s.Finished {
		fmt.Fprintf(p.w, "%s: done\n", escape(s.Name))
		p.current = ""
	}
}

func line(s Step) string {
	switch {
	case s.Finished:
		return escape(s.Name) + ": done"
	case s.Total > 0:
		const width = 24
		n := int(min(s.Done*width/s.Total, width))
		return fmt.Sprintf("%s [%-*s] %3d%%", escape(s.Name), width, bar[:n], min(s.Done*100/s.Total, 100))
	case s.Done > 0:
		return fmt.Sprintf("%s %.1f MiB", escape(s.Name), float64(s.Done)/(1<<20))
	}
	return escape(s.Name)
}

const bar = "########################"

func (p *progress) endLine() {
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
