package guestd

import (
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// process is an entry of the table. It stays until the host releases it.
type process struct {
	id   uint32
	pid  int
	cage Cage
	in   *inFlow // nil without an open stdin
	outs [2]*outFlow

	dead   bool // it was waited for; what it left in its cage may still live
	status syscall.WaitStatus
	exited bool // exit was sent
	exit   guestwire.Exit
	timer  int // a timerfd while its cage empties, else -1
}

// outFlow moves a pipe to the host.
type outFlow struct {
	flow  guestwire.Flow
	fd    int // the pipe's reading end; -1 once it is closed
	on    bool
	buf   *guestwire.SendBuffer
	final int64 // -1 until it is known
	told  bool  // EOF was sent
	data  guestwire.Data
}

// inFlow moves what the host sends to a pipe.
type inFlow struct {
	fd     int // the pipe's writing end; -1 once it is closed
	on     bool
	window *guestwire.Window
	wait   []byte // received and not written yet; bounded by the window
	eof    bool   // nothing follows wait
	gone   bool   // nobody reads it
}

// exitPatienceMS bounds the wait for a killed cage to become empty.
const exitPatienceMS = 2000

func (s *server) addProcess(m *guestwire.Start, c child) *process {
	p := &process{
		id: m.Proc, pid: c.pid, cage: c.cage, timer: -1,
		outs: [2]*outFlow{newOutFlow(guestwire.Out, c.out), newOutFlow(guestwire.Err, c.err)},
	}
	if c.in >= 0 {
		p.in = &inFlow{fd: c.in, window: guestwire.NewWindow(guestwire.DefaultWindow)}
	}
	s.procs = append(s.procs, p)
	return p
}

func newOutFlow(flow guestwire.Flow, fd int) *outFlow {
	return &outFlow{flow: flow, fd: fd, final: -1, buf: guestwire.NewSendBuffer(guestwire.DefaultWindow)}
}

// wantOutput watches the pipe while there is room for what it holds.
func (s *server) wantOutput(p *process, f *outFlow) {
	want := f.fd >= 0 && f.buf.Free() > 0
	if want == f.on {
		return
	}
	f.on = want
	if want {
		s.watch(f.fd, unix.EPOLLIN, func() { s.readOutput(p, f) })
	} else {
		s.unwatch(f.fd)
	}
}

// readOutput takes what the pipe has and there is room for.
func (s *server) readOutput(p *process, f *outFlow) {
	s.pace.read(time.Now())
	for f.fd >= 0 {
		space := f.buf.Space()
		if f.final >= 0 {
			space = space[:min(int64(len(space)), f.final-f.buf.End())]
			if f.buf.End() == f.final {
				s.closeOutput(p, f)
				break
			}
		}
		if len(space) == 0 {
			break
		}
		n, err := unix.Read(f.fd, space)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			break
		}
		if n <= 0 {
			s.closeOutput(p, f)
			break
		}
		f.buf.Commit(n)
		if n < len(space) {
			break // most likely there is no more; the next event tells
		}
	}
	s.wantOutput(p, f)
}

func (s *server) closeOutput(p *process, f *outFlow) {
	if f.on {
		s.unwatch(f.fd)
		f.on = false
	}
	unix.Close(f.fd)
	f.fd = -1
	if f.final < 0 {
		f.final = f.buf.End()
	}
	if !p.exited && !f.told {
		f.told = true
		s.out.send(&guestwire.EOF{Proc: p.id, Flow: f.flow, Offset: f.final})
	}
}

// nextData is the next piece of output to send, of each flow in turn; nil when
// there is none.
func (s *server) nextData() guestwire.Message {
	for i, p := range s.procs {
		for j, f := range p.outs {
			off, b := f.buf.Next(guestwire.MaxData)
			if len(b) == 0 {
				continue
			}
			f.buf.Sent(len(b))
			f.data = guestwire.Data{Proc: p.id, Flow: f.flow, Offset: off, Bytes: b}
			if j == 0 {
				p.outs[0], p.outs[1] = p.outs[1], p.outs[0] // the other one first, next time
			}
			s.procs = append(append(s.procs[:i], s.procs[i+1:]...), p)
			return &f.data
		}
	}
	return nil
}

func (s *server) credit(m *guestwire.Credit) error {
	p := s.find(m.Proc)
	if p == nil {
		return nil // released a moment ago
	}
	for _, f := range p.outs {
		if f.flow == m.Flow {
			if err := f.buf.Credit(m.Acked, m.Limit); err != nil {
				return err
			}
			s.wantOutput(p, f)
		}
	}
	return nil
}

func (s *server) stdinData(m *guestwire.Data) error {
	p := s.find(m.Proc)
	if p == nil || p.in == nil || p.exited || m.Flow != guestwire.In {
		return nil
	}
	if err := p.in.window.Receive(m.Offset, len(m.Bytes)); err != nil {
		return err
	}
	p.in.wait = append(p.in.wait, m.Bytes...)
	s.writeStdin(p)
	return nil
}

func (s *server) stdinEOF(m *guestwire.EOF) error {
	p := s.find(m.Proc)
	if p == nil || p.in == nil || p.exited || m.Flow != guestwire.In {
		return nil
	}
	if err := p.in.window.Finish(m.Offset); err != nil {
		return err
	}
	p.in.eof = true
	s.writeStdin(p)
	return nil
}

