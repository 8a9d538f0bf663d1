// Bench measures what Tartarus itself costs, each figure beside a raw floor
// that is taken in turn with it, and prints one table: `make bench`. It is for
// who works on Tartarus, and runs on fakes; users measure with `tartarus bench`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/bench"
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
	os.Exit(exitCode(take(ctx, os.Args[1:], os.Stdout)))
}

func exitCode(err error) int {
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// run is one run.
type run struct {
	exe    string // this program
	dir    string // for states, on the file system that is measured
	rounds int
}

// figure is one measurement; it may give several rows.
type figure struct {
	name    string
	measure func(context.Context, *run) ([]measure.Row, error)
}

var figures = []figure{
	{"admission", admission},
	{"placement", placement},
	{"growth", growth},
	{"run", perRun},
	{"memory", memory},
}

func take(ctx context.Context, args []string, out io.Writer) (err error) {
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
	b := &run{rounds: *rounds}
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
	report := measure.Report{Circumstances: measure.Now()}
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
	if *output == "json" {
		return report.JSON(out)
	}
	return report.Table(out)
}

// placement is how fast requests get from the queue to nodes.
func placement(ctx context.Context, b *run) ([]measure.Row, error) {
	return bench.Placement(ctx, b.dir, b.rounds, 1000, 5000)
}

// newFullUp is an up in which nothing leaves the queue: the one sandbox that
// may run sleeps.
func (b *run) newFullUp(ctx context.Context, name string) (*up, error) {
	u, err := b.startUp(filepath.Join(b.dir, name), policy(1))
	if err != nil {
		return nil, err
	}
	if err := u.api.Fill(ctx); err != nil {
		return nil, errors.Join(err, u.stop())
	}
	return u, nil
}

// admission is how fast requests come in, answered after they are on the disk.
func admission(ctx context.Context, b *run) (_ []measure.Row, err error) {
	u, err := b.newFullUp(ctx, "admission")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	return bench.Admission(ctx, bench.Queueing{
		API: u.api, Ledger: filepath.Join(u.state, "up", "ledger.db"), Dir: b.dir,
		CPU: func() (time.Duration, error) { p, err := u.look(); return p.CPU, err },
	}, b.rounds)
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
