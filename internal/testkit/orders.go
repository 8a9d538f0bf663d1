// Package testkit holds what the tests of the whole share: an eye on what
// really reaches a guest, and an inventory of what a host has.
package testkit

import (
	"context"
	"io"
	"net"
	"sync"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// WatchOrders wraps a driver so that note is called before each order to
// execute a run's command leaves for its guest: it reads along what the host
// writes. An order that is sent again after the stream to the same VM broke is
// the same order. Whose it is, the guest was told last, for a VM may have waited
// for its sandbox; what it ran before then is nobody's.
func WatchOrders(d tartarus.Driver, note func(sandbox.ID)) tartarus.Driver {
	return watched{Driver: d, note: note}
}

type watched struct {
	tartarus.Driver
	note func(sandbox.ID)
}

func (w watched) Start(ctx context.Context, s tartarus.Spec) (tartarus.VM, error) {
	vm, err := w.Driver.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return &watchedVM{VM: vm, note: w.note}, nil
}

type watchedVM struct {
	tartarus.VM
	note func(sandbox.ID)

	mu      sync.Mutex
	of      sandbox.ID // whose the guest is; guarded by mu
	ordered bool       // guarded by mu
}

// called is told each time that the guest gets a name.
func (v *watchedVM) called(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of = sandbox.ID(name)
}

// starts is told each time that the guest is ordered to start a process.
func (v *watchedVM) starts() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.of.Valid() && !v.ordered {
		v.ordered = true
		v.note(v.of)
	}
}

func (v *watchedVM) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := v.VM.Dial(ctx)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	c := &readAlong{Conn: conn, tee: w, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		r.CloseWithError(v.watchFrames(r))
	}()
	return c, nil
}

func (v *watchedVM) watchFrames(r io.Reader) error {
	frames := guestwire.NewReader(r, true)
	for {
		t, payload, err := frames.Next()
		if err != nil {
			return err
		}
		switch t {
		case guestwire.TypeSetup:
			m, err := guestwire.DecodeFromHost(t, payload)
			if err != nil {
				return err
			}
			v.called(m.(*guestwire.Setup).Hostname)
		case guestwire.TypeStart:
			v.starts()
		}
	}
}

// readAlong is a connection whose written bytes are read by another, before
// they leave.
type readAlong struct {
	net.Conn
	tee  *io.PipeWriter
	done chan struct{}
}

func (c *readAlong) Write(b []byte) (int, error) {
	if _, err := c.tee.Write(b); err != nil {
		return 0, err // what cannot be read must not leave unseen
	}
	return c.Conn.Write(b)
}

func (c *readAlong) Close() error {
	err := c.Conn.Close()
	c.tee.Close()
	<-c.done
	return err
}
