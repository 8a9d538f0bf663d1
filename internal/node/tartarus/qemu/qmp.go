package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxLine bounds a line from QEMU. The longest that is asked for is the
// console's ring in base64, 88 KiB.
const maxLine = 256 << 10

// writeTimeout bounds the sending of one command: they are far smaller than a
// socket's buffer, so only a QEMU that no longer reads makes it matter.
const writeTimeout = 5 * time.Second

// message is one line from QEMU: a greeting, a reply or an event. After a
// break-out it is written by an attacker.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	ID       *uint64         `json:"id"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Error is what QEMU says.
func (e *qmpError) Error() string { return fmt.Sprintf("qemu: %.512q (%.64q)", e.Desc, e.Class) }

// decode reads one line. A message is exactly one of the four kinds.
func decode(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("qmp: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, fmt.Errorf("qmp: a message of %d kinds", kinds)
	}
	return m, nil
}

// errMonitorClosed is what commands get once the monitor has ended.
var errMonitorClosed = errors.New("qmp: the monitor is closed")

// monitor is a QMP session. Its reader goroutine ends when the connection
// does; close waits for it.
type monitor struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage) // called by the reader, must not block
	done    chan struct{}                           // closed when the reader has ended

	writing sync.Mutex // held while a command is written

	mu      sync.Mutex
	nextID  uint64                  // guarded by mu
	waiting map[uint64]chan message // guarded by mu; each has room for one; nil once the reader ended
	err     error                   // guarded by mu; why the reader ended
}

// openMonitor reads QEMU's greeting and leaves the negotiation mode. It owns
// conn, also when it fails.
func openMonitor(ctx context.Context, conn net.Conn, onEvent func(string, json.RawMessage)) (*monitor, error) {
	m := &monitor{conn: conn, onEvent: onEvent, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	r := bufio.NewReader(conn)
	err := readGreeting(r)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("waiting for qemu's greeting: %w", err)
	}
	go m.read(r)
	if err := m.call(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func readGreeting(r *bufio.Reader) error {
	line, err := readLine(r, nil)
	if err != nil {
		return err
	}
	msg, err := decode(line)
	if err != nil {
		return err
	}
	if msg.Greeting == nil {
		return errors.New("qmp: the first message is no greeting")
	}
	return nil
}

// readLine reads one line of at most maxLine bytes into buf.
func readLine(r *bufio.Reader, buf []byte) ([]byte, error) {
	buf = buf[:0]
	for {
		part, err := r.ReadSlice('\n')
		if len(buf)+len(part) > maxLine {
			return nil, fmt.Errorf("qmp: a line of more than %d bytes", maxLine)
		}
		buf = append(buf, part...)
		switch {
		case err == nil:
			return bytes.TrimRight(buf, "\r\n"), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(buf) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// read hands replies and events out until the connection ends.
func (m *monitor) read(r *bufio.Reader) {
	defer close(m.done)
	var buf []byte
	for {
		line, err := readLine(r, buf)
		if err == nil {
			buf = line
			var msg message
			if msg, err = decode(line); err == nil {
				m.deliver(msg)
				continue
			}
		}
		m.mu.Lock()
		m.err = err
		for _, c := range m.waiting {
			close(c)
		}
		m.waiting = nil
		m.mu.Unlock()
		_ = m.conn.Close()
		return
	}
}

func (m *monitor) deliver(msg message) {
	if msg.Event != "" {
		m.onEvent(msg.Event, msg.Data)
		return
	}
	if msg.ID == nil {
		return // no answer to a command of ours
	}
	m.mu.Lock()
	c, ok := m.waiting[*msg.ID]
	delete(m.waiting, *msg.ID)
	m.mu.Unlock()
	if ok {
		c <- msg // never blocks: one message per entry, and room for it
	}
}

// request is one command, as a line.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// call runs a command and decodes its result, unless result is nil. When ctx
// ends first the command may still be carried out.
func (m *monitor) call(ctx context.Context, command string, args, result any) error {
	id, reply, err := m.expect()
	if err != nil {
		return err
	}
	line, err := json.Marshal(request{command, args, id})
	if err == nil {
		err = m.send(append(line, '\n'))
	}
	if err != nil {
		m.forget(id)
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	return m.await(ctx, command, id, reply, result)
}

// await waits for the answer to a command that was sent.
func (m *monitor) await(ctx context.Context, command string, id uint64, reply chan message, result any) error {
	select {
	case msg, ok := <-reply:
		switch {
		case !ok:
			return fmt.Errorf("qmp %s: %w", command, m.why())
		case msg.Error != nil:
			return fmt.Errorf("qmp %s: %w", command, msg.Error)
		case result != nil:
			if err := json.Unmarshal(msg.Return, result); err != nil {
				return fmt.Errorf("qmp %s: %w", command, err)
			}
		}
		return nil
	case <-ctx.Done():
		m.forget(id)
		return fmt.Errorf("qmp %s: %w", command, ctx.Err())
	}
}

func (m *monitor) expect() (uint64, chan message, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting == nil {
		return 0, nil, errMonitorClosed
	}
	m.nextID++
	c := make(chan message, 1)
	m.waiting[m.nextID] = c
	return m.nextID, c, nil
}

func (m *monitor) forget(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, id)
}

func (m *monitor) why() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil || errors.Is(m.err, io.EOF) || errors.Is(m.err, net.ErrClosed) {
		return errMonitorClosed
	}
	return m.err
}

func (m *monitor) send(line []byte) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	if err := m.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := m.conn.Write(line)
	return err
}

// close ends the session and waits for its reader. It may be called again.
func (m *monitor) close() {
	_ = m.conn.Close()
	<-m.done
}
