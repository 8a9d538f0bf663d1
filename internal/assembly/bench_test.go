package assembly

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/bench"
	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// fakeBench measures on fakes. script is as of startFake.
func fakeBench(t *testing.T, o cli.BenchOptions, script func(n int, s tartarus.Spec) fakevm.Script) (*bench.Report, error) {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	must(t, os.WriteFile(kernel, testkit.FakeKernel(), 0o600))
	top, err := os.MkdirTemp("", "tt") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(top)) })
	o.StateDir = filepath.Join(top, "s")
	if o.Concurrency == nil {
		o.Concurrency = []int{1, 3}
	}
	o.Count, o.Burst, o.VMs, o.Idle, o.Template, o.MemoryMiB = 4, 20, 6, time.Second, "base", 128
	r, err := (&benching{o: o, host: &Host{Driver: fakevm.New(fakevm.Config{Script: script}), Kernel: kernel}}).run(t.Context())
	if err == nil {
		left, lerr := os.ReadDir(filepath.Join(o.StateDir, "local"))
		if must(t, lerr); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	return r, err
}

// sleepy is a guest that says that it is there, and does nothing.
func sleepy(int, tartarus.Spec) fakevm.Script {
	return fakevm.Script{Commands: map[string]fakevm.Command{"sh": func(ctx context.Context, p *fakevm.Proc) int {
		fmt.Fprintln(p.Stdout, "here")
		<-ctx.Done()
		return 0
	}}}
}

// TestBenchRows takes the figures of VMs once: whatever they come to, all
// starts are in them, and Tartarus is beside its floor.
func TestBenchRows(t *testing.T) {
	r, err := fakeBench(t, cli.BenchOptions{Figures: []string{bench.Density, bench.Throughput, bench.Start}, Concurrency: []int{3, 1, 3}}, sleepy)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Failed(); err != nil {
		t.Error(err)
	}
	if r.Driver != fakevm.Name || r.Kernel == "" || r.Cores == 0 || r.MemoryMiB == 0 || r.Shape.MemoryMiB != 128 || r.Shape.Template != "base" {
		t.Errorf("%+v", r)
	}
	var got []string
	for _, row := range r.Rows {
		got = append(got, fmt.Sprintf("%s %s", row.Figure, row.Of))
		if row.Includes == "" || row.Failures != 0 || row.RatioToGVisor != nil {
			t.Errorf("%+v", row)
		}
		switch row.Figure {
		case bench.Start, bench.Throughput:
			if row.Count < 4 || len(row.SamplesMS) != row.Count || row.Starts["cold"] != row.Count || *row.P50 <= 0 || *row.P99 < *row.P50 || *row.Max < *row.P99 || row.Rate <= 0 || row.CPUMS <= 0 || *row.RatioToFloor <= 0 {
				t.Errorf("%+v", row)
			}
		case bench.Burst:
			if row.Count != 20 || row.Concurrency != 20 || *row.ToPromised <= 0 || row.LastMS < *row.Max {
				t.Errorf("%+v", row)
			}
		case bench.Density:
			if row.VMs != 6 || row.PrivateMiB != 1 || row.CPUPercent <= 0 || *row.RatioToFloor != 1 {
				t.Errorf("%+v", row)
			}
		}
	}
	want := []string{"start tartarus", "start floor", "start tartarus", "start floor", "throughput tartarus", "throughput floor"}
	if len(got) < len(want)+5 || !slices.Equal(got[:len(want)], want) ||
		!slices.Equal(got[len(got)-5:], []string{"throughput, best tartarus", "throughput, best floor", "burst tartarus", "density tartarus", "density floor"}) {
		t.Errorf("%q", got)
	}
	var table, again bytes.Buffer
	must(t, r.Table(&table))
	for _, says := range []string{"shape    template base, 1 vCPU, 128 MiB", "start, 3 at once\nup to ms  tartarus", "start, floor: the same driver", "4 cold", "medians in ms from the request, by the records: judged"} {
		if !strings.Contains(table.String(), says) {
			t.Errorf("no %q in\n%s", says, table.String())
		}
	}
	must(t, json.NewEncoder(&again).Encode(r))
	for _, field := range []string{`"p50_ms":`, `"p99_ms":`, `"rate":`, `"ratio_to_floor":`, `"memory_mib":`, `"includes":`} {
		if !strings.Contains(again.String(), field) {
			t.Errorf("no %s", field)
		}
	}
}

// TestBenchCountsFailures: a start that fails is neither hidden nor the end.
func TestBenchCountsFailures(t *testing.T) {
	r, err := fakeBench(t, cli.BenchOptions{Figures: []string{bench.Start}, Concurrency: []int{1}}, func(n int, _ tartarus.Spec) fakevm.Script {
		if n == 2 {
			return fakevm.Script{SetupErr: "not today"}
		}
		return fakevm.Script{}
	})
	if err != nil {
		t.Fatal(err)
	}
	failures := 0
	for _, row := range r.Rows {
		if failures += row.Failures; row.Failures > 0 && (!strings.Contains(row.Error, "not today") || len(row.SamplesMS) != row.Count-row.Failures) {
			t.Errorf("%+v", row)
		}
	}
	if err := r.Failed(); failures != 1 || err == nil || !strings.Contains(err.Error(), "1 of 8 starts failed") {
		t.Errorf("%d failures, %v", failures, err)
	}
	_, err = fakeBench(t, cli.BenchOptions{Figures: []string{bench.Start}}, func(int, tartarus.Spec) fakevm.Script {
		return fakevm.Script{SetupErr: "never"}
	})
	if err == nil || !strings.Contains(err.Error(), "none succeeded") {
		t.Errorf("nothing starts: %v", err)
	}
}

func TestBenchRefuses(t *testing.T) {
	for _, o := range []cli.BenchOptions{
		{}, {Figures: []string{"speed"}}, {Figures: []string{"start"}, Concurrency: []int{0}}, {Figures: []string{"start"}, Concurrency: []int{65}},
	} {
		if _, err := fakeBench(t, o, nil); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
