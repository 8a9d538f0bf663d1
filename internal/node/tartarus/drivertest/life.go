package drivertest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
}

// open boots a VM to the point where its guest is set up.
func (k *kit) open(t *testing.T, s tartarus.Spec) (tartarus.VM, *guestdial.Session) {
	t.Helper()
	var session *guestdial.Session
	vm, _, err := tartarus.Boot(k.ctx(t), k.driver, s, func(ctx context.Context, vm tartarus.VM) error {
		early, cancel := context.WithTimeout(ctx, time.Millisecond)
		conn, err := vm.Dial(early)
		cancel()
		if err == nil {
			_ = conn.Close() // quick enough
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dialling before the guest listens: %v", err)
		}
		session, err = guestdial.Open(ctx, guestdial.Config{Dial: vm.Dial})
		return err
	}, tartarus.BootPolicy{GivenUp: func(n int, vm tartarus.VM, why error) {
		var b bytes.Buffer
		_ = vm.Console(&b)
		t.Logf("attempt %d: %v; console: %q", n, why, b.Bytes())
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = session.Close()
		k.kill(t, vm)
	})
	setup := k.setup
	setup.Hostname, setup.Entropy = string(s.ID), bytes.Repeat([]byte{7}, 64)
	if err := session.Setup(k.ctx(t), setup); err != nil {
		t.Fatal(err)
	}
	return vm, session
}

// command runs a command in the guest for its standard output.
func (k *kit) command(t *testing.T, s *guestdial.Session, proc uint32, argv []string) string {
	t.Helper()
	var mu sync.Mutex
	var out, errs []byte
	p, err := s.Start(k.ctx(t), guestwire.Start{Proc: proc, Argv: argv, User: k.h.User}, func(f guestwire.Flow, _ int64, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		if f == guestwire.Out {
			out = append(out, b...)
		} else {
			errs = append(errs, b...)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Wait(k.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if e.Code != 0 || e.Signal != 0 {
		t.Errorf("%q ended with code %d, signal %d: %s", argv, e.Code, e.Signal, errs)
	}
	return string(out)
}

// life: from start to Kill, everything a VM can be asked.
func life(t *testing.T, k *kit) {
	s := k.spec(t)
	vm, session := k.open(t, s)
	if i := vm.Isolation(); i.Accelerator != k.driver.Info().Accelerator {
		t.Errorf("isolation %+v", i)
	}
	if got := k.command(t, session, 1, append(slices.Clone(k.h.Echo), "hello", "world")); got != "hello world\n" {
		t.Errorf("the command says %q", got)
	}
	sampleSane(t, vm, s)
	redial(t, k, vm, session)
	pause(t, k, vm, session)
	console(t, k, vm, session)
	e := vm.Exit()
	if !e.At.IsZero() {
		t.Errorf("a living VM has an end: %+v", e)
	}
	k.kill(t, vm)
	if e := vm.Exit(); !e.ByKill {
		t.Errorf("a killed VM ended by %+v", e)
	}
	select {
	case <-session.Done():
	case <-k.ctx(t).Done():
		t.Error("the session outlives its VM")
	}
	afterEnd(t, k, vm)
}

// sampleSane: what the host sees can be, and never falls.
func sampleSane(t *testing.T, vm tartarus.VM, s tartarus.Spec) {
	t.Helper()
	a, err := vm.Sample()
	if err != nil {
		t.Fatal(err)
	}
	b, err := vm.Sample()
	if err != nil {
		t.Fatal(err)
	}
	most := (s.MemoryMiB + 256) << 20
	switch {
	case b.At.Before(a.At), b.CPUSeconds < a.CPUSeconds, b.MemoryPeakBytes < a.MemoryPeakBytes, b.DiskWritten < a.DiskWritten, b.OOMKills != 0:
		t.Errorf("samples %+v and then %+v", a, b)
	case b.MemoryBytes <= 0, b.MemoryBytes > most, b.MemoryPeakBytes < b.MemoryBytes, b.CPUSeconds <= 0, b.CPUSeconds > 600:
		t.Errorf("sample %+v", b)
	}
}

// redial: a new stream ends the one before, and the session goes on over it.
func redial(t *testing.T, k *kit, vm tartarus.VM, session *guestdial.Session) {
	t.Helper()
	first, err := vm.Dial(k.ctx(t)) // takes the stream from the session, which dials again
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close() // taken away by the session
	if got := k.command(t, session, 2, append(slices.Clone(k.h.Echo), "again")); got != "again\n" {
		t.Errorf("after a new stream the command says %q", got)
	}
	_ = first.SetReadDeadline(time.Now().Add(k.h.Timeout)) // fails on a stream that has ended, as it should have
	buf := make([]byte, 64<<10)
	for {
		if _, err = first.Read(buf); err != nil {
			break
		}
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("two streams to one guest are open")
	}
}

// pause: a paused guest says nothing, and goes on where it was.
func pause(t *testing.T, k *kit, vm tartarus.VM, session *guestdial.Session) {
	t.Helper()
	if !k.driver.Info().CanPause {
		if vm.Pause(k.ctx(t)) == nil {
			t.Error("Info says that it cannot pause, and it did")
		}
		return
	}
	if err := vm.Pause(k.ctx(t)); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(k.ctx(t), 300*time.Millisecond)
	defer cancel()
	if _, err := session.Stats(short); err == nil {
		t.Error("a paused guest answers")
	}
	if err := vm.Resume(k.ctx(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := session.Stats(k.ctx(t)); err != nil {
		t.Errorf("a resumed guest does not answer: %v", err)
	}
}

// console: however much is written, ConsoleBytes of it are kept, the last.
func console(t *testing.T, k *kit, vm tartarus.VM, session *guestdial.Session) {
	t.Helper()
	much := k.h.Flooding
	k.command(t, session, 3, k.h.Flood(much))
	for range 2 {
		var b bytes.Buffer
		if err := vm.Console(&b); err != nil {
			t.Fatal(err)
		}
		if b.Len() > tartarus.ConsoleBytes || b.Len() < min(much, tartarus.ConsoleBytes)/2 {
			t.Errorf("of %d bytes on the console %d were kept", much, b.Len())
		}
	}
	if _, err := session.Stats(k.ctx(t)); err != nil {
		t.Errorf("after a flood on the console: %v", err)
	}
}

// guestsEnd: a guest that powers off ends its VM, and its console remains.
func guestsEnd(t *testing.T, k *kit) {
	vm, session := k.open(t, k.spec(t))
	k.command(t, session, 1, k.h.Flood(min(k.h.Flooding, tartarus.ConsoleBytes)))
	if err := session.Shutdown(k.ctx(t)); err != nil {
		t.Fatal(err)
	}
	e := await(k.ctx(t), t, vm)
	if e.ByKill || e.Code != 0 || e.Signal != 0 {
		t.Errorf("a guest's own end is told as %+v", e)
	}
	var b bytes.Buffer
	if err := vm.Console(&b); err != nil || b.Len() == 0 {
		t.Errorf("the console of an ended VM: %d bytes, %v", b.Len(), err)
	}
	afterEnd(t, k, vm)
	k.kill(t, vm)
}
