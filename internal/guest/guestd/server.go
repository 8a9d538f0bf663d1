package guestd

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Config is what a server needs.
type Config struct {
	Port    Port
	Machine Machine

	// ReapAll: this is PID 1 (or a subreaper) and waits for every child there
	// is. Otherwise it waits for the processes it started alone.
	ReapAll bool

	// Batch makes the loop's thread a batch job, while commands flood it, or a
	// normal one again; nil leaves it alone.
	Batch func(on bool)

	// Wake is how often the loop wakes though there is nothing to do; 0 for
	// never.
	Wake time.Duration

	// Log takes one line about what should not happen; nil discards it.
	Log func(line string)
}

// server is the loop and all its state; one goroutine owns it.
type server struct {
	cfg    Config
	epfd   int
	wakeFD int // an eventfd: somebody else has something for the loop
	reader *guestwire.Reader
	synced bool // frames follow each other; otherwise a hello is looked for
	out    output
	pace   pace

	generation uint32
	lastReq    uint32
	ready      bool // Setup was carried out
	user       string
	replies    []reply // the last ones, to say again

	parts []byte // of a long Start
	file  upload

	procs   []*process // in order of their start
	watches map[int]func()
	reaper  reaper
	shut    bool // the host asked for a shutdown
	ended   bool
}

type reply struct {
	req   uint32
	frame []byte
}

// maxReplies is more than can wait for their answer.
const maxReplies = 2 * guestwire.MaxOutstanding

// Serve obeys the host until it asks for a shutdown, or stop becomes readable
// (-1 for never). At its end no process that it started lives.
func Serve(cfg Config, stop int) error {
	s := &server{cfg: cfg, watches: make(map[int]func())}
	if s.cfg.Log == nil {
		s.cfg.Log = func(string) {}
	}
	var err error
	if s.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return wrap("making an epoll instance", err)
	}
	defer unix.Close(s.epfd)
	if s.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return wrap("making an eventfd", err)
	}
	defer unix.Close(s.wakeFD)
	s.watch(s.wakeFD, unix.EPOLLIN, s.reap)
	if stop >= 0 {
		s.watch(stop, unix.EPOLLIN, func() { s.ended = true })
	}
	if cfg.Wake > 0 {
		fd, err := s.wakeEvery(cfg.Wake)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	if err := cfg.Port.Register(s.epfd); err != nil {
		return wrap("watching the port", err)
	}
	s.reader = guestwire.NewReader(cfg.Port, true)
	s.out.port = cfg.Port
	s.pace.set = cfg.Batch
	s.reaper.start(s.wakeFD, cfg.ReapAll)
	defer s.reaper.close()
	defer s.killAll()
	return s.loop()
}

// turnFrames bounds how many data frames go out before the loop looks at its
// events again.
const turnFrames = 8

func (s *server) loop() error {
	events := make([]unix.EpollEvent, 32)
	s.receive()
	for !s.ended {
		timeout := -1
		if s.out.flush(s.nextData, turnFrames) {
			timeout = 0 // there is more to send at once
		}
		if s.ended {
			break
		}
		n, err := unix.EpollWait(s.epfd, events, timeout)
		if err != nil && err != unix.EINTR {
			return wrap("waiting for events", err)
		}
		for i := range max(n, 0) {
			fd := int(events[i].Fd)
			if s.cfg.Port.Ready(fd) {
				s.receive()
			} else if f := s.watches[fd]; f != nil {
				f()
			}
		}
	}
	s.out.flush(func() guestwire.Message { return nil }, 1)
	if s.shut {
		// Before anything is waited for: a process that cannot be killed
		// must not keep the machine on.
		s.cfg.Machine.PowerOff()
	}
	return nil
}

// watch calls f whenever fd is ready for what events say. unwatch ends that.
func (s *server) watch(fd int, events uint32, f func()) {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(s.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		s.cfg.Log("watching a descriptor: " + err.Error())
		return
	}
	s.watches[fd] = f
}

func (s *server) unwatch(fd int) {
	if s.watches[fd] == nil {
		return
	}
	delete(s.watches, fd)
	_ = unix.EpollCtl(s.epfd, unix.EPOLL_CTL_DEL, fd, nil)
}

// receive handles all frames that have come.
func (s *server) receive() {
	for !s.ended {
		if !s.synced {
			if err := s.reader.Seek(guestwire.HelloHostPrefix(), 0); err != nil {
				return
			}
			s.synced = true
		}
		t, payload, err := s.reader.Next()
		if err == nil {
			err = s.handle(t, payload)
		}
		switch {
		case err == nil:
		case errors.Is(err, errAgain):
			return
		default:
			// A torn frame, or worse. Only a hello helps.
			s.cfg.Log("from the host: " + err.Error())
			s.synced = false
		}
	}
}

