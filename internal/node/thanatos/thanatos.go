// Package thanatos is the termination of sandboxes: the one way to die, with
// many causes.
//
// A Death takes the first cause it is given; that one stays. Carry then asks
// the command to end (SIGTERM, grace), tells it (SIGKILL), and cuts the VM
// off. Each is bounded, so a deaf or hostile guest costs time and no more.
package thanatos

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Linux's numbers; those of this host's headers may be others.
const (
	sigterm = 15
	sigkill = 9
)

// Config are the bounds. Zero fields get their defaults.
type Config struct {
	Tell   time.Duration // from SIGKILL until the VM is cut; 2 s
	Last   time.Duration // for the last readings; 2 s
	Cut    time.Duration // for the end of the VM; 15 s
	Logger *slog.Logger  // nil: discard
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.Tell, 2*time.Second)
	def(&c.Last, 2*time.Second)
	def(&c.Cut, 15*time.Second)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Order is a cause to die, and how long the command may take to obey.
type Order struct {
	Cause   sandbox.Cause
	Message string        // for the record; may be empty
	Grace   time.Duration // between asking and telling; 0 tells at once
}

// Death is the end of one sandbox. All methods may be called at once.
type Death struct {
	cfg   Config
	taken chan struct{} // closed by the first Take

	mu      sync.Mutex
	first   Order
	at      time.Time     // of the first Take; zero before
	until   time.Time     // when the grace is over
	sooner  chan struct{} // closed and replaced when until moves
	carried chan struct{} // nil unless a Carry runs; closed at its end
	cut     bool          // the VM is gone
}

// New makes the death of one sandbox.
func New(cfg Config) *Death {
	return &Death{cfg: cfg.withDefaults(), taken: make(chan struct{}), sooner: make(chan struct{})}
}

// Take hands over a cause and reports whether it was the first. A later one
// changes nothing but the grace, which it may shorten.
func (d *Death) Take(o Order) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	until := time.Now().Add(max(0, o.Grace))
	if d.at.IsZero() {
		d.first, d.at, d.until = o, time.Now(), until
		close(d.taken)
		return true
	}
	if until.Before(d.until) {
		d.until = until
		close(d.sooner)
		d.sooner = make(chan struct{})
	}
	return false
}

// Taken is closed once there is a cause.
func (d *Death) Taken() <-chan struct{} { return d.taken }

// First is the first cause and when it came; false while there is none.
func (d *Death) First() (Order, time.Time, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.first, d.at, !d.at.IsZero()
}

// Body is what dies. The zero value is a sandbox of which there is nothing.
type Body struct {
	// Signal sends a signal to the command; nil if there is none to speak to.
	Signal func(ctx context.Context, sig int) error

	// Ended is closed when the command has ended and its output is in, or
	// nobody can know any more. It goes with Signal.
	Ended <-chan struct{}

	// Last takes the last readings before the VM is cut; nil for none.
	Last func(ctx context.Context)

	// Kill ends the VM and waits until it is gone; nil if there is none.
	Kill func(ctx context.Context) error
}

// Carry carries the death out and returns when the VM is gone; there must be
// a cause. A second Carry waits for the first and tries the cut again only if
// that failed. The end of ctx skips to the cut, which has its own bound: an
// error means that the VM may still be there.
func (d *Death) Carry(ctx context.Context, b Body) error {
	for {
		d.mu.Lock()
		other := d.carried
		if other == nil {
			d.carried = make(chan struct{})
		}
		gone := d.cut
		d.mu.Unlock()
		if other == nil {
			return d.carry(ctx, b, gone)
		}
		<-other // bounded as a whole
	}
}

func (d *Death) carry(ctx context.Context, b Body, gone bool) error {
	defer func() {
		d.mu.Lock()
		close(d.carried)
		d.carried = nil
		d.mu.Unlock()
	}()
	if gone {
		return nil
	}
	if b.Signal != nil {
		d.quiet(ctx, b)
	}
	if b.Last != nil {
		lctx, cancel := context.WithTimeout(ctx, d.cfg.Last)
		b.Last(lctx)
		cancel()
	}
	if b.Kill != nil {
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.Cut)
		defer cancel()
		if err := b.Kill(kctx); err != nil {
			return fmt.Errorf("cutting the VM off: %w", err)
		}
	}
	d.mu.Lock()
	d.cut = true
	d.mu.Unlock()
	return nil
}

// quiet asks and tells the command to end.
func (d *Death) quiet(ctx context.Context, b Body) {
	if closed(b.Ended) {
		return
	}
	if until, _ := d.grace(); time.Until(until) > 0 && d.signal(ctx, b, sigterm) && d.waitGrace(ctx, b) {
		return
	}
	if closed(b.Ended) || ctx.Err() != nil || !d.signal(ctx, b, sigkill) {
		return
	}
	t := time.NewTimer(d.cfg.Tell)
	defer t.Stop()
	select {
	case <-b.Ended:
	case <-t.C:
		d.cfg.Logger.Warn("the guest did not end the command when told to")
	case <-ctx.Done():
	}
}

// waitGrace reports whether the command ended within the grace.
func (d *Death) waitGrace(ctx context.Context, b Body) bool {
	for {
		until, sooner := d.grace()
		t := time.NewTimer(time.Until(until))
		select {
		case <-b.Ended:
			t.Stop()
			return true
		case <-t.C:
			return false
		case <-sooner:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
}

func (d *Death) grace() (time.Time, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.until, d.sooner
}

// signal reports whether the signal was handed over.
func (d *Death) signal(ctx context.Context, b Body, sig int) bool {
	sctx, cancel := context.WithTimeout(ctx, d.cfg.Tell)
	defer cancel()
	if err := b.Signal(sctx, sig); err != nil {
		d.cfg.Logger.Info("the guest took no signal", "signal", sig, "error", err)
		return false
	}
	return true
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
