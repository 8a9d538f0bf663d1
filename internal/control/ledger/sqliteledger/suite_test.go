package sqliteledger_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgertest"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openAt(t testing.TB, path string) *sqliteledger.Ledger {
	t.Helper()
	l, err := sqliteledger.Open(t.Context(), sqliteledger.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func open(t testing.TB) ledger.Ledger { return openAt(t, filepath.Join(t.TempDir(), "ledger.db")) }

func TestSuite(t *testing.T) { ledgertest.Run(t, open) }

func TestModel(t *testing.T) { ledgertest.Model(t, open) }
