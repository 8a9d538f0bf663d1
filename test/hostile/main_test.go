// Package hostile holds the tests of guests that mean harm, on real VMs: what
// they do to themselves is their affair, their record tells the truth, and
// nobody else notices.
package hostile_test

import (
	"flag"
	"testing"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

// atOnce is how many hostile guests there are at the same time.
const atOnce = "4"

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", atOnce); err != nil {
		panic(err)
	}
	realvm.Main(m)
}
