package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a contender that takes a certain time.
func fake(name string, ms float64, note func(string)) contender {
	return contender{name: name, worker: func(context.Context, int) (func() started, func()) {
		return func() started { note(name); return started{ms: ms} }, func() {}
	}}
}

func TestInTurn(t *testing.T) {
	var order []string
	note := func(name string) { order = append(order, name) }
	all, err := inTurn(t.Context(), []contender{fake("a", 1, note), fake("b", 2, note)}, 3, 1)
	if err != nil || !slices.Equal(order, []string{"a", "b", "b", "a", "a", "b"}) {
		t.Errorf("%v %v", order, err)
	}
	if len(all[0].starts) != 3 || all[0].name != "a" || len(all[1].starts) != 3 || all[0].took <= 0 {
		t.Errorf("%+v", all)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := inTurn(ctx, []contender{fake("a", 1, note)}, 3, 1); err == nil {
		t.Error("an interrupted run has a result")
	}
}

func TestEachIsComparedWithFloorAndGVisor(t *testing.T) {
	row := func(of string, p50 float64) Row { return Row{Of: of, P50: &p50} }
	rows := []Row{row(ofTartarus, 60), row(ofFloor, 50), row(ofGVisor, 100), {Of: "bwrap", Failures: 2, Count: 2}}
	compare(rows, func(r Row) float64 { return deref(r.P50) })
	for i, want := range [][2]float64{{1.2, 0.6}, {1, 0.5}, {2, 1}, {0, 0}} {
		if deref(rows[i].RatioToFloor) != want[0] || deref(rows[i].RatioToGVisor) != want[1] {
			t.Errorf("%+v, want %v", rows[i], want)
		}
	}
}

func TestHistogram(t *testing.T) {
	for name, c := range map[string]struct {
		rows []Row
		want string
	}{
		"one value": {[]Row{{Of: "a", SamplesMS: []float64{7, 7}}}, "up to ms  a\n7.00      ################ 2\n"},
		"two": {[]Row{{Of: "a", SamplesMS: []float64{1, 1, 1, 256}}, {Of: "b", SamplesMS: []float64{3}}},
			"up to ms  a               b\n2.00      ############ 3\n4.00                      ################ 1\n8.00\n16.0\n32.0\n64.0\n128\n256       #### 1\n"},
	} {
		var b bytes.Buffer
		aligned(&b, func(w io.Writer) { drawHistogram(w, c.rows) })
		if b.String() != c.want {
			t.Errorf("%s:\n%s", name, b.String())
		}
	}
}

// TestOthers: what is installed and works takes turns; of all else it is said
// why it does not.
func TestOthers(t *testing.T) {
	bin := t.TempDir()
	script := func(name, text string) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script("runsc", `[ "$1" = --version ] && echo runsc version 7 && exit; echo hello`)
	script("bwrap", `echo no namespaces >&2; exit 1`)
	t.Setenv("PATH", bin)
	found, notes := findOthers(t.Context(), t.TempDir())
	if len(found) != 1 || found[0].name != ofGVisor {
		t.Fatalf("%+v", found)
	}
	for i, says := range []string{"runsc: runsc version 7", "bwrap is installed and does not work here: exit status 1: \"no namespaces\"", "docker is not installed"} {
		if !strings.Contains(notes[i], says) {
			t.Errorf("%q, want %q", notes[i], says)
		}
	}
	all, err := inTurn(t.Context(), found, 4, 2)
	if err != nil {
		t.Fatal(err)
	}
	if rows := rowsOf(Start, 2, all); rows[0].Failures != 0 || rows[0].Count != 4 || *rows[0].P50 <= 0 {
		t.Errorf("%+v", rows)
	}
	script("runsc", `exit 3`)
	do, _ := found[0].worker(t.Context(), 0)
	if s := do(); s.err == nil || !strings.Contains(fmt.Sprint(s.err), "exit status 3") {
		t.Errorf("%+v", s)
	}
}

// TestRefillIsWaitedFor: a turn ends when nothing is started any more.
func TestRefillIsWaitedFor(t *testing.T) {
	looks := 0
	p := &Product{VMs: func() ([]tartarus.VM, int) {
		looks++
		return nil, max(0, 3-looks)
	}}
	took, err := p.refill(t.Context())
	if err != nil || took < calmLook || took > time.Duration(looks-1)*calmLook+time.Second || looks != 2+calmLooks {
		t.Errorf("%v after %d looks, %v", took, looks, err)
	}
}
