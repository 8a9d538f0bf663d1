package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

func (a *app) outputFlag(c *cobra.Command, preset string) {
	c.Flags().StringVarP(&a.output, "output", "o", preset, "json, yaml or table")
}

// show prints m as -o says; table does it for people.
func (a *app) show(m proto.Message, table func(w io.Writer)) error {
	switch a.output {
	case "table":
		w := tabwriter.NewWriter(a.io.Out, 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	case "json", "yaml":
		b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding the answer: %w", err)
		}
		return a.showJSON(b)
	}
	return &failure{code: 2, err: fmt.Errorf("-o %q: one of json, yaml, table", a.output)}
}

func (a *app) showJSON(b []byte) error {
	if a.output == "yaml" {
		y, err := yaml.JSONToYAML(b)
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
	_, err := a.io.Out.Write(buf.Bytes())
	return err
}

// row writes the cells of a table's row, escaped.
func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		cells[i] = escape(c)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
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
	if sb.GetExit().Code != nil {
		code = fmt.Sprint(sb.GetExit().GetCode())
	}
	fmt.Fprintf(w, "exit code %s, cause %s, %s %s %s, start %s\n", code, escape(sb.GetExit().GetCause()),
		escape(sb.GetRuntime().GetDriver()), escape(sb.GetRuntime().GetVersion()), escape(sb.GetRuntime().GetAccelerator()), escape(sb.GetRuntime().GetStart()))
}

func trimSpace(b []byte) []byte { return bytes.TrimSpace(b) }
