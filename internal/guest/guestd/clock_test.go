package guestd

import (
	"strings"
	"testing"
)

// list is what a kernel 6.1 tells, in part.
const list = `Tick Device: mode:     1
Per CPU device: 0
Clock Event Device: lapic
 max_delta_ns:   37885014892
 min_delta_ns:   1000
 mult:           243456999
 shift:          32
 mode:           3
`

func TestJudgeClock(t *testing.T) {
	for _, tc := range []struct{ name, device, list, wrong string }{
		{"a good one", "lapic", list, ""},
		{"none", "", list, "no timer"},
		{"one that is not measured", "lapic-deadline", "", ""},
		{"late", "lapic", strings.Replace(list, "243456999", "536870912", 1), "measured"},
		{"far too early", "lapic", strings.Replace(list, "243456999", "1048576", 1), "measured"},
		{"a list of another form", "lapic", "mult: 1", ""},
		{"no list", "lapic", "", ""},
	} {
		err := judgeClock(tc.device, tc.list)
		if (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
