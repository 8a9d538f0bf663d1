package hecatoncheir

import (
	"context"
	"errors"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/erinyes"
	"github.com/tartarus-vm/tartarus/internal/node/erinyes/tisiphone"
	"github.com/tartarus-vm/tartarus/internal/node/thanatos"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// watchClock hands alecto's verdict to thanatos.
func (l *life) watchClock(ctx context.Context) {
	l.condemn(l.clock.Wait(ctx), l.a.cfg.TimeUpGrace)
}

func (l *life) condemn(v erinyes.Verdict, grace time.Duration) {
	if v.Guilty() {
		l.death.Take(thanatos.Order{Cause: v.Cause, Message: v.Message, Grace: grace})
	}
}

// watch begins to watch over the running command; end ends it.
func (l *life) watch(ctx context.Context, stdin []byte) {
	ctx, l.unwatch = context.WithCancel(ctx)
	l.watchers.Go(func() { l.watchCommand(ctx) })
	l.watchers.Go(func() { l.watchMemory(ctx) })
	l.watchers.Go(func() { l.feed(stdin) })
}

// lastWord is how long the guest's word is waited for after its VM ended: it
// may be on its way.
const lastWord = 2 * time.Second

// watchCommand waits for the end of the command, or of whatever could tell.
func (l *life) watchCommand(ctx context.Context) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		exit guestwire.Exit
		err  error
	}
	waited := make(chan result, 1)
	l.watchers.Go(func() {
		exit, err := l.proc.Wait(wctx)
		waited <- result{exit, err}
	})
	var r result
	select {
	case r = <-waited:
	case <-l.vm.Done():
		t := time.AfterFunc(lastWord, cancel)
		r = <-waited
		t.Stop()
	}
	if r.err == nil {
		l.mu.Lock()
		l.exit = &r.exit
		output := l.output
		l.mu.Unlock()
		if n := l.proc.Undelivered(); n > 0 {
			l.logger.Warn("the guest announced output that never came", "bytes", n)
			if err := output.Cut(time.Now()); err != nil {
				l.logger.Error("a log could not be marked", "error", err)
			}
		}
	}
	close(l.ended)
	if r.err == nil {
		l.death.Take(thanatos.Order{Cause: sandbox.Exited})
		return
	}
	if _, _, dying := l.death.First(); !dying && ctx.Err() == nil {
		l.guestLost(ctx, r.err)
	}
}

// vmMoment is how long after its guest fell silent a VM's end may be seen.
const vmMoment = 500 * time.Millisecond

// guestLost finds out why the guest stopped speaking.
func (l *life) guestLost(ctx context.Context, err error) {
	t := time.NewTimer(vmMoment)
	defer t.Stop()
	select {
	case <-l.vm.Done():
	case <-t.C:
	case <-ctx.Done():
	}
	o := thanatos.Order{Cause: sandbox.GuestLost, Message: "the guest stopped speaking before the command had ended"}
	if errors.Is(err, guestdial.ErrGuest) {
		o.Message = "the guest broke the protocol before the command had ended"
	}
	select {
	case <-l.vm.Done():
		exit := l.vm.Exit()
		o.Message = "the VM ended before the command had ended"
		if exit.OOMKill {
			o = thanatos.Order{Cause: sandbox.Memory, Message: "the host killed its VM for going over its memory limit"}
		}
		l.logger.Warn("the VM ended by itself", "exit", exit, "error", err)
	default:
		l.logger.Warn("the guest is lost", "error", err)
	}
	l.death.Take(o)
}

// watchMemory hands tisiphone's verdict to thanatos.
func (l *life) watchMemory(ctx context.Context) {
	limit := tisiphone.HostLimit(l.req.Resources.MemoryMiB)
	tick := time.NewTicker(l.a.cfg.SampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.vm.Done():
			return
		case <-tick.C:
		}
		s, err := l.sample()
		if err != nil {
			continue // it ends; watchCommand knows more
		}
		l.mu.Lock()
		l.last = s
		l.mu.Unlock()
		l.condemn(tisiphone.Judge(limit, s), 0)
	}
}

// feed gives the command the standard input that came with the request, and
// its end unless more may come.
func (l *life) feed(data []byte) {
	defer close(l.fed)
	if len(data) == 0 && !l.req.StdinOpen {
		return // the guest gave the command an empty one
	}
	in := l.proc.Stdin()
	_, err := in.Write(data)
	clear(data)
	if !l.req.StdinOpen {
		err = errors.Join(err, in.Close())
	}
	if err != nil {
		l.logger.Debug("the command took no more input", "error", err)
	}
}
