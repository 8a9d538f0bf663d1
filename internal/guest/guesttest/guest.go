// Package guesttest is the test guest: it speaks guestwire without a VM, runs
// Go functions as commands, and misbehaves on demand.
//
// It shares only the frames with the real guest, not its code, so that the
// host's end is tried against two.
package guesttest

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Config says how a test guest behaves. The zero value behaves well and knows
// the commands of Builtin.
type Config struct {
	// Run is what a command does; it returns the exit code. nil is Builtin.
	Run func(*Process) int

	// Setup, PutFile and Usage see what the host asked for; nil ignores it.
	Setup   func(*guestwire.Setup) error
	PutFile func(path string, mode uint32, data []byte) error
	Usage   func() guestwire.Usage

	// Version is what the guest speaks; the current one if 0.
	Version uint16

	// Mangle gets each frame that is about to be sent, and returns what is
	// sent instead: itself, nothing, other bytes. n counts frames from 1 over
	// the guest's life. It runs with the guest locked. nil sends all as it is.
	Mangle func(n int, t guestwire.Type, frame []byte) []byte

	// Deaf makes the guest stop reading after so many frames; 0 for never.
	Deaf int
}

// ErrGone is what Dial says after Kill or Shutdown.
var ErrGone = errors.New("the test guest is gone")

// Guest is a test guest. All methods may be called at once.
type Guest struct {
	cfg  Config
	done chan struct{} // closed by Kill and Shutdown
	work sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond // anything below changed
	over    bool
	stream  *stream // the present one, or nil
	frames  int     // sent so far
	heard   int     // received so far

	generation uint32
	lastReq    uint32
	ready      bool
	answers    []answer
	parts      []byte
	file       *guestwire.PutFile
	content    []byte
	procs      map[uint32]*Process
}

type answer struct {
	req   uint32
	frame guestwire.Message
}

// stream is one connection to the host.
type stream struct {
	conn    net.Conn
	greeted bool
	broken  bool
	control []guestwire.Message
}

// New makes a guest that waits for a host.
func New(cfg Config) *Guest {
	if cfg.Run == nil {
		cfg.Run = Builtin
	}
	if cfg.Usage == nil {
		cfg.Usage = func() guestwire.Usage { return guestwire.Usage{} }
	}
	g := &Guest{cfg: cfg, done: make(chan struct{}), procs: make(map[uint32]*Process)}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// Dial opens a stream to the guest, which ends the one before.
func (g *Guest) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	host, conn := net.Pipe()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return nil, ErrGone
	}
	g.breakLocked()
	s := &stream{conn: conn}
	g.stream = s
	g.work.Go(func() { g.read(s) })
	g.work.Go(func() { g.write(s) })
	return host, nil
}

// Break breaks the present stream; the host may dial again.
func (g *Guest) Break() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.breakLocked()
}

func (g *Guest) breakLocked() {
	if s := g.stream; s != nil {
		s.broken = true
		_ = s.conn.Close()
		g.stream = nil
		g.changed.Broadcast()
	}
}

// Kill ends the guest as if its VM had died, and waits until nothing of it
// runs; commands must obey their context for that.
func (g *Guest) Kill() {
	g.mu.Lock()
	g.endLocked()
	g.mu.Unlock()
	g.work.Wait()
}

func (g *Guest) endLocked() {
	if g.over {
		return
	}
	g.over = true
	close(g.done)
	for _, p := range g.procs {
		p.cancel()
	}
	g.breakLocked()
	g.changed.Broadcast()
}

// Done is closed when the guest is gone.
func (g *Guest) Done() <-chan struct{} { return g.done }

// SendRaw sends bytes on the present stream, outside the protocol.
func (g *Guest) SendRaw(b []byte) error {
	g.mu.Lock()
	s := g.stream
	g.mu.Unlock()
	if s == nil {
		return ErrGone
	}
	_, err := s.conn.Write(b)
	return err
}

func (g *Guest) read(s *stream) {
	r := guestwire.NewReader(s.conn, true)
	err := r.Seek(guestwire.HelloHostPrefix(), 0)
	for err == nil {
		var t guestwire.Type
		var payload []byte
		if t, payload, err = r.Next(); err != nil {
			break
		}
		g.mu.Lock()
		if g.heard++; g.cfg.Deaf > 0 && g.heard > g.cfg.Deaf {
			for !s.broken {
				g.changed.Wait()
			}
		}
		if s.broken {
			err = io.ErrClosedPipe
		} else {
			err = g.handleLocked(s, t, payload)
		}
		g.mu.Unlock()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stream == s {
		g.breakLocked()
	}
}

func (g *Guest) handleLocked(s *stream, t guestwire.Type, payload []byte) error {
	if t == guestwire.TypeStart && g.parts != nil {
		payload = append(g.parts, payload...)
		g.parts = nil
	}
	m, err := guestwire.DecodeFromHost(t, payload)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *guestwire.HelloHost:
		g.helloLocked(s, m)
	case *guestwire.Data:
		if p := g.procs[m.Proc]; p != nil {
			return p.inputLocked(m)
		}
	case *guestwire.EOF:
		if p := g.procs[m.Proc]; p != nil && p.window != nil {
			p.inputEnd = true
			g.changed.Broadcast()
			return p.window.Finish(m.Offset)
		}
	case *guestwire.Credit:
		if p := g.procs[m.Proc]; p != nil && m.Flow != guestwire.In {
			g.changed.Broadcast()
			return p.outs[m.Flow-guestwire.Out].Credit(m.Acked, m.Limit)
		}
	default:
		g.requestLocked(m)
	}
	return nil
}

