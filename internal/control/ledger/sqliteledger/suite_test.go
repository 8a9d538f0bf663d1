package sqliteledger_test

import (
	"path/filepath"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgertest"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
)

func open(t testing.TB) ledger.Ledger {
	t.Helper()
	l, err := sqliteledger.Open(t.Context(), sqliteledger.Config{Path: filepath.Join(t.TempDir(), "ledger.db")})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSuite(t *testing.T) { ledgertest.Run(t, open) }

func TestModel(t *testing.T) { ledgertest.Model(t, open) }
