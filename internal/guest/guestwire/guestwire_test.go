package guestwire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// examples has each message once, with every field set.
var examples = []Message{
	&HelloHost{Nonce: 1, MinVersion: 1, MaxVersion: 2, Generation: 3, Acked: 4, Flows: []FlowOffset{{1, Out, 5}, {1, Err, 6}}},
	&Setup{Req: 1, Hostname: "sb-x", WallClock: -5, Entropy: []byte("random"), MachineID: "ab", User: "sandbox", MemoryBytes: 1 << 30, Processes: 256, Root: RootInitramfs},
	&Setup{Req: 1, Hostname: "sb-x", Entropy: []byte("random"), Network: &Network{MAC: [6]byte{2, 0x74, 172, 16, 0, 2}, Address: [4]byte{172, 16, 0, 2}, Bits: 16, Gateway: [4]byte{172, 16, 0, 1}}},
	&PutFile{Req: 2, Path: "/a/b", Mode: 0o644, Size: 10},
	&FileData{Req: 3, Data: []byte("data")},
	&Part{Req: 4, Data: []byte("part")},
	&Start{Req: 5, Proc: 1, Argv: []string{"a", "", "b"}, Env: []string{"A=b"}, Cwd: "/w", MakeCwd: true, User: "root", StdinOpen: true, TTY: true},
	&Signal{Req: 6, Proc: 1, Signal: 15},
	&StatsRequest{Req: 7},
	&Shutdown{Req: 8},
	&Release{Req: 9, Proc: 1},
	&Data{Proc: 1, Flow: Err, Offset: 1 << 40, Bytes: []byte("x")},
	&Credit{Proc: 1, Flow: In, Acked: 5, Limit: 6},
	&EOF{Proc: 1, Flow: Out, Offset: 7},
	&HelloGuest{Nonce: 1, Version: 1, Generation: 2, LastReq: 3, Ready: true, Flows: []FlowOffset{{1, In, 9}}},
	&Reply{Req: 1, Status: StatusInvalid, Message: "no"},
	&Started{Req: 1, Proc: 2},
	&StartFailed{Req: 1, Proc: 2, Code: 127, Message: "not found"},
	&Exit{Proc: 1, Code: 255, Out: 1, Err: 2, Usage: Usage{1, 2, 3, 4, 5, 6, 7, 8}},
	&Stats{Req: 1, Usage: Usage{MemoryPeak: 1}},
}

