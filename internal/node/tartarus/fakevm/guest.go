package fakevm

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// guest is the fake's own guest: the protocol's other end with commands that
// are Go functions. Its state outlives a stream, as a real guest's does.
type guest struct {
	vm *VM

	mu      sync.Mutex
	change  *sync.Cond // of anything below
	stopped bool       // the VM has ended
	paused  bool
	mute    bool    // says nothing more than what is queued
	off     bool    // ends the VM once everything was said
	live    *stream // the stream whose hello was answered, or nil

	generation uint32
	lastReq    uint32
	ready      bool
	replies    []reply // the last ones, to say again
	control    []byte  // frames that go ahead of data
	parts      []byte  // of a long Start
	upload     *upload
	files      map[string][]byte
	procs      []*Proc
	usage      guestwire.Usage
}

// stream is one connection from the host.
type stream struct {
	net.Conn
	over bool // guarded by the guest's mu; its reader has ended
}

type reply struct {
	req   uint32
	frame []byte
}

type upload struct {
	path string
	size int64
	data []byte
}

func newGuest(v *VM) *guest {
	g := &guest{vm: v, files: map[string][]byte{}}
	g.change = sync.NewCond(&g.mu)
	return g
}

// serve speaks on one stream until it ends.
func (g *guest) serve(c net.Conn) {
	conn := &stream{Conn: c}
	var writer sync.WaitGroup
	writer.Go(func() { g.write(conn) })
	g.read(conn)
	g.mu.Lock()
	if g.live == conn {
		g.live = nil
	}
	conn.over = true
	_ = conn.Close()
	g.change.Broadcast()
	g.mu.Unlock()
	writer.Wait()
}

// read obeys frames until the stream ends. It looks for a hello first, and
// again after anything it does not understand.
func (g *guest) read(conn *stream) {
	r := guestwire.NewReader(conn, true)
	for synced := false; ; {
		if !synced {
			if r.Seek(guestwire.HelloHostPrefix(), 0) != nil {
				return
			}
			synced = true
		}
		t, payload, err := r.Next()
		if err == nil {
			err = g.handle(conn, t, payload)
		}
		switch {
		case err == nil:
		case errors.Is(err, guestwire.ErrMalformed):
			synced = false
		default:
			return
		}
	}
}

// write says what there is to say on conn, from its hello to its end.
func (g *guest) write(conn *stream) {
	for {
		frames, last := g.next(conn)
		if frames == nil {
			return
		}
		if _, err := conn.Write(frames); err != nil {
			_ = conn.Close()
			return
		}
		if last {
			g.vm.finish(tartarus.Exit{})
			return
		}
	}
}

// next waits for something to say on conn; nil when conn is no more. last says
// that the VM ends after it.
func (g *guest) next(conn *stream) (frames []byte, last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if g.dead() || conn.over {
			return nil, false
		}
		if g.live == conn && !g.paused {
			if len(g.control) > 0 {
				frames, g.control = g.control, nil
				return frames, g.off
			}
			if frames = g.nextData(); frames != nil && !g.mute {
				return frames, false
			}
		}
		g.change.Wait()
	}
}

func (g *guest) nextData() []byte {
	for i, p := range g.procs {
		for _, f := range p.outputs() {
			off, b := f.buf.Next(guestwire.MaxData)
			if len(b) == 0 {
				continue
			}
			frame, err := guestwire.Append(nil, &guestwire.Data{Proc: p.id, Flow: f.flow, Offset: off, Bytes: b})
			if err != nil {
				panic(err) // a fault of this fake
			}
			f.buf.Sent(len(b))
			// Each process and flow in its turn.
			p.out, p.err = p.err, p.out
			g.procs = append(append(g.procs[:i:i], g.procs[i+1:]...), p)
			return frame
		}
	}
	return nil
}

// handle obeys one frame.
func (g *guest) handle(conn *stream, t guestwire.Type, payload []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.change.Broadcast()
	if t == guestwire.TypeStart && len(g.parts) > 0 {
		payload = append(g.parts, payload...)
		g.parts = nil
	}
	m, err := guestwire.DecodeFromHost(t, payload)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *guestwire.HelloHost:
		g.hello(conn, m)
	case *guestwire.Setup:
		g.request(m.Req, func() { g.setup(m) })
	case *guestwire.PutFile:
		g.request(m.Req, func() { g.putFile(m) })
	case *guestwire.FileData:
		g.request(m.Req, func() { g.fileData(m) })
	case *guestwire.Part:
		g.request(m.Req, func() { g.parts = append(g.parts, m.Data...) })
	case *guestwire.Start:
		g.request(m.Req, func() { g.start(m) })
	case *guestwire.Signal:
		g.request(m.Req, func() { g.signal(m) })
	case *guestwire.StatsRequest:
		g.request(m.Req, func() { g.answer(m.Req, &guestwire.Stats{Req: m.Req, Usage: g.used()}) })
	case *guestwire.Shutdown:
		g.request(m.Req, func() { g.shutdown(m) })
	case *guestwire.Release:
		g.request(m.Req, func() { g.release(m.Proc) })
	case *guestwire.Data:
		return g.stdinData(m)
	case *guestwire.Credit:
		return g.credit(m)
	case *guestwire.EOF:
		return g.stdinEOF(m)
	}
	return nil
}

