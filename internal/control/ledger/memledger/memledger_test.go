package memledger_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgertest"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(testing.TB) ledger.Ledger { return memledger.New() }

func TestSuite(t *testing.T) { ledgertest.Run(t, open) }

func TestModel(t *testing.T) { ledgertest.Model(t, open) }