// handle obeys one frame. An error means that the stream cannot be trusted.
func (s *server) handle(t guestwire.Type, payload []byte) error {
	if t == guestwire.TypeStart && len(s.parts) > 0 {
		payload = append(s.parts, payload...)
		s.parts = nil
	}
	m, err := guestwire.DecodeFromHost(t, payload)
	if err != nil {
		return err
	}
	if t != guestwire.TypeHelloHost && s.generation == 0 {
		return errors.New("a frame before the hello")
	}
	switch m := m.(type) {
	case *guestwire.HelloHost:
		s.hello(m)
	case *guestwire.Setup:
		return s.request(m.Req, func() { s.setup(m) })
	case *guestwire.PutFile:
		return s.request(m.Req, func() { s.putFile(m) })
	case *guestwire.FileData:
		return s.request(m.Req, func() { s.fileData(m) })
	case *guestwire.Part:
		return s.request(m.Req, func() { s.part(m) })
	case *guestwire.Start:
		return s.request(m.Req, func() { s.startProcess(m) })
	case *guestwire.Signal:
		return s.request(m.Req, func() { s.signal(m) })
	case *guestwire.StatsRequest:
		return s.request(m.Req, func() {
			s.answer(m.Req, &guestwire.Stats{Req: m.Req, Usage: s.cfg.Machine.Usage()})
		})
	case *guestwire.Shutdown:
		return s.request(m.Req, func() { s.shutdown(m) })
	case *guestwire.Release:
		return s.request(m.Req, func() { s.release(m.Proc) })
	case *guestwire.Data:
		return s.stdinData(m)
	case *guestwire.Credit:
		return s.credit(m)
	case *guestwire.EOF:
		return s.stdinEOF(m)
	}
	return nil
}

// request carries out a request in its turn. None comes twice: the hello says
// from where on the host has to send again.
func (s *server) request(req uint32, do func()) error {
	if req != s.lastReq+1 {
		return errors.New("a request is missing, or came twice")
	}
	s.lastReq = req
	do()
	return nil
}

// answer sends the answer to a request, and keeps it to say again.
func (s *server) answer(req uint32, m guestwire.Message) {
	frame, err := guestwire.Append(nil, m)
	if err != nil {
		s.cfg.Log(err.Error())
		frame, _ = guestwire.Append(nil, &guestwire.Reply{Req: req, Status: guestwire.StatusFailed})
	}
	if len(s.replies) == maxReplies {
		s.replies = append(s.replies[:0], s.replies[1:]...)
	}
	s.replies = append(s.replies, reply{req, frame})
	s.out.raw(frame)
}

func (s *server) ok(req uint32) { s.answer(req, &guestwire.Reply{Req: req}) }

func (s *server) fail(req uint32, status guestwire.Status, err error) {
	s.answer(req, &guestwire.Reply{Req: req, Status: status, Message: clip(err.Error())})
}

// clip bounds a message.
func clip(m string) string { return m[:min(len(m), guestwire.MaxMessage)] }

// hello begins a new stream: what was on its way on the old one is forgotten,
// and said again.
func (s *server) hello(m *guestwire.HelloHost) {
	answer := &guestwire.HelloGuest{Nonce: m.Nonce, Generation: s.generation}
	if m.Generation <= s.generation {
		s.out.send(answer)
		return
	}
	if v := min(m.MaxVersion, guestwire.Version); v >= m.MinVersion && v >= guestwire.MinVersion {
		answer.Version = v
	}
	s.out.reset()
	if answer.Version == 0 {
		answer.Generation = m.Generation
		s.out.send(answer)
		return
	}
	s.generation = m.Generation
	answer.Generation = s.generation
	answer.LastReq = s.lastReq
	answer.Ready = s.ready
	for _, p := range s.procs {
		if !p.exited && p.in != nil {
			answer.Flows = append(answer.Flows, guestwire.FlowOffset{Proc: p.id, Flow: guestwire.In, Offset: p.in.window.Received()})
		}
	}
	s.out.send(answer)
	for _, r := range s.replies {
		if r.req > m.Acked {
			s.out.raw(r.frame)
		}
	}
	for _, p := range s.procs {
		s.restate(p, m.Flows)
	}
}

func (s *server) setup(m *guestwire.Setup) {
	if len(s.procs) > 0 {
		s.fail(m.Req, guestwire.StatusInvalid, errors.New("it is in use already"))
		return
	}
	if err := s.cfg.Machine.Setup(m); err != nil {
		s.fail(m.Req, guestwire.StatusFailed, err)
		return
	}
	s.ready = true
	s.user = m.User
	s.ok(m.Req)
}

func (s *server) part(m *guestwire.Part) {
	if len(s.parts)+len(m.Data) <= guestwire.MaxStart {
		s.parts = append(s.parts, m.Data...)
	}
}

func (s *server) shutdown(m *guestwire.Shutdown) {
	s.killAll()
	s.ok(m.Req)
	s.shut, s.ended = true, true
}

func (s *server) signal(m *guestwire.Signal) {
	p := s.find(m.Proc)
	if p == nil {
		s.fail(m.Req, guestwire.StatusInvalid, errors.New("no such process"))
		return
	}
	if !p.exited && !p.dead {
		// Its group, because a shell does not pass signals on.
		sig := syscall.Signal(m.Signal)
		if err := syscall.Kill(-p.pid, sig); err != nil {
			_ = syscall.Kill(p.pid, sig)
		}
	}
	s.ok(m.Req)
}

func (s *server) find(id uint32) *process {
	for _, p := range s.procs {
		if p.id == id {
			return p
		}
	}
	return nil
}
