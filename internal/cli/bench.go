package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// benchFigures are what bench measures.
var benchFigures = []string{"start", "throughput", "density", "admit", "place"}

func (a *app) benchCommand() *cobra.Command {
	o, memory, limit := BenchOptions{}, "", ""
	c := &cobra.Command{
		Use:   "bench FIGURE...",
		Short: "Measure what a sandbox costs on this host",
		Long: `Measures on this host, in real VMs, on a whole Tartarus of its own: over the
API, admitted durably, judged, queued, placed. It shares images with the state
folder and nothing else, and all of it ends with the command.

Figures:
  start       from the request to the first byte of output, at each concurrency
  throughput  VMs a second, at rising concurrency until it does not grow, and a
              burst
  density     idle VMs: memory and CPU of each, and the last start against the
              first
  admit       requests that are taken a second, each on disk before its answer
  place       placements a second on 1000 nodes that are not there

Each is taken in turn with its raw floor: for VMs the same driver, guest,
template and command by a bare loop, restored from a snapshot where the driver
can. Ratios of one run travel; milliseconds are this machine's, today. With
--compare runsc (gVisor), bwrap and docker take turns, too, where installed.

The exit code is 1 if a start failed; failures are counted in the report.`,
		Example: `  tartarus bench start throughput density --compare
  tartarus bench start -n 50 --concurrency 1,4
  tartarus bench start --standby 16
  tartarus bench density --vms 500
  tartarus bench admit place -o json`,
		Args: func(c *cobra.Command, args []string) error {
			if err := takes("FIGURE...")(c, args); err != nil {
				return err
			}
			for _, arg := range args {
				if !slices.Contains(benchFigures, arg) {
					return misuse(c, fmt.Errorf("there is no figure %q; there are %s", arg, strings.Join(benchFigures, ", ")))
				}
			}
			return nil
		},
		ValidArgs: benchFigures,
		RunE: func(c *cobra.Command, args []string) error {
			mib, err := parseMiB(memory)
			if err != nil {
				return misuse(c, fmt.Errorf("--memory: %w", err))
			}
			o.MemoryMiB = int64(mib)
			if limit != "" {
				if mib, err = parseMiB(limit); err != nil {
					return misuse(c, fmt.Errorf("--memory-limit: %w", err))
				}
				o.MemoryLimitMiB = int64(mib)
			}
			o.Figures = args
			return a.bench(c, o)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.IntVarP(&o.Count, "count", "n", 20, "`NUMBER` of starts at each concurrency, at least")
	f.IntSliceVarP(&o.Concurrency, "concurrency", "c", []int{1, 2, 4, 8}, "`NUMBERS` of starts at once, for start")
	f.BoolVar(&o.Compare, "compare", false, "take turns with other sandboxes that are installed")
	f.StringVar(&o.Template, "template", "base", "template `NAME`")
	f.StringVar(&memory, "memory", "128MiB", "memory `SIZE` of each VM")
	f.IntVar(&o.Burst, "burst", 100, "`NUMBER` of starts at one instant after throughput; 0: none")
	f.IntVar(&o.VMs, "vms", 50, "`NUMBER` of idle VMs, for density")
	f.StringVar(&limit, "memory-limit", "", "`SIZE` of memory of their own that idle VMs may have; without, half of what is free")
	f.DurationVar(&o.Idle, "idle", 5*time.Second, "`TIME` for which density looks at idle VMs")
	settingFlag(f, &o.Standby, "standby", "")
	o.VMM.flags(c)
	a.outputFlag(c, "table")
	return c
}

func (a *app) bench(c *cobra.Command, o BenchOptions) error {
	o.StateDir, o.Verbose, o.Version = a.stateDir, a.verbose, a.cfg.Version
	o.Command = commandLine(c, o.Figures)
	p := a.progress()
	o.Progress = p.step
	r, err := a.cfg.Inside.Bench(c.Context(), o)
	p.end()
	if err != nil {
		return err
	}
	if a.output == "table" {
		err = r.Table(a.io.Out)
	} else {
		err = a.showValue(r)
	}
	if err != nil {
		return err
	}
	return r.Failed()
}

// commandLine is how c was called, for whoever reads its report later.
func commandLine(c *cobra.Command, args []string) string {
	words := append([]string{c.CommandPath()}, args...)
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			words = append(words, "--"+f.Name+"="+strings.Trim(f.Value.String(), "[]"))
		}
	})
	return strings.Join(words, " ")
}