func mustAppend(t testing.TB, m Message) []byte {
	t.Helper()
	b, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func read(t testing.TB, b []byte) Message {
	t.Helper()
	typ, payload, err := NewReader(bytes.NewReader(b), false).Next()
	if err != nil {
		t.Fatal(err)
	}
	m, err := decodeFrom(host|guest, typ, payload)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// endsInVersion1 reports whether m's first n bytes are what it was before it
// grew.
func endsInVersion1(m Message, n int) bool {
	s, ok := m.(*Setup)
	if !ok || s.Network == nil {
		return false
	}
	old := *s
	old.Network = nil
	e := encoder{}
	old.encode(&e)
	return len(e.b) == n
}

func TestEveryMessage(t *testing.T) {
	seen := map[Type]bool{}
	for _, m := range examples {
		seen[m.Type()] = true
		b := mustAppend(t, m)
		if got := read(t, b); !reflect.DeepEqual(got, m) {
			t.Errorf("%v: %s", m.Type(), cmp.Diff(m, got))
		}
		if FrameSize(b) != len(b) {
			t.Errorf("%v: size %d, not %d", m.Type(), FrameSize(b), len(b))
		}
		payload := b[headerLen : len(b)-1]
		fresh := frames[m.Type()].make()
		for n := range payload {
			if Decode(fresh, payload[:n]) == nil && !endsInVersion1(m, n) {
				t.Errorf("%v: cut off after %d bytes it is taken", m.Type(), n)
			}
		}
		if Decode(fresh, append(bytes.Clone(payload), 0)) == nil {
			t.Errorf("%v: a trailing byte is taken", m.Type())
		}
	}
	for typ := range frames {
		if Type(typ).valid() && !seen[Type(typ)] {
			t.Errorf("%v has no example", Type(typ))
		}
	}
}

func TestDirections(t *testing.T) {
	for _, m := range examples {
		b := mustAppend(t, m)
		payload := b[headerLen : len(b)-1]
		_, fromHost := DecodeFromHost(m.Type(), payload)
		_, fromGuest := DecodeFromGuest(m.Type(), payload)
		if fromHost == nil == (frames[m.Type()].from&host == 0) || fromGuest == nil == (frames[m.Type()].from&guest == 0) {
			t.Errorf("%v: host %v, guest %v", m.Type(), fromHost, fromGuest)
		}
	}
}

func TestBounds(t *testing.T) {
	for _, m := range []Message{
		&Data{Proc: 1, Flow: Out},
		&Data{Proc: 1, Flow: Out, Bytes: make([]byte, MaxData+1)},
		&Data{Proc: 1, Flow: 3, Bytes: []byte("x")},
		&Data{Proc: 1, Flow: Out, Offset: -1, Bytes: []byte("x")},
		&Credit{Limit: MaxOffset + 1},
		&Setup{Hostname: strings.Repeat("x", MaxName+1)},
		&Setup{Entropy: make([]byte, MaxEntropy+1)},
		&Setup{Network: &Network{}},
		&Setup{Network: &Network{Bits: 31}},
		&Setup{Network: &Network{Bits: 16, MAC: [6]byte{1}}},
		&PutFile{Path: strings.Repeat("x", MaxPath+1)},
		&PutFile{Path: "/x", Mode: 0o1000},
		&PutFile{Path: "/x", Size: MaxFile + 1},
		&Signal{Signal: 65},
		&Reply{Message: strings.Repeat("x", MaxMessage+1)},
		&Reply{Status: 3},
		&Exit{Code: 256},
		&Exit{Code: -1},
		&Exit{Code: 1, Signal: 9},
		&HelloHost{Flows: make([]FlowOffset, MaxFlows+1)},
		&Start{Argv: make([]string, MaxStrings+1)},
		&Start{Argv: []string{strings.Repeat("x", MaxPayload)}},
	} {
		before := []byte("before")
		b, err := Append(before, m)
		if !errors.Is(err, ErrMalformed) || string(b) != "before" {
			t.Errorf("%v: %v", m.Type(), err)
		}
	}
}

func TestLongStart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &Start{Req: rapid.Uint32Range(1, 1000).Draw(t, "req"), Proc: 1}
		for range rapid.IntRange(0, 4).Draw(t, "strings") {
			m.Argv = append(m.Argv, strings.Repeat("x", rapid.IntRange(0, 150_000).Draw(t, "length")))
		}
		b, n, err := AppendStart(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		r := NewReader(bytes.NewReader(b), false)
		var parts []byte
		for i := range n {
			typ, payload, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if i < n-1 {
				var p Part
				if err := Decode(&p, payload); err != nil || typ != TypePart || p.Req != m.Req+uint32(i) {
					t.Fatalf("frame %d: %v, %v, request %d", i, typ, err, p.Req)
				}
				parts = append(parts, p.Data...)
				continue
			}
			var got Start
			if err := Decode(&got, append(parts, payload...)); err != nil || typ != TypeStart {
				t.Fatalf("last frame: %v %v", typ, err)
			}
			if got.Req != m.Req+uint32(n-1) || !cmp.Equal(got.Argv, m.Argv, cmpopts.EquateEmpty()) {
				t.Fatalf("request %d of %d frames from %d", got.Req, n, m.Req)
			}
		}
		if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last frame: %v", err)
		}
	})
	if _, _, err := AppendStart(nil, &Start{Argv: []string{strings.Repeat("x", MaxStart)}}); !errors.Is(err, ErrMalformed) {
		t.Errorf("too long: %v", err)
	}
}

// dribble hands out a stream in pieces of any size.
type dribble struct {
	b   []byte
	rnd *rand.Rand
}

func (d *dribble) Read(p []byte) (int, error) {
	if len(d.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1+d.rnd.IntN(9000))], d.b)
	d.b = d.b[n:]
	return n, nil
}

// Wherever a stream is torn, the reader finds the next hello, and never takes
// what was torn for a whole frame.
func TestTornStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		var stream []byte
		var whole []int // where frames end
		for range rapid.IntRange(1, 5).Draw(t, "frames") {
			data := make([]byte, 1+rnd.IntN(MaxData))
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
			stream, _ = Append(stream, &Data{Proc: 1, Flow: In, Offset: 0, Bytes: data})
			whole = append(whole, len(stream))
		}
		cut := rapid.IntRange(0, len(stream)).Draw(t, "cut")
		complete := 0
		for _, end := range whole {
			if end <= cut {
				complete++
			}
		}
		hello := &HelloHost{Nonce: 77, MinVersion: 1, MaxVersion: 1, Generation: 2}
		torn := append(bytes.Clone(stream[:cut]), Pad()...)
		torn, _ = Append(torn, hello)
		r := NewReader(&dribble{torn, rnd}, true)
		got := 0
		typ, payload, err := r.Next()
		for ; err == nil && typ == TypeData; typ, payload, err = r.Next() {
			got++
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			if err := r.Seek(HelloHostPrefix(), 0); err != nil {
				t.Fatal(err)
			}
			if typ, payload, err = r.Next(); err != nil {
				t.Fatal(err)
			}
		}
		m, err := DecodeFromHost(typ, payload)
		if err != nil || !reflect.DeepEqual(m, hello) {
			t.Fatalf("%+v %v", m, err)
		}
		if got != complete {
			t.Fatalf("%d frames came, %d were whole", got, complete)
		}
	})
}

