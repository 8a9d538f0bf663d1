// Command mustrun reads `go test -json` from standard input, prints what a
// person wants to read of it, and fails when a test failed or one of the tests
// in the file named as its argument did not run to a pass.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// event is a line of test2json (go doc test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -json ./... | mustrun FILE")
		os.Exit(2)
	}
	must, err := readList(os.Args[1], os.Geteuid() == 0)
	if err == nil {
		err = check(os.Stdin, os.Stdout, must)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mustrun:", err)
		os.Exit(1)
	}
}

// readList reads "package Test" lines; empty ones and comments (#) are passed
// over, and those with "root" before them unless root is true.
func readList(file string, root bool) (map[string]bool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	must := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if rest, ok := strings.CutPrefix(line, "root "); ok {
			if !root {
				continue
			}
			line = rest
		}
		must[strings.Join(strings.Fields(line), " ")] = true
	}
	return must, nil
}

func check(in io.Reader, out io.Writer, must map[string]bool) error {
	output := map[string]*strings.Builder{} // by package and test, until its end
	passed, failed, skipped := 0, 0, 0
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			fmt.Fprintln(out, sc.Text()) // a build error
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			b := output[key]
			if b == nil {
				b = &strings.Builder{}
				output[key] = b
			}
			if e.Test == "" && (strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "FAIL")) || e.Action == "build-output" {
				fmt.Fprint(out, e.Output)
			} else {
				b.WriteString(e.Output)
			}
		case "pass", "skip", "fail":
			text := output[key]
			delete(output, key)
			if e.Test == "" {
				if e.Action == "fail" {
					failed++ // a build that failed, a panic or a leak has no test of its own
					if text != nil {
						fmt.Fprint(out, text.String())
					}
					// A panic is told as what a test said that has no end.
					for _, k := range slices.Sorted(maps.Keys(output)) {
						if strings.HasPrefix(k, key) {
							fmt.Fprint(out, output[k].String())
							delete(output, k)
						}
					}
				}
				continue
			}
			switch e.Action {
			case "pass":
				passed++
				delete(must, short(e.Package)+" "+e.Test)
			case "skip":
				skipped++
				fmt.Fprintf(out, "skipped: %s\n", key)
			case "fail":
				failed++
				if text != nil {
					fmt.Fprint(out, text.String())
				}
			}
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if err := sc.Err(); err != nil {
		return err
	}
	if failed > 0 || passed == 0 {
		return fmt.Errorf("%d tests failed, %d passed", failed, passed)
	}
	if len(must) > 0 {
		return fmt.Errorf("on the list of tests that may not skip, and not run to a pass: %s", strings.Join(slices.Sorted(maps.Keys(must)), ", "))
	}
	return nil
}

// short is a package's path without the module's.
func short(pkg string) string {
	return strings.TrimPrefix(pkg, "github.com/tartarus-vm/tartarus/")
}
