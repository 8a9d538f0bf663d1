package hostile_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// steady counts five times a second and tells the time that it saw pass, until
// it is told to end.
const steady = `i=0; until read -t 0.2 end; do i=$((i+1)); read up idle </proc/uptime; echo $i $up; done; exit 21`

// tick is a line of the neighbour: when it was said by its own clock, and when
// it was heard.
type tick struct {
	said  time.Duration
	heard time.Time
}

// neighbour is a sandbox beside the hostile ones.
type neighbour struct {
	s      *realvm.Server
	id     string
	reader sync.WaitGroup
	close  func()

	mu    sync.Mutex
	moved *sync.Cond
	ticks []tick
	wrong string // what it said that it should not have
	over  bool
}

// moveIn starts the neighbour and listens to it.
func moveIn(t *testing.T, s *realvm.Server) *neighbour {
	t.Helper()
	n := &neighbour{s: s.For(t)}
	n.moved = sync.NewCond(&n.mu)
	n.id = n.s.Run(shell(steady).with("stdin_open", true).with("max_duration", "1800s").with("name", "neighbour").body(t)).ID
	resp := n.s.Open(t.Context(), "GET", "/sandbox/"+n.id+"/logs?follow=true", "") //nolint:bodyclose // by the cleanup
	n.close = func() { resp.Body.Close() }
	n.reader.Go(func() { n.listen(resp.Body) })
	t.Cleanup(func() { n.close(); n.reader.Wait() })
	return n
}

func (n *neighbour) listen(r io.Reader) {
	rest := ""
	for d := json.NewDecoder(r); ; {
		var e entry
		err := d.Decode(&e)
		n.mu.Lock()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				n.wrong = err.Error()
			}
			n.over = true
		}
		rest += e.Text
		for {
			line, after, whole := strings.Cut(rest, "\n")
			if !whole {
				break
			}
			rest = after
			n.line(line)
		}
		n.moved.Broadcast()
		over := n.over
		n.mu.Unlock()
		if over {
			return
		}
	}
}

// line takes a line; n.mu is held.
func (n *neighbour) line(line string) {
	var i int
	var up float64
	if _, err := fmt.Sscanf(line, "%d %f", &i, &up); err != nil || i != len(n.ticks)+1 {
		n.wrong = fmt.Sprintf("line %d is %q", len(n.ticks)+1, line)
		return
	}
	n.ticks = append(n.ticks, tick{time.Duration(up * float64(time.Second)), time.Now()})
}

// await waits for that many more ticks, and returns them.
func (n *neighbour) await(t *testing.T, more int) []tick {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	from := len(n.ticks)
	for len(n.ticks) < from+more && !n.over {
		n.moved.Wait()
	}
	if n.over {
		t.Fatalf("the neighbour ended after %d ticks: %s", len(n.ticks), n.wrong)
	}
	return n.ticks[from:]
}

// since are the ticks from the i-th on.
func (n *neighbour) since(i int) []tick {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ticks[i:]
}

// pace is how a neighbour went.
type pace struct {
	stall  time.Duration // the longest time between two ticks as heard by the host
	paused time.Duration // and by its own clock
	each   time.Duration // the mean
}

func paceOf(ticks []tick) pace {
	var p pace
	for i := 1; i < len(ticks); i++ {
		p.stall = max(p.stall, ticks[i].heard.Sub(ticks[i-1].heard))
		p.paused = max(p.paused, ticks[i].said-ticks[i-1].said)
	}
	if n := len(ticks) - 1; n > 0 {
		p.each = ticks[n].heard.Sub(ticks[0].heard) / time.Duration(n)
	}
	return p
}

// moveOut tells the neighbour to end and checks that it ended as it should,
// with all it said in its log.
func (n *neighbour) moveOut(t *testing.T) {
	t.Helper()
	n.s = n.s.For(t)
	if code, b := n.s.Call("POST", "/sandbox/"+n.id+"/stdin", "end\n"); code != http.StatusOK {
		t.Fatalf("telling the neighbour to end: %d %s", code, b)
	}
	rec := n.s.Ended(n.id)
	n.reader.Wait()
	if rec.State != "failed" || rec.Exit.Cause != "exited" || rec.Exit.Source != "guest" || rec.Exit.Code == nil || *rec.Exit.Code != 21 ||
		len(rec.Exit.LimitsHit) != 0 || rec.Usage.LogTruncated {
		t.Errorf("the neighbour ended with %+v", rec)
	}
	if n.wrong != "" {
		t.Errorf("the neighbour's output: %s", n.wrong)
	}
	kept := readLog(n.s, n.id)
	if lines := strings.Count(kept.stdout, "\n"); lines != len(n.ticks) || kept.truncated {
		t.Errorf("%d lines were heard of the neighbour, and its log has %d", len(n.ticks), lines)
	}
}
