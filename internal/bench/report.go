package bench

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/tartarus-vm/tartarus/internal/measure"
)

// Report is a whole run.
type Report struct {
	measure.Circumstances

	// What ran in VMs; empty if nothing did.
	Driver        string `json:"driver,omitempty"`
	DriverVersion string `json:"driver_version,omitempty"`
	Accelerator   string `json:"accelerator,omitempty"`
	Shape         Shape  `json:"shape"`
	Standby       int    `json:"standby"` // VMs that wait for a sandbox, at most

	Notes []string `json:"notes,omitempty"` // of what else is installed, and what is not
	Rows  []Row    `json:"rows"`
}

// Row is one line of it. What does not apply is absent.
type Row struct {
	Figure      string `json:"figure"`
	Of          string `json:"of"` // tartarus, floor, runsc, bwrap, docker
	Concurrency int    `json:"concurrency,omitempty"`
	Count       int    `json:"count,omitempty"` // of starts
	Failures    int    `json:"failures"`
	Error       string `json:"error,omitempty"` // the first failure's

	P50  *float64 `json:"p50_ms,omitempty"`
	P90  *float64 `json:"p90_ms,omitempty"`
	P99  *float64 `json:"p99_ms,omitempty"`
	Max  *float64 `json:"max_ms,omitempty"`
	Rate float64  `json:"rate,omitempty"` // a second

	// CPUMS is the CPU time of this process for each: all but VMM and guest,
	// with the client.
	CPUMS float64 `json:"cpu_ms,omitempty"`

	RatioToFloor  *float64 `json:"ratio_to_floor,omitempty"`
	RatioToGVisor *float64 `json:"ratio_to_gvisor,omitempty"`

	Starts    map[string]int     `json:"starts,omitempty"`    // cold, restored, standby
	StagesMS  map[string]float64 `json:"stages_ms,omitempty"` // medians, from the request, by the records
	SamplesMS []float64          `json:"samples_ms,omitempty"`

	// ToPromised is how long a burst took over what the best rate promises.
	ToPromised *float64 `json:"ratio_to_promised,omitempty"`

	VMs         int      `json:"vms,omitempty"`     // sandboxes that live
	AllVMs      int      `json:"all_vms,omitempty"` // and standbys
	PrivateMiB  float64  `json:"private_mib,omitempty"`
	CPUPercent  float64  `json:"cpu_percent,omitempty"` // of a core, each
	FirstMS     float64  `json:"first_ms,omitempty"`
	LastMS      float64  `json:"last_ms,omitempty"`
	LastToFirst *float64 `json:"last_to_first,omitempty"`

	Includes string `json:"includes"`
}

// take adds figures that are medians of rounds.
func (r *Report) take(figure string, rows []measure.Row) {
	for _, m := range rows {
		row := Row{Figure: figure, Of: m.Name, Includes: m.Includes}
		if m.FloorOf != "" {
			row.Includes += "; floor: " + m.FloorOf
		}
		row.Includes += fmt.Sprintf("; median of %d rounds", len(m.Rounds))
		switch m.Unit {
		case "/s":
			row.Rate = m.Value
		case "ms":
			row.P99 = &m.Value
		case "µs":
			row.CPUMS = m.Value / 1000
		}
		if m.Ratio > 0 {
			row.RatioToFloor = &m.Ratio
		}
		r.Rows = append(r.Rows, row)
	}
}

// Table writes the report for people.
func (r *Report) Table(w io.Writer) error {
	if err := r.Print(w); err != nil {
		return err
	}
	if r.Driver != "" {
		s := r.Shape
		fmt.Fprintf(w, "driver   %s %s %s\nshape    template %s, %d vCPU, %d MiB of memory, %d MiB of disk, %s\nstandby  %d VMs at most\n", r.Driver, r.DriverVersion, r.Accelerator,
			s.Template, s.VCPUs, s.MemoryMiB, s.DiskMiB, strings.Join(s.Command, " "), r.Standby)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note     %s\n", n)
	}
	for _, t := range []struct {
		of   func(Row) bool
		show func(io.Writer, []Row)
	}{
		{func(row Row) bool {
			return row.Figure == Start || row.Figure == Throughput || row.Figure == BestThroughput || row.Figure == Burst
		}, r.startsTable},
		{func(row Row) bool { return row.Figure == Density }, r.densityTable},
		{func(row Row) bool { return row.Figure == Admit || row.Figure == Place }, r.partsTable},
	} {
		var rows []Row
		for _, row := range r.Rows {
			if t.of(row) {
				rows = append(rows, row)
			}
		}
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintln(w)
		aligned(w, func(w io.Writer) { t.show(w, rows) })
	}
	r.histograms(w)
	return r.legend(w)
}

