package fakevm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// bench is a VM of a driver with a script, and the files it is made of.
type bench struct {
	driver *fakevm.Driver
	spec   tartarus.Spec
	vm     tartarus.VM
}

func newBench(t *testing.T, s fakevm.Script) *bench {
	t.Helper()
	b := &bench{driver: fakevm.New(fakevm.Config{Script: func(int, tartarus.Spec) fakevm.Script { return s }})}
	b.spec = tartarus.Spec{ID: sandbox.MakeID("01arz3ndektsv4rrffq69g5fav"), Dir: t.TempDir(), Scratch: filepath.Join(t.TempDir(), "scratch"), VCPUs: 1}
	fill(t, &b.spec)
	var err error
	if b.vm, err = b.driver.Start(t.Context(), b.spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.vm.Kill(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) session(t *testing.T) *guestdial.Session {
	t.Helper()
	s, err := guestdial.Open(t.Context(), guestdial.Config{Dial: b.vm.Dial, RedialTimeout: time.Second, DrainTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Setup(t.Context(), guestwire.Setup{Hostname: "h"}); err != nil {
		t.Fatal(err)
	}
	return s
}

// outputs collects what a process says.
type outputs struct {
	mu  sync.Mutex
	out bytes.Buffer
	err bytes.Buffer
}

func (o *outputs) sink(f guestwire.Flow, _ int64, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if f == guestwire.Out {
		o.out.Write(b)
	} else {
		o.err.Write(b)
	}
}

// TestCommands: what the table of commands promises.
func TestCommands(t *testing.T) {
	s := newBench(t, fakevm.Script{Commands: map[string]fakevm.Command{
		"mine": func(_ context.Context, p *fakevm.Proc) int {
			fmt.Fprintf(p.Stdout, "%s %s %q", p.Cwd, p.User, p.File("/work/a"))
			return 7
		},
	}}).session(t)
	if err := s.PutFile(t.Context(), "/work/a", 0o644, []byte("content")); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		start    guestwire.Start
		stdin    string
		sig      int
		out, err string
		code     int32
		signal   uint8
	}{
		{start: guestwire.Start{Argv: []string{"echo", "a", "b"}}, out: "a b\n"},
		{start: guestwire.Start{Argv: []string{"warn", "a"}}, err: "a\n"},
		{start: guestwire.Start{Argv: []string{"exit", "42"}}, code: 42},
		{start: guestwire.Start{Argv: []string{"true"}}},
		{start: guestwire.Start{Argv: []string{"false"}}, code: 1},
		{start: guestwire.Start{Argv: []string{"cat"}, StdinOpen: true}, stdin: strings.Repeat("x", 300_000), out: strings.Repeat("x", 300_000)},
		{start: guestwire.Start{Argv: []string{"cat"}}},
		{start: guestwire.Start{Argv: []string{"cat", "/work/a"}}, out: "content"},
		{start: guestwire.Start{Argv: []string{"cat", "/work/b"}}, err: "cat: /work/b: not found\n", code: 1},
		{start: guestwire.Start{Argv: []string{"env", "A"}, Env: []string{"AA=1", "A=2"}}, out: "2\n"},
		{start: guestwire.Start{Argv: []string{"sleep", "0.01"}}},
		{start: guestwire.Start{Argv: []string{"sleep", "forever"}}, sig: 15, signal: 15},
		{start: guestwire.Start{Argv: []string{"oom"}}, signal: 9},
		{start: guestwire.Start{Argv: []string{"flood", "64"}}, out: fmt.Sprintf("%063d\n", 0)},
		{start: guestwire.Start{Argv: []string{"mine"}, Cwd: "/work", User: "root"}, out: `/work root "content"`, code: 7},
	} {
		var o outputs
		c.start.Proc = uint32(i + 1)
		p, err := s.Start(t.Context(), c.start, o.sink)
		if err != nil {
			t.Fatalf("%q: %v", c.start.Argv, err)
		}
		if c.stdin != "" {
			if _, err := io.WriteString(p.Stdin(), c.stdin); err != nil {
				t.Error(err)
			}
			if err := p.Stdin().Close(); err != nil {
				t.Error(err)
			}
		}
		if c.sig != 0 {
			if err := p.Signal(t.Context(), c.sig); err != nil {
				t.Error(err)
			}
		}
		e, err := p.Wait(t.Context())
		if err != nil || e.Code != c.code || e.Signal != c.signal || o.out.String() != c.out || o.err.String() != c.err {
			t.Errorf("%q: %+v, %v, out %.100q, err %.100q", c.start.Argv, e, err, o.out.String(), o.err.String())
		}
	}
	st, err := s.Stats(t.Context())
	if err != nil || st.Usage.OOMKills != 1 {
		t.Errorf("stats %+v, %v", st, err)
	}
	_, err = s.Start(t.Context(), guestwire.Start{Proc: 99, Argv: []string{"nonsense"}}, func(guestwire.Flow, int64, []byte) {})
	var no *guestdial.StartError
	if !errors.As(err, &no) {
		t.Errorf("an unknown command: %v", err)
	}
}

// TestStubborn: SIGTERM is ignored, SIGKILL is not; a flood is no reason to
// wait for either.
func TestStubborn(t *testing.T) {
	s := newBench(t, fakevm.Script{}).session(t)
	said := make(chan struct{}, 1)
	p, err := s.Start(t.Context(), guestwire.Start{Proc: 1, Argv: []string{"stubborn"}}, func(guestwire.Flow, int64, []byte) { said <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	<-said
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Signal(t.Context(), 15); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(ctx); err == nil {
		t.Errorf("SIGTERM ended it: %+v", e)
	}
	if err := p.Signal(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(t.Context()); err != nil || e.Signal != 9 {
		t.Errorf("SIGKILL: %+v, %v", e, err)
	}
	f, err := s.Start(t.Context(), guestwire.Start{Proc: 2, Argv: []string{"flood"}}, func(guestwire.Flow, int64, []byte) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Signal(t.Context(), 9); err != nil {
		t.Fatal(err)
	}
	if e, err := f.Wait(t.Context()); err != nil || e.Signal != 9 {
		t.Errorf("a flood: %+v, %v", e, err)
	}
}

// TestLies: each way to break the protocol is one that the host finds out; a
// lie that the protocol allows is a process whose output never comes.
func TestLies(t *testing.T) {
	for _, kind := range []string{"garbage", "huge", "offset", "credit", "again", "unknown", "exit"} {
		t.Run(kind, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			s := newBench(t, fakevm.Script{}).session(t)
			// Nothing is taken, so no new credit is given.
			p, err := s.Start(ctx, guestwire.Start{Proc: 1, Argv: []string{"lie", kind}}, func(guestwire.Flow, int64, []byte) { <-s.Done() })
			if kind == "exit" {
				if err == nil {
					_, err = p.Wait(ctx)
				}
				if p == nil || p.Undelivered() != 1<<40 || ctx.Err() != nil {
					t.Errorf("the exit came to %v", err)
				}
				return
			}
			select {
			case <-s.Done():
			case <-ctx.Done():
				t.Fatal("the host believes it")
			}
			if !errors.Is(s.Err(), guestdial.ErrGuest) {
				t.Errorf("the session ended as %v", s.Err())
			}
		})
	}
}

// TestEnds: the ways in which a VM ends without being killed.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		script fakevm.Script
		run    []string
		want   tartarus.Exit
	}{
		"by itself": {script: fakevm.Script{EndAfter: time.Millisecond, End: tartarus.Exit{Code: 3, Stderr: "oh", OOMKill: true}}, want: tartarus.Exit{Code: 3, Stderr: "oh", OOMKill: true}},
		"crash":     {run: []string{"crash"}, want: tartarus.Exit{Code: -1, Signal: 9}},
		"poweroff":  {run: []string{"poweroff"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, c.script)
			if c.run != nil {
				s := b.session(t)
				if p, err := s.Start(t.Context(), guestwire.Start{Proc: 1, Argv: c.run}, func(guestwire.Flow, int64, []byte) {}); err == nil {
					if e, err := p.Wait(t.Context()); err == nil {
						t.Errorf("its process ended by %+v", e)
					}
				}
			}
			<-b.vm.Done()
			e := b.vm.Exit()
			e.At = time.Time{}
			if e != c.want {
				t.Errorf("it ended by %+v", e)
			}
			if b.driver.Live() != 0 {
				t.Error("it counts as living")
			}
		})
	}
}

// TestRefusals: a guest may refuse what it is asked, or say nothing.
func TestRefusals(t *testing.T) {
	b := newBench(t, fakevm.Script{SetupErr: "no disk", PutFileErr: "no room"})
	s, err := guestdial.Open(t.Context(), guestdial.Config{Dial: b.vm.Dial})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() // ended with the VM
	if err := s.Setup(t.Context(), guestwire.Setup{}); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("setup: %v", err)
	}
	if err := s.PutFile(t.Context(), "/a", 0o600, []byte("x")); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("file: %v", err)
	}
	m := newBench(t, fakevm.Script{}).session(t)
	p, err := m.Start(t.Context(), guestwire.Start{Proc: 1, Argv: []string{"mute"}}, func(guestwire.Flow, int64, []byte) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for err == nil { // until the command has got as far, or ctx ends
		short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err = m.Stats(short)
		cancel()
		if ctx.Err() != nil && err == nil {
			t.Fatal("the guest does not become mute")
		}
	}
	if err := p.Signal(ctx, 9); err == nil {
		t.Error("a mute guest answers a signal")
	}
	if e, err := p.Wait(ctx); err == nil {
		t.Errorf("a mute guest tells of an end: %+v", e)
	}
}

// TestOwnGuest: a test may speak for the guest itself.
func TestOwnGuest(t *testing.T) {
	b := newBench(t, fakevm.Script{Guest: func(_ context.Context, c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}})
	c, err := b.vm.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = c.Write([]byte("echo")) }()
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "echo" {
		t.Errorf("%q, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestThousand: a thousand fakes run at once, each executes once, and nothing
// is left of them.
func TestThousand(t *testing.T) {
	const n = 1000
	var mu sync.Mutex
	executed := map[sandbox.ID]int{}
	d := fakevm.New(fakevm.Config{OnExecute: func(id sandbox.ID, _ uint32, argv []string) {
		mu.Lock()
		defer mu.Unlock()
		executed[id]++
	}})
	var base tartarus.Spec
	base.Scratch = filepath.Join(t.TempDir(), "scratch")
	fill(t, &base)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	vms := make([]tartarus.VM, n)
	for i := range n {
		s := base
		s.ID = sandbox.MakeID(fmt.Sprintf("01arz3ndektsv4rrffq69g%04d", i))
		s.VCPUs, s.Dir = 1, t.TempDir()
		s.Scratch = filepath.Join(s.Dir, "scratch")
		fill(t, &s)
		wg.Go(func() {
			vm, err := d.Start(t.Context(), s)
			if err != nil {
				t.Error(err)
				return
			}
			vms[i] = vm
			runOne(t, vm, i)
		})
	}
	wg.Wait()
	if d.Live() != n || d.Most() != n || d.Started() != n {
		t.Errorf("%d live, %d at most, %d started", d.Live(), d.Most(), d.Started())
	}
	for _, vm := range slices.DeleteFunc(vms, func(vm tartarus.VM) bool { return vm == nil }) {
		wg.Go(func() {
			if err := vm.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(executed) != n || d.Live() != 0 {
		t.Errorf("%d executed, %d live", len(executed), d.Live())
	}
	for id, times := range executed {
		if times != 1 {
			t.Errorf("%s executed %d times", id, times)
		}
	}
	if after := runtime.NumGoroutine(); after > before+10 {
		t.Errorf("%d goroutines became %d", before, after)
	}
}

func runOne(t *testing.T, vm tartarus.VM, i int) {
	s, err := guestdial.Open(t.Context(), guestdial.Config{Dial: vm.Dial})
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close() // the VM lives on
	var o outputs
	err = s.Setup(t.Context(), guestwire.Setup{})
	if err == nil {
		var p *guestdial.Process
		if p, err = s.Start(t.Context(), guestwire.Start{Proc: 1, Argv: []string{"echo", fmt.Sprint(i)}}, o.sink); err == nil {
			_, err = p.Wait(t.Context())
		}
	}
	if want := fmt.Sprintln(i); err != nil || o.out.String() != want {
		t.Errorf("VM %d says %q, %v", i, o.out.String(), err)
	}
}