func TestSeekGivesUp(t *testing.T) {
	r := NewReader(bytes.NewReader(make([]byte, 1<<20)), false)
	if err := r.Seek(HelloGuestPrefix(1), 1<<16); !errors.Is(err, ErrMalformed) {
		t.Errorf("seek: %v", err)
	}
}

func TestReaderRefuses(t *testing.T) {
	long := []byte{byte(TypeData), 0xff, 0xff, 0xff}
	for name, b := range map[string][]byte{
		"unknown type": {200, 0, 0, 0, endMark}, "too long": long, "a zero": {0, 0, 0, 0, 0},
		"no end mark": {byte(TypeShutdown), 0, 0, 0, 0},
	} {
		if _, _, err := NewReader(bytes.NewReader(b), false).Next(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := NewReader(bytes.NewReader([]byte{1, 2}), false).Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", err)
	}
}

// A flow between both ends, over a stream that breaks at any time, delivers
// each byte once and in order, and never goes beyond its window.
func TestFlow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 64).Draw(t, "size")
		s, w := NewSendBuffer(size), NewWindow(size)
		type piece struct {
			off int64
			b   []byte
		}
		var wire []piece       // sent, not received
		var credits [][2]int64 // granted, not arrived
		var put, got, waiting int
		grant := func() { a, l := w.Grant(); credits = append(credits, [2]int64{a, l}) }
		grant()
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				space := s.Space()
				n := rapid.IntRange(0, len(space)).Draw(t, "n")
				for i := range n {
					space[i] = byte(put + i)
				}
				put += n
				s.Commit(n)
			},
			"send": func(t *rapid.T) {
				off, b := s.Next(rapid.IntRange(1, size).Draw(t, "n"))
				if s.Pending() != (len(b) > 0) {
					t.Fatalf("pending %v, %d bytes", s.Pending(), len(b))
				}
				wire = append(wire, piece{off, bytes.Clone(b)})
				s.Sent(len(b))
			},
			"receive": func(t *rapid.T) {
				if len(wire) == 0 {
					return
				}
				p := wire[0]
				wire = wire[1:]
				if len(p.b) == 0 {
					return
				}
				if err := w.Receive(p.off, len(p.b)); err != nil {
					t.Fatal(err)
				}
				for _, c := range p.b {
					if c != byte(got) {
						t.Fatalf("byte %d is %d", got, c)
					}
					got++
				}
				if waiting += len(p.b); waiting > size {
					t.Fatalf("%d bytes wait, the window is %d", waiting, size)
				}
			},
			"take": func(t *rapid.T) {
				n := rapid.IntRange(0, waiting).Draw(t, "n")
				waiting -= n
				if w.Take(n) {
					grant()
				}
			},
			"credit": func(t *rapid.T) {
				if len(credits) == 0 {
					return
				}
				if err := s.Credit(credits[0][0], credits[0][1]); err != nil {
					t.Fatal(err)
				}
				credits = credits[1:]
			},
			"break": func(t *rapid.T) {
				wire, credits = nil, nil
				if err := s.Resume(w.Received()); err != nil {
					t.Fatal(err)
				}
				grant()
			},
		})
		// It never gets stuck: with everything taken, all that was put arrives.
		for got < put {
			before := got
			w.Take(waiting)
			waiting = 0
			wire, credits = nil, nil
			if err := s.Resume(w.Received()); err != nil {
				t.Fatal(err)
			}
			a, l := w.Grant()
			if err := s.Credit(a, l); err != nil {
				t.Fatal(err)
			}
			for off, b := s.Next(size); len(b) > 0; off, b = s.Next(size) {
				if err := w.Receive(off, len(b)); err != nil {
					t.Fatal(err)
				}
				got += len(b)
				waiting += len(b)
				s.Sent(len(b))
			}
			if got == before {
				t.Fatalf("stuck at %d of %d", got, put)
			}
		}
	})
}

func FuzzDecodeFromGuest(f *testing.F) { fuzz(f, guest) }

func FuzzDecodeFromHost(f *testing.F) { fuzz(f, host) }

// fuzz insists that whatever is decoded has exactly one encoding.
func fuzz(f *testing.F, side from) {
	for _, m := range examples {
		b := mustAppend(f, m)
		f.Add(b)
		f.Add(append(make([]byte, 3), b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b), side == host)
		for {
			typ, payload, err := r.Next()
			if err != nil {
				return
			}
			payload = bytes.Clone(payload)
			m, err := decodeFrom(side, typ, payload)
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				continue
			}
			again, err := Append(nil, m)
			if err != nil {
				t.Fatalf("%v was decoded and cannot be encoded: %v", typ, err)
			}
			if !bytes.Equal(again[headerLen:len(again)-1], payload) || again[0] != byte(typ) {
				t.Fatalf("%v has two encodings", typ)
			}
		}
	})
}
