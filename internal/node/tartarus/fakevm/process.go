package fakevm

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Command is a program of the fake guest: it returns its exit code. It ends
// soon after ctx does: then a signal ended it, whatever it returns.
type Command func(ctx context.Context, p *Proc) int

// Proc is a process of the fake guest.
type Proc struct {
	Argv   []string
	Env    []string
	Cwd    string
	User   string
	Stdin  io.Reader // empty if the host gave none
	Stdout io.Writer // blocks while the host gives no credit
	Stderr io.Writer

	g      *guest
	id     uint32
	in     *inflow // nil without stdin
	out    *outflow
	err    *outflow
	cancel context.CancelFunc
	exited bool
	killed syscall.Signal
	caught map[syscall.Signal]chan<- syscall.Signal
	exit   guestwire.Exit
}

type outflow struct {
	p    *Proc
	flow guestwire.Flow
	buf  *guestwire.SendBuffer
}

type inflow struct {
	p      *Proc
	window *guestwire.Window
	wait   []byte
	eof    bool
}

var errKilled = errors.New("the process was killed")

func (p *Proc) outputs() [2]*outflow { return [2]*outflow{p.out, p.err} }

// File is what the host put at path, nil if nothing.
func (p *Proc) File(path string) []byte {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	return p.g.files[path]
}

// Catch has a signal told to c, which must have room, instead of ending the
// process.
func (p *Proc) Catch(sig syscall.Signal, c chan<- syscall.Signal) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.caught[sig] = c
}

// Raw sends bytes to the host that the protocol may not allow.
func (p *Proc) Raw(b []byte) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.g.control = append(p.g.control, b...)
	p.g.change.Broadcast()
}

// Mute keeps the guest from saying anything more than it has begun to, ever.
func (p *Proc) Mute() {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.g.mute = true
}

// Count changes what the guest says that its commands used.
func (p *Proc) Count(change func(*guestwire.Usage)) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	change(&p.g.usage)
}

// VM is the VM that it runs in.
func (p *Proc) VM() *VM { return p.g.vm }

// start carries out a Start; the caller holds the lock.
func (g *guest) start(m *guestwire.Start) {
	fail := func(code uint8, why string) {
		g.answer(m.Req, &guestwire.StartFailed{Req: m.Req, Proc: m.Proc, Code: code, Message: why})
	}
	if !g.ready || g.stopped || len(m.Argv) == 0 || g.find(m.Proc) != nil {
		fail(125, "the guest is not set up, or the process makes no sense")
		return
	}
	command, ok := g.vm.script.Commands[m.Argv[0]]
	if !ok {
		if command, ok = builtins[m.Argv[0]]; !ok {
			fail(127, m.Argv[0]+": not found")
			return
		}
	}
	p := &Proc{Argv: m.Argv, Env: m.Env, Cwd: m.Cwd, User: m.User, g: g, id: m.Proc, caught: map[syscall.Signal]chan<- syscall.Signal{}}
	p.out = &outflow{p, guestwire.Out, guestwire.NewSendBuffer(guestwire.DefaultWindow)}
	p.err = &outflow{p, guestwire.Err, guestwire.NewSendBuffer(guestwire.DefaultWindow)}
	p.Stdout, p.Stderr, p.Stdin = p.out, p.err, eof{}
	if m.StdinOpen {
		p.in = &inflow{p: p, window: guestwire.NewWindow(guestwire.DefaultWindow)}
		p.Stdin = p.in
	}
	g.procs = append(g.procs, p)
	g.answer(m.Req, &guestwire.Started{Req: m.Req, Proc: m.Proc})
	if p.in != nil {
		p.in.grant()
	}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(g.vm.ctx)
	// The VM cannot have stopped waiting: serve, one of those it waits for, is
	// calling us.
	g.vm.wg.Go(func() {
		defer p.cancel()
		if tell := g.vm.d.cfg.OnExecute; tell != nil {
			tell(g.vm.spec.ID, m.Proc, m.Argv)
		}
		p.end(command(ctx, p))
	})
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// end says how the process ended.
func (p *Proc) end(code int) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.change.Broadcast()
	p.exited = true
	if g.dead() {
		return
	}
	p.exit = guestwire.Exit{Proc: p.id, Code: int32(code & 0xff), Out: p.output(guestwire.Out).buf.End(), Err: p.output(guestwire.Err).buf.End(), Usage: g.used()}
	if p.killed != 0 {
		p.exit.Code, p.exit.Signal = 0, uint8(p.killed)
	}
	p.sayEnd()
}

