// Command tartarus runs code nobody trusts, each run in a microVM of its own.
package main

import (
	"context"
	"os"

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
	return cli.Config{
		Version: version,
		IO: cli.IO{
			In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv,
			InTerminal:  term.IsTerminal(int(os.Stdin.Fd())),
			ErrTerminal: term.IsTerminal(int(os.Stderr.Fd())),
		},
		Inside: assembly.Inside(),
	}
}