func (g *Guest) helloLocked(s *stream, m *guestwire.HelloHost) {
	g.generation = m.Generation
	hello := &guestwire.HelloGuest{
		Nonce: m.Nonce, Version: cmp.Or(g.cfg.Version, guestwire.Version), Generation: m.Generation, LastReq: g.lastReq, Ready: g.ready,
	}
	s.control = append(s.control[:0], hello)
	for _, a := range g.answers {
		if a.req > m.Acked {
			s.control = append(s.control, a.frame)
		}
	}
	for _, p := range g.procs {
		for _, at := range m.Flows {
			if at.Proc == p.id && at.Flow != guestwire.In {
				_ = p.outs[at.Flow-guestwire.Out].Resume(at.Offset)
			}
		}
		switch {
		case p.exit != nil:
			s.control = append(s.control, p.exit)
		case p.window != nil:
			hello.Flows = append(hello.Flows, guestwire.FlowOffset{Proc: p.id, Flow: guestwire.In, Offset: p.window.Received()})
			p.grantLocked(s)
		}
	}
	s.greeted = true
	g.changed.Broadcast()
}

// sayLocked sends a control frame on the present stream; without one it is
// said again after the next hello, or was an answer, which is kept.
func (g *Guest) sayLocked(m guestwire.Message) {
	if g.stream != nil && g.stream.greeted {
		g.stream.control = append(g.stream.control, m)
		g.changed.Broadcast()
	}
}

func (g *Guest) answerLocked(req uint32, m guestwire.Message) {
	if len(g.answers) == 2*guestwire.MaxOutstanding {
		g.answers = g.answers[1:]
	}
	g.answers = append(g.answers, answer{req, m})
	g.sayLocked(m)
}

func (g *Guest) replyLocked(req uint32, err error) {
	r := &guestwire.Reply{Req: req}
	if err != nil {
		r.Status, r.Message = guestwire.StatusFailed, err.Error()
	}
	g.answerLocked(req, r)
}

func (g *Guest) requestLocked(m guestwire.Message) {
	req := requestNumber(m)
	if req != g.lastReq+1 {
		return // done already
	}
	g.lastReq = req
	switch m := m.(type) {
	case *guestwire.Setup:
		var err error
		if g.cfg.Setup != nil {
			err = g.cfg.Setup(m)
		}
		g.ready = err == nil
		g.replyLocked(req, err)
	case *guestwire.PutFile:
		g.file, g.content = m, nil
		g.putLocked(req)
	case *guestwire.FileData:
		g.content = append(g.content, m.Data...)
		g.putLocked(req)
	case *guestwire.Part:
		g.parts = append(g.parts, m.Data...)
	case *guestwire.Start:
		g.startLocked(m)
	case *guestwire.Signal:
		if p := g.procs[m.Proc]; p != nil {
			p.signalLocked(int(m.Signal))
		}
		g.replyLocked(req, nil)
	case *guestwire.StatsRequest:
		g.answerLocked(req, &guestwire.Stats{Req: req, Usage: g.cfg.Usage()})
	case *guestwire.Shutdown:
		g.replyLocked(req, nil)
		g.work.Go(g.leave)
	case *guestwire.Release:
		if p := g.procs[m.Proc]; p != nil {
			p.cancel() // its end may have been a lie
		}
		delete(g.procs, m.Proc)
	}
}

// leave ends the guest once it has said all it had to say.
func (g *Guest) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.stream != nil && len(g.stream.control) > 0 {
		g.changed.Wait()
	}
	g.endLocked()
}

func (g *Guest) putLocked(req uint32) {
	if int64(len(g.content)) < g.file.Size {
		return
	}
	var err error
	if g.cfg.PutFile != nil {
		err = g.cfg.PutFile(g.file.Path, g.file.Mode, g.content)
	}
	g.content = nil
	g.replyLocked(req, err)
}

func requestNumber(m guestwire.Message) uint32 {
	switch m := m.(type) {
	case *guestwire.Setup:
		return m.Req
	case *guestwire.PutFile:
		return m.Req
	case *guestwire.FileData:
		return m.Req
	case *guestwire.Part:
		return m.Req
	case *guestwire.Start:
		return m.Req
	case *guestwire.Signal:
		return m.Req
	case *guestwire.StatsRequest:
		return m.Req
	case *guestwire.Shutdown:
		return m.Req
	case *guestwire.Release:
		return m.Req
	}
	return 0
}

// write sends what there is to send until the stream breaks.
func (g *Guest) write(s *stream) {
	var out []byte
	for {
		g.mu.Lock()
		var m guestwire.Message
		for !s.broken {
			if m = g.nextLocked(s); m != nil {
				break
			}
			g.changed.Wait()
		}
		if s.broken {
			g.mu.Unlock()
			return
		}
		frame, err := guestwire.Append(out[:0], m)
		g.frames++
		if err == nil && g.cfg.Mangle != nil {
			frame = g.cfg.Mangle(g.frames, m.Type(), frame)
		}
		g.mu.Unlock()
		if len(frame) == 0 {
			continue
		}
		if _, err := s.conn.Write(frame); err != nil {
			return
		}
		if cap(frame) > cap(out) {
			out = frame[:0]
		}
	}
}

// nextLocked is the next frame to send: control first.
func (g *Guest) nextLocked(s *stream) guestwire.Message {
	if !s.greeted {
		return nil
	}
	if len(s.control) > 0 {
		m := s.control[0]
		s.control = s.control[1:]
		g.changed.Broadcast()
		return m
	}
	for _, p := range g.procs {
		for i := range p.outs {
			off, b := p.outs[i].Next(guestwire.MaxData)
			if len(b) > 0 {
				p.outs[i].Sent(len(b))
				return &guestwire.Data{Proc: p.id, Flow: guestwire.Out + guestwire.Flow(i), Offset: off, Bytes: b}
			}
		}
	}
	return nil
}
