package measure_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/measure"
)

func TestRowsAreMediansOfRounds(t *testing.T) {
	r := measure.Of(measure.Row{Goals: []measure.Goal{measure.AtLeast(20), measure.RatioAtLeast(0.5)}},
		[]measure.Pair{{Value: 10, Floor: 10}, {Value: 30, Floor: 40}, {Value: 20, Floor: 100}})
	if r.Value != 20 || r.Floor != 40 || r.Ratio != 0.75 || r.Met == nil || !*r.Met {
		t.Errorf("%+v", r)
	}
	r = measure.Of(measure.Row{Goals: []measure.Goal{measure.AtMost(20), measure.RatioAtMost(0.5)}}, r.Rounds)
	if *r.Met {
		t.Error("one of two goals was missed, and the row counts as met")
	}
	if r = measure.Of(measure.Row{}, []measure.Pair{{Value: 1}, {Value: 4}}); r.Value != 2.5 || r.Ratio != 0 || r.Met != nil {
		t.Errorf("%+v", r)
	}
}

func TestAlternate(t *testing.T) {
	var order []string
	take := func(what string) func(context.Context) (float64, error) {
		return func(context.Context) (float64, error) {
			order = append(order, what)
			return float64(len(order)), nil
		}
	}
	pairs, err := measure.Alternate(t.Context(), 3, take("v"), take("f"))
	if err != nil || !slices.Equal(order, []string{"v", "f", "f", "v", "v", "f", "f", "v"}) {
		t.Errorf("%v %v", order, err)
	}
	if want := []measure.Pair{{4, 3}, {5, 6}, {8, 7}}; !slices.Equal(pairs, want) {
		t.Errorf("%v", pairs)
	}
	broken := errors.New("broken")
	if _, err := measure.Alternate(t.Context(), 3, take("v"), func(context.Context) (float64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestPercentile(t *testing.T) {
	var v []float64
	for n := range 100 {
		v = append(v, float64(99-n))
	}
	if p := measure.Percentile(v, 99); p != 99 {
		t.Errorf("p99 %v", p)
	}
	if p := measure.Percentile(v, 50); p != 49.5 {
		t.Errorf("p50 %v", p)
	}
	if p := measure.Percentile(nil, 99); p != 0 {
		t.Errorf("of none %v", p)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	r := measure.Report{Circumstances: measure.Circumstances{Machine: "m", Cores: 2}, Rows: []measure.Row{
		measure.Of(measure.Row{Name: "a", Unit: "/s", Includes: "this", FloorOf: "that", Goals: []measure.Goal{measure.AtLeast(2000), measure.RatioAtLeast(0.5)}},
			[]measure.Pair{{Value: 1999, Floor: 4000}}),
		measure.Of(measure.Row{Name: "b", Unit: "ms", Includes: "all"}, []measure.Pair{{Value: 1.234}}),
	}}
	if err := r.Table(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"a       1999/s   4000/s  0.5    ≥ 2000, ≥ 0.5 × floor  no",
		"b       1.23 ms",
		"a: this. Floor: that. Median of 1.",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
