package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// format is the value of -o.
type format string

var formats = []string{"json", "yaml", "table"}

// Set is of pflag.Value.
func (f *format) Set(s string) error {
	if !slices.Contains(formats, s) {
		return errors.New("unknown")
	}
	*f = format(s)
	return nil
}

// String is of pflag.Value.
func (f *format) String() string { return string(*f) }

// Type is of pflag.Value; an error says that a value is none.
func (f *format) Type() string { return "format; there are " + strings.Join(formats, ", ") }

// logFormat is the value of --log-format.
type logFormat string

var logFormats = []string{LogText, LogJSON}

// Set is of pflag.Value.
func (f *logFormat) Set(s string) error {
	if !slices.Contains(logFormats, s) {
		return errors.New("unknown")
	}
	*f = logFormat(s)
	return nil
}

// String is of pflag.Value.
func (f *logFormat) String() string { return string(*f) }

// Type is of pflag.Value; an error says that a value is none.
func (f *logFormat) Type() string { return "format; there are " + strings.Join(logFormats, ", ") }

// outputFlag gives c the flag -o.
func (a *app) outputFlag(c *cobra.Command, preset format) {
	chosen := preset
	c.Flags().VarP(&chosen, "output", "o", "`FORMAT`: json, yaml or table")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		a.output = chosen
		return run(c, args)
	}
}

// show prints m as -o says; table does it for people.
func (a *app) show(m proto.Message, table func(w io.Writer)) error {
	if a.output == "table" {
		w := tabwriter.NewWriter(a.io.Out, 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	}
	b, err := encode(m)
	if err != nil {
		return err
	}
	return a.showJSON(b)
}

// encode is m as the API's own JSON.
func encode(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding the answer: %w", err)
	}
	return b, nil
}

// showJSON prints a JSON document, as YAML if that is wanted.
func (a *app) showJSON(b []byte) error {
	if a.output == "yaml" {
		y, err := toYAML(b)
		if err != nil {
			return fmt.Errorf("encoding the answer: %w", err)
		}
		_, err = a.io.Out.Write(y)
		return err
	}
	var buf bytes.Buffer
	if err := json.Indent(&buf, b, "", "  "); err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	buf.WriteByte('\n')
	_, err := a.io.Out.Write(safeJSON(buf.Bytes()))
	return err
}

// showItem prints one of a stream of messages: a line of JSON, or a YAML
// document.
func (a *app) showItem(m proto.Message) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	if a.output == "yaml" {
		if _, err := io.WriteString(a.io.Out, "---\n"); err != nil {
			return err
		}
		return a.showJSON(b)
	}
	var buf bytes.Buffer
	if err := json.Compact(&buf, b); err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	buf.WriteByte('\n')
	_, err = a.io.Out.Write(safeJSON(buf.Bytes()))
	return err
}

// row writes the cells of a table's row, escaped.
func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		cells[i] = escape(c)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// shorten cuts s to n runes.
func shorten(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// day is when something is or was; "-" if never.
func day(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Format(time.RFC3339)
}

func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	d := max(time.Since(t.AsTime()), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// printTimings says where the time went. Each stage is counted from the end of
// the one before; total is from the request to the end.
func printTimings(w io.Writer, sb *apiv1.Sandbox) {
	t := sb.GetTimings()
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "stage\tms\tafter ms\t\n")
	before := 0.0
	for _, s := range []struct {
		name string
		at   float64
	}{
		{"judged", t.GetJudged()}, {"queued", t.GetQueued()}, {"placed", t.GetPlaced()},
		{"VM ready", t.GetVmReady()}, {"first output", t.GetFirstOutput()}, {"total", t.GetTotal()},
	} {
		if s.at == 0 {
			continue
		}
		fmt.Fprintf(tw, "%s\t%.1f\t%.1f\t\n", s.name, s.at-before, s.at)
		before = s.at
	}
	tw.Flush()
	code := "none"
	if e := sb.GetExit(); e != nil && e.Code != nil {
		code = fmt.Sprint(e.GetCode())
	}
	r := sb.GetRuntime()
	fmt.Fprintf(w, "exit code %s, cause %s, %s %s %s, start %s\n", code, escape(dash(sb.GetExit().GetCause())),
		escape(dash(r.GetDriver())), escape(r.GetVersion()), escape(r.GetAccelerator()), escape(dash(r.GetStart())))
}
