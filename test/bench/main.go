// Bench measures what Tartarus itself costs, each figure beside a raw floor
// that is taken in turn with it, and prints one table: `make bench`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/measure"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
)

// version is set by the linker.
var version = "unknown"

func main() {
	launcher.Main()
	if len(os.Args) > 1 && os.Args[1] == upRole {
		os.Exit(exitCode(serveUp(os.Args[2:])))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(exitCode(run(ctx, os.Args[1:], os.Stdout)))
}

func exitCode(err error) int {
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// bench is one run.
type bench struct {
	exe    string // this program
	dir    string // for states, on the file system that is measured
	rounds int
	driver string // of real VMs, once one was seen
}

// figure is one measurement; it may give several rows.
type figure struct {
	name    string
	measure func(context.Context, *bench) ([]measure.Row, error)
}

var figures = []figure{
	{"admission", admission},
	{"placement", placement},
	{"growth", growth},
	{"run", perRun},
	{"memory", memory},
	{"cold", coldStart},
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	output := fs.String("o", "table", "table or json")
	only := fs.String("only", "", "figures to take, with commas between: "+names())
	rounds := fs.Int("rounds", 5, "rounds of each figure")
	dir := fs.String("dir", "", "folder to work in; a temporary one if empty")
	profile := fs.String("cpuprofile", "", "file for a profile of this process")
	if err := fs.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(*only)
	if err != nil || *rounds < 1 || (*output != "table" && *output != "json") {
		return errors.Join(err, fmt.Errorf("see bench -h"))
	}
	b := &bench{rounds: *rounds}
	if b.exe, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(*dir, "tartarus-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	report := measure.Machine()
	report.Version, report.Command = version, "make bench"
	if len(args) > 0 {
		report.Command += ` ARGS="` + strings.Join(args, " ") + `"`
	}
	for _, f := range chosen {
		began := time.Now()
		rows, err := f.measure(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		report.Rows = append(report.Rows, rows...)
		fmt.Fprintf(os.Stderr, "bench: %s took %v\n", f.name, time.Since(began).Round(100*time.Millisecond))
	}
	report.Driver = b.driver
	if *output == "json" {
		return report.JSON(out)
	}
	return report.Table(out)
}

func names() string {
	var out []string
	for _, f := range figures {
		out = append(out, f.name)
	}
	return strings.Join(out, ",")
}

func choose(only string) ([]figure, error) {
	if only == "" {
		return figures, nil
	}
	var out []figure
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(figures, func(f figure) bool { return f.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no figure %q; there are %s", name, names())
		}
		out = append(out, figures[i])
	}
	return out, nil
}
