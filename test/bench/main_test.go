package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/measure"
	"github.com/tartarus-vm/tartarus/internal/node/launcher"
)

func TestMain(m *testing.M) {
	launcher.Main()
	if len(os.Args) > 1 && os.Args[1] == upRole {
		os.Exit(exitCode(serveUp(os.Args[2:])))
	}
	goleak.VerifyTestMain(m)
}

// TestFigures takes the figures that are quick, once: whatever they come to,
// each has a value, a floor where one is named, and says what is in it.
func TestFigures(t *testing.T) {
	var out bytes.Buffer
	if err := take(t.Context(), []string{"-only", "run,memory", "-rounds", "1", "-o", "json", "-dir", t.TempDir()}, &out); err != nil {
		t.Fatal(err)
	}
	var r measure.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 4 || r.Kernel == "" || r.Cores == 0 || !strings.Contains(r.Command, "-only") {
		t.Errorf("%+v", r)
	}
	for _, row := range r.Rows {
		if row.Value <= 0 || row.Includes == "" || (row.FloorOf != "") != (row.Floor > 0) || (row.Goals != nil) != (row.Met != nil) {
			t.Errorf("%+v", row)
		}
	}
}

func TestWhatIsThere(t *testing.T) {
	for _, args := range [][]string{{"-only", "speed"}, {"-rounds", "0"}, {"-o", "yaml"}} {
		if err := take(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
