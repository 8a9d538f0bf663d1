package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// claim is a test as a page of claims names it: a package, then tests of it.
var claim = regexp.MustCompile("`((?:internal|test|client|examples)/[\\w/]+) ((?:Test|Fuzz)\\w+)`|`((?:Test|Fuzz)\\w+)`")

// TestSecurityClaims insists that every test that the pages name is there.
func TestSecurityClaims(t *testing.T) {
	for _, page := range []string{"docs/security.md", "docs/clones.md"} {
		checkClaims(t, page)
	}
}

func checkClaims(t *testing.T, name string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(page)) {
		pkg := ""
		for _, m := range claim.FindAllStringSubmatch(line, -1) {
			test := m[3]
			if m[1] != "" {
				pkg, test = m[1], m[2]
			}
			seen++
			if !hasTest(t, pkg, test) {
				t.Errorf("%s names %s %s, which is not there", name, pkg, test)
			}
		}
	}
	if seen == 0 {
		t.Errorf("no claim was seen in %s: the test is blind", name)
	}
}

func hasTest(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root(t), pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
