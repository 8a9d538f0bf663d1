package annals

import (
	"fmt"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// maxDifference bounds the bytes of a difference. Both texts can be read whole
// for as long as they are kept.
const maxDifference = 4 << 10

// Difference is the change from one text to another in the unified form, cut
// where it becomes long, and how many lines it adds and removes in all.
func Difference(from, to string) (text string, added, removed int) {
	_, hunks, _ := strings.Cut(string(diff.Diff("a", []byte(from), "b", []byte(to))), "\n+++ b\n")
	var b strings.Builder
	left := 0
	for line := range strings.Lines(hunks) {
		switch line[0] {
		case '+':
			added++
		case '-':
			removed++
		}
		if left > 0 || b.Len()+len(line) > maxDifference {
			left++
			continue
		}
		b.WriteString(line)
	}
	if left > 0 {
		fmt.Fprintf(&b, "… %d more lines\n", left)
	}
	return b.String(), added, removed
}
