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

func TestObserver(t *testing.T) {
	ledgertest.Observe(t, func(_ testing.TB, o ledger.Observer) ledger.Ledger { return memledger.NewObserved(o) })
}

func TestModel(t *testing.T) { ledgertest.Model(t, open) }
