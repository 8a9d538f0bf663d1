// Command tartarus runs code nobody trusts, each run in a microVM of its own.
package main

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
)

// version is set by the build.
var version = "unknown"

func main() {
	launcher.Main()
	os.Exit(cli.Main(context.Background(), config(), os.Args[1:]))
}

func config() cli.Config {
	width, _, _ := term.GetSize(int(os.Stderr.Fd())) // 0 where there is no terminal
	return cli.Config{
		Version: version,
		IO: cli.IO{
			In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv,
			OutTerminal: term.IsTerminal(int(os.Stdout.Fd())),
			ErrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
			ErrWidth:    width,
			NoInput:     inBackground(int(os.Stdin.Fd())),
		},
		Inside:       assembly.Inside(),
		SystemConfig: cli.SystemConfig,
	}
}

// inBackground reports whether fd is a terminal that another job has: who
// reads from it then is stopped.
func inBackground(fd int) bool {
	foreground, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && foreground != unix.Getpgrp()
}
