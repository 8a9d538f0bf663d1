package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	pass = `{"Action":"pass","Package":"github.com/tartarus-vm/tartarus/a","Test":"TestX","Elapsed":1}` + "\n"
	skip = `{"Action":"skip","Package":"github.com/tartarus-vm/tartarus/a","Test":"TestX"}` + "\n"
	fail = `{"Action":"fail","Package":"github.com/tartarus-vm/tartarus/a","Test":"TestY"}` + "\n"
	boom = `{"Action":"fail","Package":"github.com/tartarus-vm/tartarus/b"}` + "\n"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct{ name, in, wrong string }{
		{"all is well", pass, ""},
		{"skipped", skip + strings.Replace(pass, "TestX", "TestZ", 1), "a TestX"},
		{"missing", strings.Replace(pass, "TestX", "TestZ", 1), "a TestX"},
		{"another failed", pass + fail, "1 tests failed"},
		{"a package failed", pass + boom, "1 tests failed"},
		{"nothing ran", "", "0 passed"},
	} {
		err := check(strings.NewReader(tc.in), &strings.Builder{}, map[string]bool{"a TestX": true})
		if (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestReadList(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(file, []byte("# why\n\na  TestX\nroot b TestY\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for root, want := range map[bool]int{true: 2, false: 1} {
		got, err := readList(file, root)
		if err != nil || len(got) != want || !got["a TestX"] || got["b TestY"] != root {
			t.Errorf("root %v: %v, %v", root, got, err)
		}
	}
}
