package cli

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// interrupted is the signal that asks this process to end, as an error.
type interrupted struct{ sig syscall.Signal }

func (i interrupted) Error() string { return "interrupted" }

// code is the exit code of a process that ended because of it.
func (i interrupted) code() int { return 128 + int(i.sig) }

// signals hands the signals that ask this process to end to whoever is to act
// on them at the time.
type signals struct {
	ch   chan os.Signal
	pipe chan os.Signal
	quit chan struct{}
	done chan struct{}

	mu  sync.Mutex
	act func(interrupted) // guarded by mu
}

// catchSignals takes them over until release. Those that the parent ignores
// (nohup, a shell's background jobs) stay ignored. SIGPIPE is taken as well:
// a write to a closed pipe is an error then, which can be acted on, and not
// the end.
func catchSignals() *signals {
	s := &signals{ch: make(chan os.Signal, 4), pipe: make(chan os.Signal, 1), quit: make(chan struct{}), done: make(chan struct{})}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(s.ch, sig)
		}
	}
	signal.Notify(s.pipe, syscall.SIGPIPE)
	go s.watch()
	return s
}

func (s *signals) watch() {
	defer close(s.done)
	for {
		select {
		case <-s.quit:
			return
		case sig := <-s.ch:
			s.mu.Lock()
			act := s.act
			s.mu.Unlock()
			if n, ok := sig.(syscall.Signal); ok && act != nil {
				act(interrupted{n})
			}
		}
	}
}

// on makes act what happens from now on, one signal at a time. It must not
// block.
func (s *signals) on(act func(interrupted)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.act = act
}

// restore gives the next signal its usual effect.
func (s *signals) restore() { signal.Stop(s.ch) }

// release gives all of them back and waits for who watched.
func (s *signals) release() {
	signal.Stop(s.ch)
	signal.Stop(s.pipe)
	close(s.quit)
	<-s.done
}
