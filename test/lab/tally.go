package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// logBytes bounds what is kept of a check's output.
const logBytes = 64 << 10

// tally keeps the end of what a check prints, and reads the results of Go
// tests in it.
type tally struct {
	to      io.Writer // where lines are passed on to, if not nil
	limit   int
	results map[string]string // PASS, FAIL or SKIP by test, without subtests
	line    []byte            // not yet ended
	kept    []byte
}

// verdict is how a test binary in its mode test2json tells a result; the mark
// tells it from what tests print. Subtests are indented.
var verdict = regexp.MustCompile(`\x16--- (PASS|FAIL|SKIP): (\S+) \(`)

// noise is told of every test that passes, and says nothing of a failure.
var noise = regexp.MustCompile(`^\x16(=== (RUN|PAUSE|CONT|NAME)| *--- PASS:) `)

// mark is what a test binary puts before its own lines.
const mark = "\x16"

// reset forgets what was said: it is about to be said once more.
func (t *tally) reset() { t.results, t.line, t.kept = nil, nil, nil }

// Write implements io.Writer.
func (t *tally) Write(p []byte) (int, error) {
	t.line = append(t.line, p...)
	for {
		i := bytes.IndexByte(t.line, '\n')
		if i < 0 && len(t.line) < t.limit {
			return len(p), nil
		}
		if i < 0 {
			i = len(t.line) - 1
		}
		if err := t.take(t.line[:i+1]); err != nil {
			return 0, err
		}
		t.line = append(t.line[:0], t.line[i+1:]...)
	}
}

// take takes a whole line.
func (t *tally) take(line []byte) error {
	for _, m := range verdict.FindAllSubmatch(line, -1) {
		if t.results == nil {
			t.results = map[string]string{}
		}
		t.results[string(m[2])] = string(m[1])
	}
	plain := bytes.ReplaceAll(line, []byte(mark), nil)
	if !noise.Match(line) {
		t.kept = append(t.kept, plain...)
		if over := len(t.kept) - t.limit; over > 0 {
			t.kept = append(t.kept[:0], t.kept[over:]...)
		}
	}
	if t.to == nil {
		return nil
	}
	_, err := t.to.Write(plain)
	return err
}

// text is the end of what was printed.
func (t *tally) text() string { return string(t.kept) + string(t.line) }

// summary is how the tests went, in words; "" if there were none.
func (t *tally) summary() string {
	if len(t.results) == 0 {
		return ""
	}
	by := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(t.results)) {
		by[t.results[name]] = append(by[t.results[name]], name)
	}
	parts := []string{fmt.Sprintf("%d passed", len(by["PASS"]))}
	if f := by["FAIL"]; len(f) > 0 {
		parts = append(parts, fmt.Sprintf("%d failed: %s", len(f), strings.Join(f, ", ")))
	}
	if s := by["SKIP"]; len(s) > 0 {
		parts = append(parts, fmt.Sprintf("%d skipped: %s", len(s), strings.Join(s, ", ")))
	}
	return strings.Join(parts, "; ")
}
