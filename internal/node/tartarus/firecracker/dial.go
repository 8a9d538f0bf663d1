package firecracker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
)

// Dial opens the stream to the guest once it listens: see tartarus.VM.
func (v *vm) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := v.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dialling vm %q: %w", v.boot.spec.ID, err)
	}
	return conn, nil
}

// dial tries until the guest answers. A device that nobody serves yet closes
// the stream or says nothing, and so does one whose guest has just come back;
// nothing tells when that is over.
func (v *vm) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-v.done:
			cancel(errEnded)
		case <-stop:
		}
	}()
	defer func() {
		close(stop)
		<-watched
		cancel(nil)
	}()
	select {
	case v.dialing <- struct{}{}:
		defer func() { <-v.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		conn, err := v.try(ctx)
		if err == nil {
			v.replace(conn)
			return conn, nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		if !errors.Is(err, errRefused) && !notThere(err) {
			return nil, err
		}
		if err := rest(ctx, pause); err != nil {
			return nil, context.Cause(ctx)
		}
	}
}

var errRefused = errors.New("nobody listens in the guest")

const (
	answerTimeout = 3 * time.Second // for Firecracker, which gives up after 2 s
	maxAnswer     = 32              // bytes: OK, a port and a newline
)

// try asks for one stream.
func (v *vm) try(ctx context.Context) (_ net.Conn, err error) {
	conn, err := v.connect(ctx, vsockSocket)
	if err != nil {
		return nil, err
	}
	unblock := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		unblock()
		if err == nil && ctx.Err() == nil {
			err = conn.SetDeadline(time.Time{})
		}
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err() // the deadline just set may have undone the unblocking
	}
	// In one write: Firecracker reads the line at once or not at all.
	if _, err := conn.Write([]byte("CONNECT " + strconv.Itoa(guestwire.VsockPort) + "\n")); err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	return conn, readOK(conn)
}

// readOK reads the answer and not a byte more: what follows is the guest's.
func readOK(conn net.Conn) error {
	var line []byte
	for b := make([]byte, 1); len(line) < maxAnswer; line = append(line, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		if b[0] != '\n' {
			continue
		}
		port, ok := bytes.CutPrefix(line, []byte("OK "))
		if _, err := strconv.ParseUint(string(port), 10, 32); ok && err == nil {
			return nil
		}
		break
	}
	return fmt.Errorf("the VMM answered %q and not OK", line)
}

// replace makes conn the stream, and ends the one before.
func (v *vm) replace(conn net.Conn) {
	v.mu.Lock()
	old := v.stream
	v.stream = conn
	v.mu.Unlock()
	if old != nil {
		_ = old.Close() // perhaps by its owner already
	}
	select {
	case <-v.done:
		v.hangUp() // Kill may have come in between
	default:
	}
}

func (v *vm) hangUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stream != nil {
		_ = v.stream.Close()
		v.stream = nil
	}
}