func (p *Proc) output(f guestwire.Flow) *outflow {
	if p.out.flow == f {
		return p.out
	}
	return p.err
}

func (p *Proc) sayEnd() {
	p.g.send(&guestwire.EOF{Proc: p.id, Flow: guestwire.Out, Offset: p.exit.Out})
	p.g.send(&guestwire.EOF{Proc: p.id, Flow: guestwire.Err, Offset: p.exit.Err})
	p.g.send(&p.exit)
}

// restate begins the flows again where the host has them.
func (p *Proc) restate(flows []guestwire.FlowOffset) {
	for _, at := range flows {
		if at.Proc == p.id && at.Flow != guestwire.In {
			_ = p.output(at.Flow).buf.Resume(at.Offset) // a host that errs gets no data
		}
	}
	if p.exited {
		p.sayEnd()
	} else if p.in != nil {
		p.in.grant()
	}
}

// deliver has a signal do its work; the caller holds the lock.
func (p *Proc) deliver(sig syscall.Signal) {
	if p.exited || sig == 0 {
		return
	}
	switch sig {
	case syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH:
		return
	}
	if c, ok := p.caught[sig]; ok && sig != syscall.SIGKILL {
		select {
		case c <- sig:
		default:
		}
		return
	}
	if p.killed == 0 {
		p.killed = sig
	}
	if p.cancel != nil {
		p.cancel()
	}
	p.g.change.Broadcast()
}

// Write takes what there is room for, and waits for more.
func (f *outflow) Write(b []byte) (n int, err error) {
	g := f.p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	for n < len(b) {
		if f.p.killed != 0 || g.stopped {
			return n, errKilled
		}
		k := copy(f.buf.Space(), b[n:])
		if k == 0 {
			g.change.Wait()
			continue
		}
		f.buf.Commit(k)
		n += k
		g.change.Broadcast()
	}
	return n, nil
}

// Read waits for what the host sends.
func (f *inflow) Read(b []byte) (int, error) {
	g := f.p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(f.wait) == 0 {
		switch {
		case f.p.killed != 0 || g.stopped:
			return 0, errKilled
		case f.eof:
			return 0, io.EOF
		}
		g.change.Wait()
	}
	n := copy(b, f.wait)
	f.wait = f.wait[n:]
	if f.window.Take(n) {
		f.grant()
		g.change.Broadcast()
	}
	return n, nil
}

func (f *inflow) grant() {
	acked, limit := f.window.Grant()
	f.p.g.send(&guestwire.Credit{Proc: f.p.id, Flow: guestwire.In, Acked: acked, Limit: limit})
}

func (g *guest) stdinData(m *guestwire.Data) error {
	p := g.find(m.Proc)
	if p == nil || p.in == nil || p.exited || m.Flow != guestwire.In {
		return nil
	}
	if err := p.in.window.Receive(m.Offset, len(m.Bytes)); err != nil {
		return err
	}
	p.in.wait = append(p.in.wait, m.Bytes...)
	return nil
}

func (g *guest) stdinEOF(m *guestwire.EOF) error {
	p := g.find(m.Proc)
	if p == nil || p.in == nil || m.Flow != guestwire.In {
		return nil
	}
	if err := p.in.window.Finish(m.Offset); err != nil {
		return err
	}
	p.in.eof = true
	return nil
}