// writeStdin moves what waits into the pipe, as far as that goes.
func (s *server) writeStdin(p *process) {
	f := p.in
	for len(f.wait) > 0 && f.fd >= 0 {
		n, err := unix.Write(f.fd, f.wait)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			s.closeStdin(p)
			f.gone = true
			if !p.exited {
				s.out.send(&guestwire.EOF{Proc: p.id, Flow: guestwire.In, Offset: f.window.Received()})
			}
			break
		}
		f.wait = append(f.wait[:0], f.wait[n:]...)
		if f.window.Take(n) {
			s.grantStdin(p)
		}
	}
	if f.fd < 0 {
		f.wait = nil
		return
	}
	if f.eof && len(f.wait) == 0 {
		s.closeStdin(p)
		return
	}
	if want := len(f.wait) > 0; want != f.on {
		f.on = want
		if want {
			s.watch(f.fd, unix.EPOLLOUT, func() { s.writeStdin(p) })
		} else {
			s.unwatch(f.fd)
		}
	}
}

func (s *server) grantStdin(p *process) {
	acked, limit := p.in.window.Grant()
	s.out.send(&guestwire.Credit{Proc: p.id, Flow: guestwire.In, Acked: acked, Limit: limit})
}

func (s *server) closeStdin(p *process) {
	if p.in == nil || p.in.fd < 0 {
		return
	}
	s.unwatch(p.in.fd)
	p.in.on = false
	unix.Close(p.in.fd)
	p.in.fd = -1
}

// reap takes the processes that were waited for.
func (s *server) reap() {
	var b [8]byte
	_, _ = unix.Read(s.wakeFD, b[:])
	for _, w := range s.reaper.take() {
		for _, p := range s.procs {
			if p.pid == w.pid && !p.dead {
				p.dead, p.status = true, w.status
				s.emptyCage(p)
				break
			}
		}
	}
}

// emptyCage kills what an ended process left behind, and sends its exit once
// that is gone: only then is it sure how much output there is.
func (s *server) emptyCage(p *process) {
	if p.id == 1 {
		// The run is over: whatever else was started goes with its command.
		for _, q := range s.procs {
			if q != p && !q.dead {
				q.cage.Kill(q.pid)
			}
		}
	}
	p.cage.Kill(p.pid)
	events := p.cage.Events()
	if events < 0 || p.cage.Empty() {
		s.sendExit(p)
		return
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		s.sendExit(p)
		return
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(exitPatienceMS * 1e6)}
	_ = unix.TimerfdSettime(timer, 0, &spec, nil)
	p.timer = timer
	s.watch(timer, unix.EPOLLIN, func() {
		var b [8]byte
		if n, _ := unix.Read(timer, b[:]); n == len(b) {
			s.sendExit(p)
		}
	})
	s.watch(events, unix.EPOLLPRI, func() {
		if p.cage.Empty() {
			s.sendExit(p)
		}
	})
	if p.cage.Empty() { // it became so before it was watched
		s.sendExit(p)
	}
}

func (s *server) sendExit(p *process) {
	if p.exited {
		return
	}
	if p.timer >= 0 {
		s.unwatch(p.timer)
		unix.Close(p.timer)
		p.timer = -1
		s.unwatch(p.cage.Events())
	}
	s.closeStdin(p)
	p.exited = true
	for _, f := range p.outs {
		if f.fd < 0 {
			continue
		}
		// What the pipe still holds is the last of it. Whoever holds the
		// other end now is none of ours.
		n, err := unix.IoctlGetInt(f.fd, unix.TIOCINQ)
		if err != nil {
			n = 0
		}
		f.final = f.buf.End() + int64(n)
		s.readOutput(p, f)
	}
	p.exit = guestwire.Exit{Proc: p.id, Usage: s.cfg.Machine.Usage()}
	for _, f := range p.outs {
		if f.flow == guestwire.Out {
			p.exit.Out = f.final
		} else {
			p.exit.Err = f.final
		}
	}
	if p.status.Signaled() {
		p.exit.Signal = uint8(p.status.Signal())
	} else {
		p.exit.Code = int32(p.status.ExitStatus())
	}
	s.out.send(&p.exit)
}

// restate begins p's flows again where the host has them, and says again what
// it may have missed.
func (s *server) restate(p *process, flows []guestwire.FlowOffset) {
	for _, f := range p.outs {
		for _, at := range flows {
			if at.Proc == p.id && at.Flow == f.flow {
				if err := f.buf.Resume(at.Offset); err != nil {
					s.cfg.Log("process " + strconv.Itoa(int(p.id)) + ": " + err.Error())
				}
			}
		}
		s.wantOutput(p, f)
		if f.told {
			s.out.send(&guestwire.EOF{Proc: p.id, Flow: f.flow, Offset: f.final})
		}
	}
	if p.exited {
		s.out.send(&p.exit)
		return
	}
	if p.in != nil {
		if p.in.gone {
			s.out.send(&guestwire.EOF{Proc: p.id, Flow: guestwire.In, Offset: p.in.window.Received()})
		} else {
			s.grantStdin(p)
		}
	}
}

// release forgets a process that has exited.
func (s *server) release(id uint32) {
	for i, p := range s.procs {
		if p.id == id && p.exited {
			s.closeAll(p)
			s.procs = append(s.procs[:i], s.procs[i+1:]...)
			return
		}
	}
}

func (s *server) closeAll(p *process) {
	s.closeStdin(p)
	for _, f := range p.outs {
		if f.fd >= 0 {
			s.unwatch(f.fd)
			unix.Close(f.fd)
			f.fd, f.on = -1, false
		}
	}
	p.cage.Close()
}

// killAll ends every process and forgets it.
func (s *server) killAll() {
	for _, p := range s.procs {
		if !p.exited {
			p.cage.Kill(p.pid)
		}
	}
	for _, p := range s.procs {
		if p.timer >= 0 {
			unix.Close(p.timer)
			p.timer = -1
		}
		s.closeAll(p)
	}
	s.procs = nil
}
