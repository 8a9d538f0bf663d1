package fcapi

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Version is a version of Firecracker.
type Version struct{ Major, Minor, Patch int }

var versionForm = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})$`)

// ParseVersion reads a released version, with or without a v before it. One
// that was never released (1.17.0-dev) is an error.
func ParseVersion(s string) (Version, error) {
	m := versionForm.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return Version{}, fmt.Errorf("%.64q is no released version of Firecracker", s)
	}
	var n [3]int
	for i, d := range m[1:] {
		n[i], _ = strconv.Atoi(d) // digits only, by the expression
	}
	return Version{n[0], n[1], n[2]}, nil
}

// String is the version without a v.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Before orders versions.
func (v Version) Before(w Version) bool {
	switch {
	case v.Major != w.Major:
		return v.Major < w.Major
	case v.Minor != w.Minor:
		return v.Minor < w.Minor
	}
	return v.Patch < w.Patch
}
