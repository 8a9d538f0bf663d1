package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/test/lab/labwire"
)

// output is what a test binary prints in its mode test2json.
const output = "\x16=== RUN   TestA\n\x16=== RUN   TestA/sub\n    a_test.go:1: hello\n\x16    --- FAIL: TestA/sub (0.00s)\n\x16--- PASS: TestA (0.10s)\n" +
	"no newline\x16--- FAIL: TestB (0.00s)\n--- PASS: TestLie (0.00s)\n\x16--- SKIP: TestC (0.00s)\n    c_test.go:1: why\nFAIL\n"

func TestTally(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var through bytes.Buffer
		l := &tally{limit: 1 << 10, to: &through}
		for rest := []byte(output); len(rest) > 0; { // however it is torn
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			if _, err := l.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if got := l.summary(); got != "1 passed; 1 failed: TestB; 1 skipped: TestC" {
			t.Fatalf("%q", got)
		}
		if text := l.text(); strings.Contains(text, "=== RUN") || !strings.Contains(text, "a_test.go:1: hello") || strings.Contains(text, mark) {
			t.Fatalf("kept %q", text)
		}
		if through.String() != strings.ReplaceAll(output, mark, "") {
			t.Fatalf("passed on %q", through.String())
		}
	})
	l := &tally{limit: 100}
	for range 50 {
		if _, err := l.Write(bytes.Repeat([]byte("long line "), 7)); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.text()) > 200 || len(l.line) > 100 {
		t.Errorf("it keeps %d bytes", len(l.text()))
	}
	if l.reset(); l.text() != "" || l.summary() != "" {
		t.Errorf("after a reset: %q", l.text())
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	c := check{name: "x", limit: time.Minute, must: []string{"TestA"}}
	passed := &tally{limit: 100}
	if _, err := passed.Write([]byte("\x16--- PASS: TestA (0s)\n")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		ended labwire.Ended
		err   error
		log   *tally
		want  string
	}{
		{labwire.Ended{}, nil, passed, ""},
		{labwire.Ended{}, nil, &tally{}, "TestA may not skip"},
		{labwire.Ended{Status: 2}, nil, passed, "status 2"},
		{labwire.Ended{Status: 137, TimedOut: true}, nil, passed, "not done in 1m0s"},
		{labwire.Ended{Status: 127, Error: "no such file"}, nil, passed, "no such file"},
		{labwire.Ended{Left: []string{"link tap0"}}, nil, passed, "link tap0"},
		{labwire.Ended{}, errors.New("lost"), &tally{}, "lost"},
	} {
		faults := c.judge(tc.ended, tc.err, tc.log)
		if len(faults) > 1 || (len(faults) == 0) != (tc.want == "") || len(faults) == 1 && !strings.Contains(faults[0], tc.want) {
			t.Errorf("%+v: %q, want %q", tc, faults, tc.want)
		}
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	var w bytes.Buffer
	log := &tally{limit: 100}
	if _, err := log.Write([]byte("trouble\n")); err != nil {
		t.Fatal(err)
	}
	report(&w, "cgroup", 1500*time.Millisecond, log, nil)
	report(&w, "road", time.Second, log, []string{"why"})
	if want := "ok    cgroup          1.5 s\nFAIL  road            1.0 s\n      | trouble\n      why\n"; w.String() != want {
		t.Errorf("%q", w.String())
	}
}

// Every check says all that it must, and no two have one name.
func TestChecks(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range checks {
		if seen[c.name] || c.name == "" || c.limit < 20*time.Second || c.pkg == "" && len(c.argv) == 0 || c.pkg != "" && len(c.must) == 0 {
			t.Errorf("incomplete, or there twice: %+v", c)
		}
		seen[c.name] = true
		o := c.order()
		if len(o.Argv) == 0 || o.Limit != c.limit {
			t.Errorf("%s: %+v", c.name, o)
		}
	}
}
