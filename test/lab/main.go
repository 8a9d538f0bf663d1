// Command lab runs commands in a VM that has a working /dev/kvm, on a machine
// that may have none: QEMU emulates a processor with AMD-V. It is slow, and
// for tests only.
//
//	go run ./test/lab [flags] -- COMMAND [ARG…] [--- COMMAND [ARG…]]…
//	go run ./test/lab [flags] suite [NAME…]
//
// The commands of one call share one boot. Exits with the status of the first
// that failed; 124 when time is up, 125 when the lab itself failed. See
// docs/lab.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/test/lab/labwire"
)

// The statuses that are not a command's.
const (
	statusUsage   = 2
	statusTimeout = 124
	statusLab     = 125
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// settings are what the command line says.
type settings struct {
	opts     options
	limit    time.Duration
	verbose  bool
	suite    bool
	names    []string // of the suite; none are the short one, or all
	full     bool
	commands [][]string // without suite
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	s, err := parse(args, stderr)
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(stderr, "lab:", err)
		}
		return statusUsage
	}
	began := time.Now()
	s.opts.say = func(format string, args ...any) {
		fmt.Fprintf(stderr, "lab: %6.1f s: %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	if s.verbose {
		s.opts.console = stderr
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	var status int
	if s.suite {
		status, err = runSuite(ctx, s, stdout)
	} else {
		status, err = runCommands(ctx, s, stdout)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		fmt.Fprintf(stderr, "lab: out of time after %v\n", s.limit)
		return statusTimeout
	case err != nil:
		fmt.Fprintln(stderr, "lab:", err)
		return statusLab
	}
	return status
}

// parse reads the command line; it tells of the flags on usage.
func parse(args []string, usage io.Writer) (settings, error) {
	var s settings
	var commands []string
	if i := slices.Index(args, "--"); i >= 0 {
		args, commands = args[:i], args[i+1:]
	}
	f := flag.NewFlagSet("lab", flag.ContinueOnError)
	f.SetOutput(usage)
	f.IntVar(&s.opts.cpus, "cpus", 2, "processors of the lab")
	f.IntVar(&s.opts.memoryMiB, "memory", 4096, "memory of the lab, in MiB")
	f.IntVar(&s.opts.diskMiB, "disk", 4096, "disk of the lab, in MiB")
	f.DurationVar(&s.limit, "time", 10*time.Minute, "then all ends")
	f.BoolVar(&s.full, "full", false, "of a suite without names, all checks")
	f.BoolVar(&s.verbose, "v", false, "show the console of the lab, and what tests print")
	f.Func("add", "`FILE:PATH`: a file or folder appears at PATH in the lab (repeatable)", func(v string) error {
		a, err := parseAddition(v)
		s.opts.adds = append(s.opts.adds, a)
		return err
	})
	f.Func("program", "`NAME` of a program of this machine that is in the lab too, with its libraries (repeatable)", func(v string) error {
		s.opts.programs = append(s.opts.programs, v)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return s, err
	}
	rest := f.Args()
	s.suite = len(rest) > 0 && rest[0] == "suite"
	if s.suite {
		s.names = rest[1:]
	}
	if s.suite == (commands != nil) || !s.suite && len(rest) > 0 {
		return s, errors.New("say what to run: either suite [NAME…] or -- COMMAND [ARG…]")
	}
	var err error
	if commands != nil {
		s.commands, err = splitCommands(commands)
	}
	if s.opts.cpus < 1 || s.opts.memoryMiB < 512 || s.opts.diskMiB < 64 || s.limit <= 0 {
		err = errors.New("the lab needs a processor, 512 MiB of memory, 64 MiB of disk, and time")
	}
	return s, err
}

// separator stands between the commands of one call.
const separator = "---"

func splitCommands(words []string) ([][]string, error) {
	var out [][]string
	for {
		i := slices.Index(words, separator)
		if i < 0 {
			i = len(words)
		}
		if i == 0 {
			return nil, fmt.Errorf("a command is missing (%q stands between commands)", separator)
		}
		out = append(out, words[:i])
		if i == len(words) {
			return out, nil
		}
		words = words[i+1:]
	}
}

// runCommands runs what the command line names, and streams what it prints.
// The first that fails is the last.
func runCommands(ctx context.Context, s settings, stdout io.Writer) (int, error) {
	l, err := newLab(ctx, s.opts)
	if err != nil {
		return 0, err
	}
	defer l.close()
	for _, argv := range s.commands {
		e, err := l.run(ctx, labwire.Order{Argv: argv, Limit: s.limit}, stdout)
		if err != nil {
			return 0, err
		}
		if len(e.Left) > 0 {
			s.opts.say("%q left behind: %s", argv[0], strings.Join(e.Left, ", "))
		}
		if e.Error != "" {
			s.opts.say("%s", e.Error)
		}
		if e.Status != 0 {
			return e.Status, nil
		}
	}
	return 0, nil
}
