package guesttest

import (
	"context"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Process is a command that runs in a test guest.
type Process struct {
	Start  guestwire.Start
	Stdin  io.Reader // empty unless Start.StdinOpen
	Stdout io.Writer
	Stderr io.Writer

	// Signals gets what the host sends, but for SIGKILL. Without a receiver a
	// signal that usually kills does so.
	Signals chan int

	g      *Guest
	id     uint32
	ctx    context.Context // ended by a killing signal and with the guest
	cancel context.CancelFunc

	// Guarded by the guest's lock.
	outs     [2]*guestwire.SendBuffer
	window   *guestwire.Window // nil without an open stdin
	input    []byte
	inputEnd bool
	killedBy int
	exit     *guestwire.Exit
}

// Context ends when the command is killed; a command must return then.
func (p *Process) Context() context.Context { return p.ctx }

func (g *Guest) startLocked(m *guestwire.Start) {
	fail := func(code uint8, why string) {
		g.answerLocked(m.Req, &guestwire.StartFailed{Req: m.Req, Proc: m.Proc, Code: code, Message: why})
	}
	switch {
	case !g.ready:
		fail(125, "the guest is not set up")
		return
	case len(m.Argv) == 0 || g.procs[m.Proc] != nil:
		fail(125, "the order makes no sense")
		return
	case m.Argv[0] == "no-such-command":
		fail(127, m.Argv[0]+": command not found")
		return
	}
	p := &Process{Start: *m, g: g, id: m.Proc, Signals: make(chan int, 16)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for i := range p.outs {
		p.outs[i] = guestwire.NewSendBuffer(guestwire.DefaultWindow)
	}
	p.Stdin, p.Stdout, p.Stderr = stdin{p}, output{p, 0}, output{p, 1}
	if m.StdinOpen {
		p.window = guestwire.NewWindow(guestwire.DefaultWindow)
	}
	g.procs[p.id] = p
	g.answerLocked(m.Req, &guestwire.Started{Req: m.Req, Proc: p.id})
	if p.window != nil && g.stream != nil {
		p.grantLocked(g.stream)
	}
	g.work.Go(p.run)
}

func (p *Process) run() {
	defer p.cancel()
	// Whoever waits in a read or write is woken by the end of ctx.
	stop := context.AfterFunc(p.ctx, func() {
		p.g.mu.Lock()
		defer p.g.mu.Unlock()
		p.g.changed.Broadcast()
	})
	defer stop()
	code := p.g.cfg.Run(p)
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	e := &guestwire.Exit{Proc: p.id, Out: p.outs[0].End(), Err: p.outs[1].End(), Usage: p.g.cfg.Usage()}
	if p.killedBy > 0 {
		e.Signal = uint8(p.killedBy)
	} else {
		e.Code = int32(code & 0xff)
	}
	p.exit = e
	p.g.sayLocked(e)
}

func (p *Process) signalLocked(sig int) {
	if p.exit != nil || sig == 0 {
		return
	}
	if sig != 9 {
		select {
		case p.Signals <- sig:
		default:
		}
		return
	}
	p.dieLocked(sig)
}

func (p *Process) dieLocked(sig int) {
	if p.killedBy == 0 {
		p.killedBy = sig
	}
	p.cancel()
}

// Die ends the command as sig does by default.
func (p *Process) Die(sig int) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.dieLocked(sig)
}

func (p *Process) inputLocked(m *guestwire.Data) error {
	if p.window == nil || m.Flow != guestwire.In || p.exit != nil {
		return nil
	}
	if err := p.window.Receive(m.Offset, len(m.Bytes)); err != nil {
		return err
	}
	p.input = append(p.input, m.Bytes...)
	p.g.changed.Broadcast()
	return nil
}

func (p *Process) grantLocked(s *stream) {
	acked, limit := p.window.Grant()
	s.control = append(s.control, &guestwire.Credit{Proc: p.id, Flow: guestwire.In, Acked: acked, Limit: limit})
	p.g.changed.Broadcast()
}

type stdin struct{ p *Process }

func (r stdin) Read(b []byte) (int, error) {
	p := r.p
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	for len(p.input) == 0 && p.window != nil && !p.inputEnd && p.ctx.Err() == nil {
		p.g.changed.Wait()
	}
	if len(p.input) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.input)
	p.input = p.input[n:]
	if p.window.Take(n) && p.g.stream != nil && p.g.stream.greeted {
		p.grantLocked(p.g.stream)
	}
	return n, nil
}

type output struct {
	p *Process
	i int
}

func (w output) Write(b []byte) (int, error) {
	p := w.p
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	n := 0
	for len(b) > 0 {
		if p.ctx.Err() != nil {
			return n, io.ErrClosedPipe
		}
		c := copy(p.outs[w.i].Space(), b)
		if c == 0 {
			p.g.changed.Wait()
			continue
		}
		p.outs[w.i].Commit(c)
		b = b[c:]
		n += c
		p.g.changed.Broadcast()
	}
	return n, nil
}

// Builtin runs a few commands as a shell would: true, false, echo ARG…,
// complain ARG… (echo on stderr), cat, exit N, sleep SECONDS, flood [BYTES]
// (without a number, for ever), stubborn (ignores all signals it can), die N
// (of signal N). A signal kills all but stubborn.
func Builtin(p *Process) int {
	if p.Start.Argv[0] != "stubborn" {
		stop := make(chan struct{})
		defer close(stop)
		p.g.work.Go(func() {
			select {
			case sig := <-p.Signals:
				if sig != 18 { // SIGCONT
					p.Die(sig)
				}
			case <-stop:
			}
		})
	}
	args := p.Start.Argv[1:]
	switch p.Start.Argv[0] {
	case "true":
	case "echo":
		_, _ = io.WriteString(p.Stdout, strings.Join(args, " ")+"\n")
	case "complain":
		_, _ = io.WriteString(p.Stderr, strings.Join(args, " ")+"\n")
	case "cat":
		_, _ = io.Copy(p.Stdout, p.Stdin)
	case "exit":
		return number(args, 0)
	case "die":
		p.Die(number(args, 15))
	case "sleep", "stubborn":
		d, err := time.ParseDuration(strings.Join(args, "") + "s")
		if err != nil {
			d = time.Hour
		}
		select {
		case <-p.ctx.Done():
		case <-time.After(d):
		}
	case "flood":
		left := number(args, 1<<62)
		chunk := make([]byte, 32<<10)
		for left > 0 {
			n, err := p.Stdout.Write(chunk[:min(left, len(chunk))])
			if left -= n; err != nil {
				break
			}
		}
	default:
		return 1
	}
	return 0
}

func number(args []string, other int) int {
	if len(args) == 0 {
		return other
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return other
	}
	return n
}