// aligned writes what show writes, in columns, without spaces at the ends of
// lines. Whether w fails is seen by the last who writes to it.
func aligned(w io.Writer, show func(io.Writer)) {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	show(tw)
	_ = tw.Flush() // a Builder takes all
	for line := range strings.Lines(b.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

func (r *Report) startsTable(w io.Writer, rows []Row) {
	fmt.Fprintln(w, "figure\tat once\tof\truns\tfailed\tp50 ms\tp90\tp99\tmax\trate /s\t/ floor\t/ gVisor\tCPU ms\tstarts")
	for _, x := range rows {
		cells(w, x.Figure, whole(x.Concurrency), x.Of, whole(x.Count), strconv.Itoa(x.Failures),
			number(x.P50), number(x.P90), number(x.P99), number(x.Max), number(&x.Rate), number(x.RatioToFloor), gVisor(x), number(&x.CPUMS), ways(x.Starts))
	}
}

// gVisor is the ratio to it, if it took its turn.
func gVisor(x Row) string {
	if x.RatioToGVisor == nil {
		return "-"
	}
	return number(x.RatioToGVisor)
}

func (r *Report) densityTable(w io.Writer, rows []Row) {
	fmt.Fprintln(w, "figure\tof\tVMs\twith standbys\tMiB private, each\t% of a core, each\tfirst ms\tlast ms\tlast / first\t/ floor (MiB)")
	for _, x := range rows {
		cells(w, x.Figure, x.Of, whole(x.VMs), whole(x.AllVMs), number(&x.PrivateMiB), number(&x.CPUPercent), number(&x.FirstMS), number(&x.LastMS), number(x.LastToFirst), number(x.RatioToFloor))
	}
}

func (r *Report) partsTable(w io.Writer, rows []Row) {
	fmt.Fprintln(w, "figure\tof\trate /s\tp99 ms\tCPU ms\t/ floor")
	for _, x := range rows {
		cells(w, x.Figure, x.Of, number(&x.Rate), number(x.P99), number(&x.CPUMS), number(x.RatioToFloor))
	}
}

func cells(w io.Writer, c ...string) { fmt.Fprintln(w, strings.Join(c, "\t")) }

func whole(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// number has three digits that say something; "" for nothing.
func number(v *float64) string {
	switch {
	case v == nil || *v == 0:
		return ""
	case math.Abs(*v) >= 100:
		return strconv.FormatFloat(*v, 'f', 0, 64)
	case math.Abs(*v) >= 10:
		return strconv.FormatFloat(*v, 'f', 1, 64)
	}
	return strconv.FormatFloat(*v, 'f', 2, 64)
}

// ways is how VMs started.
func ways(starts map[string]int) string {
	var out []string
	for _, how := range slices.Sorted(maps.Keys(starts)) {
		out = append(out, fmt.Sprintf("%d %s", starts[how], how))
	}
	return strings.Join(out, ", ")
}

const (
	buckets  = 8
	barWidth = 16
)

// histograms draws the starts of each concurrency, all on one scale.
func (r *Report) histograms(w io.Writer) {
	byConcurrency := map[int][]Row{}
	for _, row := range r.Rows {
		if row.Figure == Start && len(row.SamplesMS) > 0 {
			byConcurrency[row.Concurrency] = append(byConcurrency[row.Concurrency], row)
		}
	}
	for _, at := range slices.Sorted(maps.Keys(byConcurrency)) {
		fmt.Fprintf(w, "\nstart, %d at once\n", at)
		aligned(w, func(w io.Writer) { drawHistogram(w, byConcurrency[at]) })
	}
}

// drawHistogram has a line for each step of time, a factor from one to the
// next, and a column for each row.
func drawHistogram(w io.Writer, rows []Row) {
	least, most := math.Inf(1), 0.0
	for _, row := range rows {
		least, most = min(least, slices.Min(row.SamplesMS)), max(most, slices.Max(row.SamplesMS))
	}
	factor := math.Pow(most/least, 1.0/buckets)
	place := func(ms float64) int {
		if factor <= 1 {
			return 0
		}
		return min(buckets-1, int(math.Log(ms/least)/math.Log(factor)))
	}
	head := "up to ms"
	counts := make([][buckets]int, len(rows))
	for i, row := range rows {
		head += "\t" + row.Of
		for _, ms := range row.SamplesMS {
			counts[i][place(ms)]++
		}
	}
	fmt.Fprintln(w, head)
	for b := range buckets {
		upper := least * math.Pow(factor, float64(b+1))
		line := number(&upper)
		for i, row := range rows {
			n := counts[i][b]
			bar := strings.Repeat("#", (n*barWidth+len(row.SamplesMS)-1)/len(row.SamplesMS))
			line += "\t" + strings.TrimSpace(bar+" "+whole(n))
		}
		cells(w, line)
		if factor <= 1 {
			return
		}
	}
}

// legend says what is in each figure, and where the time of starts went.
func (r *Report) legend(w io.Writer) error {
	said := map[string]bool{}
	for _, row := range r.Rows {
		key := row.Figure + ", " + row.Of
		if row.Figure == Throughput {
			key = Start + ", " + row.Of // the same is in it
		}
		if said[key] {
			continue
		}
		said[key] = true
		fmt.Fprintf(w, "\n%s: %s.", key, row.Includes)
	}
	for _, row := range r.Rows {
		if row.Figure == Start && len(row.StagesMS) > 0 {
			fmt.Fprintf(w, "\nstart, %d at once, medians in ms from the request, by the records: %s.", row.Concurrency, stages(row.StagesMS))
		}
		if row.ToPromised != nil {
			fmt.Fprintf(w, "\nburst: all %d had ended after %s ms, %s × what the best rate above promises.", row.Count, number(&row.LastMS), number(row.ToPromised))
		}
		if row.Error != "" {
			fmt.Fprintf(w, "\n%s, %d at once, of %s: the first failure: %q.", row.Figure, row.Concurrency, row.Of, row.Error)
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

// stages are in the order of time.
func stages(ms map[string]float64) string {
	names := slices.SortedFunc(maps.Keys(ms), func(a, b string) int {
		if ms[a] != ms[b] {
			return int(math.Copysign(1, ms[a]-ms[b]))
		}
		return strings.Compare(a, b)
	})
	var out []string
	for _, n := range names {
		v := ms[n]
		out = append(out, strings.ReplaceAll(n, "_", " ")+" "+number(&v))
	}
	return strings.Join(out, ", ")
}