// request carries a request out once.
func (g *guest) request(req uint32, do func()) {
	if req == g.lastReq+1 {
		g.lastReq = req
		do()
	}
}

// dead reports whether the VM has ended: then the guest says nothing more.
func (g *guest) dead() bool { return g.stopped || g.vm.ctx.Err() != nil }

// send queues a frame, unless the guest is mute.
func (g *guest) send(m guestwire.Message) {
	if g.mute {
		return
	}
	b, err := guestwire.Append(g.control, m)
	if err != nil {
		panic(err) // a fault of this fake
	}
	g.control = b
}

func (g *guest) answer(req uint32, m guestwire.Message) {
	before := len(g.control)
	g.send(m)
	g.replies = append(g.replies, reply{req, append([]byte(nil), g.control[before:]...)})
	if over := len(g.replies) - 2*guestwire.MaxOutstanding; over > 0 {
		g.replies = append([]reply(nil), g.replies[over:]...)
	}
}

func (g *guest) done(req uint32) { g.answer(req, &guestwire.Reply{Req: req}) }

func (g *guest) refuse(req uint32, why string) {
	g.answer(req, &guestwire.Reply{Req: req, Status: guestwire.StatusFailed, Message: why})
}

// hello begins a stream, and says again what the host may have missed.
func (g *guest) hello(conn *stream, m *guestwire.HelloHost) {
	h := &guestwire.HelloGuest{Nonce: m.Nonce, Generation: g.generation}
	if m.Generation <= g.generation {
		g.send(h)
		return
	}
	g.live, g.control = conn, nil
	h.Generation = m.Generation
	if m.MinVersion > guestwire.Version || m.MaxVersion < guestwire.MinVersion {
		g.send(h)
		return
	}
	g.generation = m.Generation
	h.Version, h.LastReq, h.Ready = guestwire.Version, g.lastReq, g.ready
	for _, p := range g.procs {
		if p.in != nil && !p.exited {
			h.Flows = append(h.Flows, guestwire.FlowOffset{Proc: p.id, Flow: guestwire.In, Offset: p.in.window.Received()})
		}
	}
	g.send(h)
	for _, r := range g.replies {
		if r.req > m.Acked {
			g.control = append(g.control, r.frame...)
		}
	}
	for _, p := range g.procs {
		p.restate(m.Flows)
	}
}

func (g *guest) setup(m *guestwire.Setup) {
	if why := g.vm.script.SetupErr; why != "" {
		g.refuse(m.Req, why)
		return
	}
	g.ready = true
	g.done(m.Req)
}

func (g *guest) putFile(m *guestwire.PutFile) {
	g.upload = &upload{path: m.Path, size: m.Size}
	g.store(m.Req)
}

func (g *guest) fileData(m *guestwire.FileData) {
	if g.upload != nil {
		g.upload.data = append(g.upload.data, m.Data...)
		g.store(m.Req)
	}
}

// store answers for a file once all of it has come.
func (g *guest) store(req uint32) {
	u := g.upload
	if int64(len(u.data)) < u.size {
		return
	}
	g.upload = nil
	if why := g.vm.script.PutFileErr; why != "" {
		g.refuse(req, why)
		return
	}
	g.files[u.path] = u.data
	g.done(req)
}

func (g *guest) signal(m *guestwire.Signal) {
	p := g.find(m.Proc)
	if p == nil {
		g.answer(m.Req, &guestwire.Reply{Req: m.Req, Status: guestwire.StatusInvalid, Message: "no such process"})
		return
	}
	p.deliver(syscall.Signal(m.Signal))
	g.done(m.Req)
}

func (g *guest) shutdown(m *guestwire.Shutdown) {
	for _, p := range g.procs {
		p.deliver(syscall.SIGKILL)
	}
	g.done(m.Req)
	g.off = true
}

func (g *guest) release(id uint32) {
	for i, p := range g.procs {
		if p.id == id && p.exited {
			g.procs = append(g.procs[:i:i], g.procs[i+1:]...)
			return
		}
	}
}

func (g *guest) credit(m *guestwire.Credit) error {
	if p := g.find(m.Proc); p != nil {
		for _, f := range p.outputs() {
			if f.flow == m.Flow {
				return f.buf.Credit(m.Acked, m.Limit)
			}
		}
	}
	return nil
}

func (g *guest) find(id uint32) *Proc {
	for _, p := range g.procs {
		if p.id == id {
			return p
		}
	}
	return nil
}

func (g *guest) used() guestwire.Usage {
	u := g.usage
	for _, p := range g.procs {
		if !p.exited {
			u.Processes++
		}
	}
	return u
}

// pause holds back all that the guest says, or lets it go on.
func (g *guest) pause(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = on
	g.change.Broadcast()
}

// stop ends all processes: the VM has ended.
func (g *guest) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	for _, p := range g.procs {
		p.deliver(syscall.SIGKILL)
	}
	g.change.Broadcast()
}
