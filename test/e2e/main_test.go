// Package e2e holds the tests of the whole road, on real VMs.
package e2e_test

import (
	"testing"

	"github.com/tartarus-vm/tartarus/test/realvm"
)

func TestMain(m *testing.M) { realvm.Main(m) }
