package measure

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Circumstances are those of a run.
type Circumstances struct {
	Machine   string `json:"machine"` // its processor
	Cores     int    `json:"cores"`
	MemoryMiB int64  `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	Version   string `json:"version"`
	Load      string `json:"load"` // the machine's load averages before the run: others may use it too
	Began     string `json:"began"`
	Command   string `json:"command"`
}

// Report is a whole run.
type Report struct {
	Circumstances
	Rows []Row `json:"rows"`
}

// Print writes them for people.
func (c Circumstances) Print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "machine  %s, %d cores, %d MiB\nkernel   %s\nversion  %s\nbegan    %s, load %s\ncommand  %s\n",
		c.Machine, c.Cores, c.MemoryMiB, c.Kernel, c.Version, c.Began, c.Load, c.Command)
	return err
}

// JSON writes the report as one JSON object.
func (r Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Table writes the report for people.
func (r Report) Table(w io.Writer) error {
	if err := r.Print(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tvalue\tfloor\tratio\tgoal\tmet")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", row.Name, withUnit(row.Value, row.Unit), withUnit(row.Floor, row.Unit), orNone(row.Ratio), goals(row), met(row))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, row := range r.Rows {
		fmt.Fprintf(w, "\n%s: %s.", row.Name, row.Includes)
		if row.FloorOf != "" {
			fmt.Fprintf(w, " Floor: %s.", row.FloorOf)
		}
		fmt.Fprintf(w, " Median of %d.", len(row.Rounds))
	}
	_, err := fmt.Fprintln(w)
	return err
}

func goals(r Row) string {
	var out []string
	for _, g := range r.Goals {
		out = append(out, g.String())
	}
	return strings.Join(out, ", ")
}

func met(r Row) string {
	switch {
	case r.Met == nil:
		return ""
	case *r.Met:
		return "yes"
	}
	return "no"
}

func withUnit(v float64, unit string) string {
	s := orNone(v)
	switch {
	case s == "":
		return ""
	case strings.HasPrefix(unit, "/"):
		return s + unit
	}
	return s + " " + unit
}

func orNone(v float64) string {
	if v == 0 {
		return ""
	}
	return number(v)
}

// number has three digits that say something.
func number(v float64) string {
	if v == 0 || math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	s := strconv.FormatFloat(v, 'f', 2-int(math.Floor(math.Log10(math.Abs(v)))), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}
