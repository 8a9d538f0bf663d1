package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// claim is a test as docs/security.md names it: a package, then tests of it.
var claim = regexp.MustCompile("`((?:internal|test|client|examples)/[\\w/]+) ((?:Test|Fuzz)\\w+)`|`((?:Test|Fuzz)\\w+)`")

// TestSecurityClaims insists that every test that the page names is there.
func TestSecurityClaims(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root(t), "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(page)) {
		pkg := ""
		for _, m := range claim.FindAllStringSubmatch(line, -1) {
			name := m[3]
			if m[1] != "" {
				pkg, name = m[1], m[2]
			}
			seen++
			if !hasTest(t, pkg, name) {
				t.Errorf("docs/security.md names %s %s, which is not there", pkg, name)
			}
		}
	}
	if seen == 0 {
		t.Error("no claim was seen: the test is blind")
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
