package sqliteledger_test

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/ledgertest"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
)

func open(t testing.TB) ledger.Ledger { return openObserved(t, nil) }

func openObserved(t testing.TB, o ledger.Observer) ledger.Ledger {
	t.Helper()
	l, err := sqliteledger.Open(t.Context(), sqliteledger.Config{Path: filepath.Join(t.TempDir(), "ledger.db"), Observer: o})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSuite(t *testing.T) { ledgertest.Run(t, open) }

func TestObserver(t *testing.T) { ledgertest.Observe(t, openObserved) }

// TestModel makes fewer rounds than rapid would by itself: each step waits for
// the disk. -rapid.checks asks for more.
func TestModel(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("40"); err != nil {
			t.Fatal(err)
		}
	}
	ledgertest.Model(t, open)
}
