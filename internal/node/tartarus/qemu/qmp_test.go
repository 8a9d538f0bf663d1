package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\n"

// fakeQEMU is the other end of a monitor, scripted by answer: what to write
// for each command.
func fakeQEMU(t *testing.T, hello string, answer func(command string, id uint64) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = ours.Close()
		_ = theirs.Close()
		wg.Wait()
	})
	wg.Go(func() {
		if _, err := theirs.Write([]byte(hello)); err != nil {
			return
		}
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var c struct {
				Execute string `json:"execute"`
				ID      uint64 `json:"id"`
			}
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("the client wrote %q", lines.Text())
				return
			}
			if _, err := theirs.Write([]byte(answer(c.Execute, c.ID))); err != nil {
				return
			}
		}
	})
	return ours
}

func ok(id uint64) string { return fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", id) }

func opened(t *testing.T, answer func(string, uint64) string, onEvent func(string, json.RawMessage)) *monitor {
	t.Helper()
	conn := fakeQEMU(t, greeting, func(c string, id uint64) string {
		if c == "qmp_capabilities" {
			return ok(id)
		}
		return answer(c, id)
	})
	m, err := openMonitor(t.Context(), conn, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return m
}

func TestMonitorOpens(t *testing.T) {
	for name, c := range map[string]struct{ hello, says string }{
		"no greeting":     {`{"return": {}}` + "\n", "no greeting"},
		"garbage":         {"\x00\xff\n", "invalid character"},
		"endless line":    {strings.Repeat("x", maxLine+8192), "a line of more than"},
		"nothing at once": {"", "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			m, err := openMonitor(ctx, fakeQEMU(t, c.hello, func(string, uint64) string { return "" }), nil)
			if m != nil || err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("capabilities refused", func(t *testing.T) {
		_, err := openMonitor(t.Context(), fakeQEMU(t, greeting, func(_ string, id uint64) string {
			return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`+"\n", id)
		}), nil)
		var q *qmpError
		if !errors.As(err, &q) || q.Desc != "no" {
			t.Errorf("got %v", err)
		}
	})
}

func TestMonitorCalls(t *testing.T) {
	events := make(chan string, 8)
	m := opened(t, func(c string, id uint64) string {
		switch c {
		case "query-status":
			// An event first, an answer to nobody, one without a number.
			return `{"event": "STOP", "data": {"a": 1}, "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n" +
				`{"return": {"status": "lie"}, "id": 4711}` + "\n" + `{"return": {}}` + "\n" +
				fmt.Sprintf(`{"return": {"status": "paused"}, "id": %d}`+"\n", id)
		case "bad":
			return fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "\u001b[2J"}, "id": %d}`+"\n", id)
		case "text":
			return fmt.Sprintf(`{"return": "text", "id": %d}`+"\n", id)
		}
		return "" // never answered
	}, func(name string, data json.RawMessage) { events <- name + string(data) })
	var s struct{ Status string }
	if err := m.call(t.Context(), "query-status", nil, &s); err != nil || s.Status != "paused" {
		t.Errorf("%+v, %v", s, err)
	}
	if e := <-events; e != `STOP{"a": 1}` {
		t.Errorf("event %q", e)
	}
	err := m.call(t.Context(), "bad", map[string]any{"x": 1}, nil)
	var q *qmpError
	if !errors.As(err, &q) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("an error is told as %q", err)
	}
	if err := m.call(t.Context(), "text", nil, &s); err == nil {
		t.Error("a text was taken for an object")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.call(ctx, "silence", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an unanswered command: %v", err)
	}
	if err := m.call(t.Context(), "query-status", nil, &s); err != nil {
		t.Errorf("after an unanswered command: %v", err)
	}
	m.mu.Lock()
	if len(m.waiting) != 0 {
		t.Errorf("%d commands wait for ever", len(m.waiting))
	}
	m.mu.Unlock()
}

// TestMonitorEnds: whoever waits for an answer learns that there is none.
func TestMonitorEnds(t *testing.T) {
	for name, last := range map[string]string{
		"garbage": "}\n", "two kinds": `{"return": {}, "event": "X"}` + "\n", "no kind": "{}\n",
		"long": strings.Repeat(" ", maxLine) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			m := opened(t, func(string, uint64) string { return last }, nil)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if err := m.call(t.Context(), "x", nil, nil); err == nil {
						t.Error("it was answered")
					}
				})
			}
			wg.Wait()
			<-m.done
			if err := m.call(t.Context(), "x", nil, nil); !errors.Is(err, errMonitorClosed) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		m := opened(t, func(string, uint64) string { return "" }, nil)
		got := make(chan error)
		go func() { got <- m.call(t.Context(), "x", nil, nil) }()
		m.close()
		if err := <-got; !errors.Is(err, errMonitorClosed) && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "closed pipe") {
			t.Errorf("got %v", err)
		}
		m.close()
	})
}

// TestMonitorOrder: answers may come in any order, each finds its command.
func TestMonitorOrder(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(r, "commands")
		ours, theirs := net.Pipe()
		defer theirs.Close() // a pipe
		perm := rapid.Permutation(indices(n)).Draw(r, "answers")
		go answerAll(theirs, perm)
		m, err := openMonitor(t.Context(), ours, func(string, json.RawMessage) {})
		if err != nil {
			r.Fatal(err)
		}
		defer m.close()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				var got string
				want := fmt.Sprintf("c%d", i)
				if err := m.call(t.Context(), want, nil, &got); err != nil || got != want {
					t.Errorf("%s got %q, %v", want, got, err)
				}
			})
		}
		wg.Wait()
	})
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// answerAll hears as many commands as perm has entries, then answers each with
// its name, in that order.
func answerAll(conn net.Conn, perm []int) {
	_, _ = conn.Write([]byte(greeting))
	type command struct {
		Execute string `json:"execute"`
		ID      uint64 `json:"id"`
	}
	var heard []command
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var c command
		if json.Unmarshal(lines.Bytes(), &c) != nil {
			return
		}
		if c.Execute == "qmp_capabilities" {
			_, _ = conn.Write([]byte(ok(c.ID)))
			continue
		}
		if heard = append(heard, c); len(heard) == len(perm) {
			for _, i := range perm {
				_, _ = fmt.Fprintf(conn, `{"return": %q, "id": %d}`+"\n", heard[i].Execute, heard[i].ID)
			}
		}
	}
}

// FuzzDecode: no line makes the decoder panic, and what it takes is of one
// kind only.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		greeting, `{"return": {}, "id": 1}`, `{"error": {"class": "a", "desc": "b"}}`, `{"event": "SHUTDOWN", "data": {"guest": true}}`,
		`{"return": null}`, `{"id": -1, "return": 0}`, `{"QMP": null, "event": ""}`, `[]`, `{"return": {}, "event": "X"}`, "\x00", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			return
		}
		kinds := 0
		for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
			if is {
				kinds++
			}
		}
		if kinds != 1 || !json.Valid(line) {
			t.Errorf("%q is of %d kinds", line, kinds)
		}
		if m.Error != nil && strings.ContainsAny(m.Error.Error(), "\x1b\n\x00") {
			t.Errorf("%q is told raw: %q", line, m.Error)
		}
	})
}
