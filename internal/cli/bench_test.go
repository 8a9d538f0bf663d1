package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeReport is a report of one figure.
type fakeReport struct {
	Figure string `json:"figure"`
	failed error
}

func (r fakeReport) Table(w io.Writer) error {
	_, err := fmt.Fprintln(w, "the table of", r.Figure)
	return err
}
func (r fakeReport) Failed() error { return r.failed }

func TestBench(t *testing.T) {
	var got BenchOptions
	report := fakeReport{Figure: "start"}
	inside := Inside{Bench: func(_ context.Context, o BenchOptions) (BenchReport, error) {
		got = o
		o.Progress(Step{Name: "measuring"})
		return report, nil
	}}
	r := call{inside: inside}.main(t, "bench", "start", "density", "--state", "/s")
	if r.code != 0 || r.out != "the table of start\n" || r.errout != "measuring\n" {
		t.Errorf("%+v", r)
	}
	if got.StateDir != "/s" || !slices.Equal(got.Figures, []string{"start", "density"}) || got.Count != 20 || !slices.Equal(got.Concurrency, []int{1, 2, 4, 8}) ||
		got.Burst != 100 || got.VMs != 50 || got.MemoryLimitMiB != 0 || got.Idle != 5*time.Second || got.Template != "base" || got.MemoryMiB != 128 || got.Version != "1.2.3" {
		t.Errorf("%+v", got)
	}
	r = call{inside: inside}.main(t, "bench", "start", "-n", "2", "-c", "1,3", "--compare", "--memory", "1GiB", "--memory-limit", "2g", "--vms", "7", "--idle", "1m", "-o", "json")
	if r.code != 0 || r.out != "{\n  \"figure\": \"start\"\n}\n" {
		t.Errorf("%+v", r)
	}
	if got.Count != 2 || !slices.Equal(got.Concurrency, []int{1, 3}) || !got.Compare || got.MemoryMiB != 1024 || got.MemoryLimitMiB != 2048 || got.VMs != 7 || got.Idle != time.Minute {
		t.Errorf("%+v", got)
	}
	if want := "tartarus bench start --count=2 --concurrency=1,3 --compare=true --memory=1GiB --vms=7 --memory-limit=2g --idle=1m0s --output=json"; got.Command != want {
		t.Errorf("%q, want %q", got.Command, want)
	}

	// What failed is said, and what was measured is shown all the same.
	report.failed = errors.New("1 of 2 starts failed")
	if r = (call{inside: inside}).main(t, "bench", "start"); r.code != 1 || r.out == "" || !strings.Contains(r.errout, "1 of 2 starts failed") {
		t.Errorf("%+v", r)
	}
	inside.Bench = func(context.Context, BenchOptions) (BenchReport, error) { return nil, errors.New("no room") }
	if r = (call{inside: inside}).main(t, "bench", "start"); r.code != 1 || r.out != "" || !strings.Contains(r.errout, "no room") {
		t.Errorf("%+v", r)
	}
}
