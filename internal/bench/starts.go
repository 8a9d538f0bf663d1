package bench

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sort"

	"github.com/tartarus-vm/tartarus/internal/measure"
)

// start is from the request to the first byte of output, at each concurrency.
func (r *run) start(ctx context.Context) error {
	if err := r.open(ctx); err != nil {
		return err
	}
	for _, at := range r.Concurrency {
		r.Step("start: %d at once", at)
		all, err := inTurn(ctx, r.contenders(), r.Count, at)
		if err != nil {
			return err
		}
		rows := rowsOf(Start, at, all)
		compare(rows, func(row Row) float64 { return deref(row.P50) })
		r.report.Rows = append(r.report.Rows, rows...)
		if err := alive(rows); err != nil {
			return err
		}
	}
	return nil
}

// alive is an error where Tartarus or its floor did not start once: there is
// nothing to measure.
func alive(rows []Row) error {
	for _, row := range rows {
		if (row.Of == ofTartarus || row.Of == ofFloor) && row.Failures == row.Count {
			return fmt.Errorf("of %d starts of %s none succeeded; the first: %s", row.Count, row.Of, row.Error)
		}
	}
	return nil
}

const (
	enough       = 1.05 // how much more a concurrency must bring to count as growth
	mostACoreHas = 8    // VMs at once; beyond that, growth is chance
)

// throughput is how many VMs a second come and go, at rising concurrency until
// neither Tartarus nor its floor grows any more.
func (r *run) throughput(ctx context.Context) error {
	if err := r.open(ctx); err != nil {
		return err
	}
	best := map[string]Row{}
	for at := 1; at <= min(MaxConcurrency, mostACoreHas*runtime.NumCPU()); at *= 2 {
		r.Step("throughput: %d at once", at)
		all, err := inTurn(ctx, r.contenders(), max(r.Count, 2*at), at)
		if err != nil {
			return err
		}
		rows := rowsOf(Throughput, at, all)
		compare(rows, func(row Row) float64 { return row.Rate })
		r.report.Rows = append(r.report.Rows, rows...)
		if err := alive(rows); err != nil {
			return err
		}
		grew := false
		for _, row := range rows {
			old := best[row.Of].Rate
			grew = grew || row.Rate > old*enough && (row.Of == ofTartarus || row.Of == ofFloor)
			if row.Rate > old {
				best[row.Of] = row
			}
		}
		if !grew {
			break
		}
	}
	r.report.Rows = append(r.report.Rows, bestRows(best)...)
	return r.burst(ctx, best[ofTartarus].Rate)
}

// burst is many starts at one instant.
func (r *run) burst(ctx context.Context, rate float64) error {
	if r.Burst == 0 {
		return nil
	}
	r.Step("burst: %d at once", r.Burst)
	c := throughAPI(r.product.API, r.Shape)
	starts, took := together(ctx, c, r.Burst, r.Burst)
	if err := ctx.Err(); err != nil {
		return err
	}
	row := rowsOf(Burst, r.Burst, []series{{contender: c, starts: starts, took: took}})[0]
	row.LastMS = milliseconds(took)
	if row.Failures == 0 && rate > 0 {
		ratio := took.Seconds() * rate / float64(r.Burst)
		row.ToPromised = &ratio
	}
	row.Includes = "as start, all asked for at one instant"
	r.report.Rows = append(r.report.Rows, row)
	return nil
}

// The figures of rows that throughput has besides: each one's best, and many
// at one instant.
const (
	BestThroughput = "throughput, best"
	Burst          = "burst"
)

// bestRows are each contender's best concurrency, side by side.
func bestRows(best map[string]Row) []Row {
	var rows []Row
	for _, of := range slices.Sorted(maps.Keys(best)) {
		row := best[of]
		rows = append(rows, Row{
			Figure: BestThroughput, Of: of, Concurrency: row.Concurrency, Count: row.Count, Failures: row.Failures, Rate: row.Rate,
			Includes: "the highest rate of those above, each at its own concurrency",
		})
	}
	sort.SliceStable(rows, func(i, j int) bool { return rank(rows[i].Of) < rank(rows[j].Of) })
	compare(rows, func(row Row) float64 { return row.Rate })
	return rows
}

// rank puts Tartarus and its floor first.
func rank(of string) int {
	return map[string]int{ofTartarus: -2, ofFloor: -1}[of]
}

// rowsOf makes a row of each series.
func rowsOf(figure string, atOnce int, all []series) []Row {
	var rows []Row
	for _, s := range all {
		row := Row{Figure: figure, Of: s.name, Concurrency: atOnce, Count: len(s.starts), Rate: s.rate(), Includes: s.includes, Starts: map[string]int{}}
		if s.name == ofTartarus || s.name == ofFloor { // others are processes of their own
			row.CPUMS = milliseconds(s.cpu) / float64(len(s.starts))
		}
		stages := map[string][]float64{}
		for _, x := range s.starts {
			if x.err != nil {
				if row.Failures++; row.Error == "" {
					row.Error = x.err.Error()
				}
				continue
			}
			row.SamplesMS = append(row.SamplesMS, x.ms)
			if x.how != "" {
				row.Starts[x.how]++
			}
			for name, ms := range x.stages {
				stages[name] = append(stages[name], ms)
			}
		}
		for name, values := range stages {
			if row.StagesMS == nil {
				row.StagesMS = map[string]float64{}
			}
			row.StagesMS[name] = measure.Median(values)
		}
		row.distribute()
		rows = append(rows, row)
	}
	return rows
}

// distribute fills in what the samples come to.
func (row *Row) distribute() {
	if len(row.SamplesMS) == 0 {
		return
	}
	at := func(p float64) *float64 { v := measure.Percentile(row.SamplesMS, p); return &v }
	row.P50, row.P90, row.P99, row.Max = at(50), at(90), at(99), at(100)
}

// compare fills in the ratios of rows that were taken in turn.
func compare(rows []Row, of func(Row) float64) {
	for i := range rows {
		for _, other := range rows {
			if of(other) == 0 || of(rows[i]) == 0 {
				continue
			}
			ratio := of(rows[i]) / of(other)
			switch other.Of {
			case ofFloor:
				rows[i].RatioToFloor = &ratio
			case ofGVisor:
				rows[i].RatioToGVisor = &ratio
			}
		}
	}
}

func deref(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

// Failed is an error that tells of starts that failed, nil if none did.
func (r *Report) Failed() error {
	starts, failures, first := 0, 0, ""
	for _, row := range r.Rows {
		if row.Figure == BestThroughput {
			continue
		}
		starts, failures = starts+row.Count, failures+row.Failures
		if first == "" {
			first = row.Error
		}
	}
	if failures == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d starts failed; the first: %s", failures, starts, first)
}
