package fakevm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Builtins tells the commands that every fake guest has, for tests to look up.
//
//	true, false, exit N
//	echo WORD…            to stdout; warn WORD… to stderr
//	cat [PATH]            stdin, or a file that the host put there
//	env NAME              the variable's value
//	sleep SECONDS         may be a fraction; "sleep forever"
//	stubborn              ignores SIGTERM until it is killed
//	flood BYTES           to stdout, as fast as it goes
//	console BYTES         to the console
//	oom                   counts an OOM kill and dies of it
//	lie KIND              breaks the protocol: garbage, huge, offset, again, unknown, exit (of output
//	                      that never comes), credit (certain only while the host takes nothing)
//	mute                  the guest says nothing more
//	crash                 the VM ends as if its VMM was killed
//	poweroff              the guest ends itself
func Builtins() []string {
	names := make([]string, 0, len(builtins))
	for n := range builtins {
		names = append(names, n)
	}
	return names
}

var builtins = map[string]Command{
	"true":     func(context.Context, *Proc) int { return 0 },
	"false":    func(context.Context, *Proc) int { return 1 },
	"exit":     func(_ context.Context, p *Proc) int { return int(p.number(1, 0)) },
	"echo":     func(_ context.Context, p *Proc) int { return say(p.Stdout, p.Argv[1:]) },
	"warn":     func(_ context.Context, p *Proc) int { return say(p.Stderr, p.Argv[1:]) },
	"cat":      cat,
	"env":      env,
	"sleep":    doze,
	"stubborn": stubborn,
	"flood":    flood,
	"console":  func(_ context.Context, p *Proc) int { return fill(p.g.vm.ring, p.number(1, 1<<20)) },
	"oom":      oom,
	"lie":      lie,
	"mute":     func(ctx context.Context, p *Proc) int { p.Mute(); <-ctx.Done(); return 0 },
	"crash":    end(tartarus.Exit{Code: -1, Signal: int(syscall.SIGKILL)}),
	"poweroff": end(tartarus.Exit{}),
}

// word is argument i, or "".
func (p *Proc) word(i int) string {
	if i < len(p.Argv) {
		return p.Argv[i]
	}
	return ""
}

func (p *Proc) number(i int, without int64) int64 {
	n, err := strconv.ParseInt(p.word(i), 10, 64)
	if err != nil {
		return without
	}
	return n
}

func say(w io.Writer, words []string) int {
	if _, err := fmt.Fprintln(w, strings.Join(words, " ")); err != nil {
		return 1
	}
	return 0
}

func cat(_ context.Context, p *Proc) int {
	from := p.Stdin
	if path := p.word(1); path != "" {
		b := p.File(path)
		if b == nil {
			say(p.Stderr, []string{"cat:", path + ":", "not found"})
			return 1
		}
		from = bytes.NewReader(b)
	}
	if _, err := io.Copy(p.Stdout, from); err != nil {
		return 1
	}
	return 0
}

func env(_ context.Context, p *Proc) int {
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, p.word(1)+"="); ok {
			return say(p.Stdout, []string{v})
		}
	}
	return 1
}

func doze(ctx context.Context, p *Proc) int {
	seconds, err := strconv.ParseFloat(p.word(1), 64)
	if err != nil {
		<-ctx.Done()
		return 0
	}
	_ = sleep(ctx, time.Duration(seconds*float64(time.Second))) // a signal is told otherwise
	return 0
}

func stubborn(ctx context.Context, p *Proc) int {
	p.Catch(syscall.SIGTERM, make(chan syscall.Signal))
	say(p.Stdout, []string{"stubborn"})
	<-ctx.Done()
	return 0
}

func flood(_ context.Context, p *Proc) int { return fill(p.Stdout, p.number(1, 1<<30)) }

// fill writes n bytes of numbered lines.
func fill(w io.Writer, n int64) int {
	for i := int64(0); n > 0; i++ {
		line := fmt.Sprintf("%063d\n", i)
		k := min(n, int64(len(line)))
		if _, err := io.WriteString(w, line[:k]); err != nil {
			return 1
		}
		n -= k
	}
	return 0
}

func oom(ctx context.Context, p *Proc) int {
	p.Count(func(u *guestwire.Usage) { u.OOMKills++ })
	p.g.mu.Lock()
	p.deliver(syscall.SIGKILL)
	p.g.mu.Unlock()
	<-ctx.Done()
	return 0
}

func end(how tartarus.Exit) Command {
	return func(ctx context.Context, p *Proc) int {
		p.g.vm.finish(how)
		<-ctx.Done()
		return 0
	}
}

// lie breaks the protocol in one of the ways a hostile guest may, and stays.
func lie(ctx context.Context, p *Proc) int {
	msg := func(ms ...guestwire.Message) []byte {
		var b []byte
		for _, m := range ms {
			var err error
			if b, err = guestwire.Append(b, m); err != nil {
				panic(err) // a fault of this fake
			}
		}
		return b
	}
	data := func(at int64, n int) guestwire.Message {
		return &guestwire.Data{Proc: p.id, Flow: guestwire.Out, Offset: at, Bytes: make([]byte, n)}
	}
	switch p.word(1) {
	case "garbage":
		p.Raw(bytes.Repeat([]byte{0xde, 0xad}, 512))
	case "huge":
		p.Raw([]byte{byte(guestwire.TypeData), 0xff, 0xff, 0xff})
	case "offset":
		p.Raw(msg(data(1<<20, 1)))
	case "credit":
		for at := int64(0); at <= 64*guestwire.MaxData; at += guestwire.MaxData {
			p.Raw(msg(data(at, guestwire.MaxData)))
		}
	case "exit":
		p.Raw(msg(&guestwire.Exit{Proc: p.id, Out: 1 << 40}))
	case "again":
		p.Raw(msg(&guestwire.Exit{Proc: p.id}, &guestwire.Exit{Proc: p.id, Code: 3}))
	case "unknown":
		p.Raw(msg(&guestwire.Exit{Proc: 4711, Code: 3}))
	default:
		return 2
	}
	<-ctx.Done()
	return 0
}
