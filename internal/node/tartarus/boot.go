package tartarus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// BootPolicy says how patient Boot is. The zero value is the default.
type BootPolicy struct {
	// Attempts is how often a VM is started at most; 5 if zero.
	Attempts int

	// Timeout is how long the first attempt may take from Start until connect
	// has succeeded; 20 s if zero. Attempt n gets n times as long. A VM that
	// still computes by then is slow, not hung, and gets more: on an overloaded
	// host killing it would only add to the load.
	Timeout time.Duration

	// CPU is how much CPU time a VM may use before its guest answers, whatever
	// the host's load; 30 s if zero. A boot takes about 2 s of it.
	CPU time.Duration

	// GivenUp, if not nil, is told of each VM that is about to be killed, while
	// its console and samples can still be read.
	GivenUp func(attempt int, vm VM, why error)
}

const (
	defaultBootAttempts = 5
	defaultBootTimeout  = 20 * time.Second
	defaultBootCPU      = 30 * time.Second
	bootKillTimeout     = 15 * time.Second
)

// Boot starts a VM and connects to its guest. A VM whose guest is not reached
// in time, or that ends before it is, is killed and started anew: a guest
// kernel may hang while it calibrates its clocks. An error of connect while
// the VM lives and time is left is final, as is an error of Start.
//
// connect must not have ordered the guest to execute anything: it may be
// called again on another VM with the same disks. Boot returns the attempt
// that succeeded, from 1; when it fails no VM is left.
func Boot(ctx context.Context, d Driver, s Spec, connect func(context.Context, VM) error, p BootPolicy) (VM, int, error) {
	attempts, timeout, cpu := p.Attempts, p.Timeout, p.CPU
	if cpu <= 0 {
		cpu = defaultBootCPU
	}
	if attempts <= 0 {
		attempts = defaultBootAttempts
	}
	if timeout <= 0 {
		timeout = defaultBootTimeout
	}
	var given error
	for n := 1; n <= attempts; n++ {
		vm, again, err := bootOnce(ctx, d, s, connect, attempt{n: n, timeout: timeout * time.Duration(n), cpu: cpu, givenUp: p.GivenUp})
		if err == nil {
			return vm, n, nil
		}
		if !again {
			return nil, n, err
		}
		given = err
	}
	return nil, attempts, fault.Wrap(fault.Unavailable, given, "the guest did not come up in %d attempts", attempts).
		WithHint("the host may be overloaded; `tartarus doctor` boots a guest and tells what happens")
}

type attempt struct {
	n       int
	timeout time.Duration
	cpu     time.Duration
	givenUp func(int, VM, error)
}

// bootOnce is one attempt; again says that another one may help.
func bootOnce(ctx context.Context, d Driver, s Spec, connect func(context.Context, VM) error, a attempt) (_ VM, again bool, err error) {
	sctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	began := time.Now()
	vm, err := d.Start(sctx, s)
	if err != nil {
		hung := ctx.Err() == nil && errors.Is(sctx.Err(), context.DeadlineExceeded)
		return nil, hung, fmt.Errorf("attempt %d: %w", a.n, err)
	}
	actx, stop := a.watch(ctx, vm, began)
	defer stop()
	if err = connect(actx, vm); err == nil {
		return vm, false, nil
	}
	switch {
	case ctx.Err() != nil:
	case ends(actx, vm):
		again = true
		err = fmt.Errorf("attempt %d: the VM ended before its guest answered (%s): %w", a.n, vm.Exit(), err)
	case actx.Err() != nil:
		again = true
		err = fmt.Errorf("attempt %d: the guest did not answer in %v: %w", a.n, time.Since(began).Round(time.Millisecond), err)
	}
	if a.givenUp != nil {
		a.givenUp(a.n, vm, err)
	}
	kctx, kcancel := context.WithTimeout(context.WithoutCancel(ctx), bootKillTimeout)
	defer kcancel()
	if kerr := vm.Kill(kctx); kerr != nil {
		// Two VMs on the same disks must never be.
		return nil, false, errors.Join(err, fmt.Errorf("ending vm %q: %w", s.ID, kerr))
	}
	return nil, again, err
}

// A VM that used less than this share of a core in the last quarter of its
// time is hung: an idle guest uses half a percent.
const hungShare = 0.02

// watch returns a context that ends when the VM counts as hung. stop ends the
// watch and waits for it.
func (a attempt) watch(ctx context.Context, vm VM, began time.Time) (_ context.Context, stop func()) {
	actx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		quarter := max(a.timeout/4, time.Nanosecond)
		used, next := 0.0, began
		for {
			next = next.Add(quarter)
			t := time.NewTimer(time.Until(next))
			select {
			case <-actx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			before := used
			if sample, err := vm.Sample(); err == nil {
				used = sample.CPUSeconds
			}
			late := time.Since(began) >= a.timeout
			if late && (used-before < hungShare*quarter.Seconds() || used > a.cpu.Seconds()) {
				return
			}
		}
	}()
	return actx, func() {
		cancel()
		<-done
	}
}

// endGrace is how long after its stream broke a VM may be seen to have ended:
// the stream goes first.
const endGrace = time.Second

// ends reports whether a VM has ended, or does within endGrace.
func ends(ctx context.Context, vm VM) bool {
	t := time.NewTimer(endGrace)
	defer t.Stop()
	select {
	case <-vm.Done():
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	select {
	case <-vm.Done():
		return true
	default:
		return false
	}
}

// String tells the end in a few words, for our log.
func (e Exit) String() string {
	how := fmt.Sprintf("exit status %d", e.Code)
	switch {
	case e.OOMKill:
		how = "killed by the host's memory limit"
	case e.ByKill:
		how = "killed"
	case e.Signal != 0:
		how = fmt.Sprintf("signal %d", e.Signal)
	}
	if e.Stderr != "" {
		how += fmt.Sprintf(", last words %q", e.Stderr)
	}
	return how
}
