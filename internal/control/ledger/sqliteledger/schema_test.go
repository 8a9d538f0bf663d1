package sqliteledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

func refuses(t *testing.T, path string, k fault.Kind, words ...string) {
	t.Helper()
	l, err := Open(t.Context(), Config{Path: path})
	if err == nil {
		_ = l.Close()
	}
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != k || e.Hint == "" {
		t.Fatalf("Open returned %v, want one of kind %s with a hint", err, k)
	}
	for _, w := range append(words, path) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not name %q", err, w)
		}
	}
}

func TestANewerStoreIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	c, err := open(Config{Path: path}, append(migrations[:len(migrations):len(migrations)], `CREATE TABLE future (x)`))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	refuses(t, path, fault.Unsupported, fmt.Sprintf("version %d", len(migrations)+1), fmt.Sprintf("up to %d", len(migrations)))
}

func TestAnOlderStoreIsBroughtUpToDate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openLedger(t, Config{Path: path})
	if err := admit(t.Context(), l, request(1)); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	steps := append(migrations[:len(migrations):len(migrations)], `ALTER TABLE nodes ADD COLUMN x TEXT`, `CREATE TABLE y (z)`)
	broken := append(steps[:len(steps):len(steps)], `CREATE TABLE y (z)`)
	if c, err := open(Config{Path: path}, broken); err == nil {
		_ = c.close()
		t.Fatal("a migration that cannot be is done")
	}
	for range 2 { // the second finds it done
		c, err := open(Config{Path: path}, steps)
		if err != nil {
			t.Fatal(err)
		}
		version, err := c.number(sqlVersion)
		if err != nil || version != int64(len(steps)) {
			t.Errorf("version %d, %v", version, err)
		}
		if n, err := c.number(`SELECT count(*) FROM records`); n != 1 || err != nil {
			t.Errorf("%d records are left, %v", n, err)
		}
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecordsOfAnOlderStoreKeepTheirPolicy has a store of version 1, which did
// not know of policies, say which ones its records name.
func TestRecordsOfAnOlderStoreKeepTheirPolicy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	c, err := open(Config{Path: path}, migrations[:1])
	if err != nil {
		t.Fatal(err)
	}
	err = c.db.Exec(`INSERT INTO records (id, tenant, state, node, ended_at, seq, doc) VALUES
		('a', 't', 'failed', '', 1, 1, '{"verdict": {"policy_version": "v1"}}'), ('b', 't', 'failed', '', 1, 1, '{}')`)
	if err := errors.Join(err, c.close()); err != nil {
		t.Fatal(err)
	}
	if c, err = open(Config{Path: path}, migrations); err != nil {
		t.Fatal(err)
	}
	var got []string
	err = c.query(func(s *sqlite3.Stmt) error {
		got = append(got, s.ColumnText(0))
		return nil
	}, `SELECT policy FROM records ORDER BY id`)
	if err := errors.Join(err, c.close()); err != nil || fmt.Sprint(got) != "[v1 ]" {
		t.Errorf("the records name %q, %v", got, err)
	}
}

func TestAnotherProgramsDatabaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.db")
	db, err := sqlite3.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Exec(`CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)`), db.Close()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refuses(t, path, fault.Conflict, "another program")
	after, err := os.ReadFile(path)
	if err != nil || string(before) != string(after) {
		t.Errorf("it was changed, %v", err)
	}
}

func TestADamagedStoreIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is no database\n", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, path, fault.Internal, "damaged")
}

// TestDamageIsToldWhenItIsMet overwrites all but the first page.
func TestDamageIsToldWhenItIsMet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openLedger(t, Config{Path: path})
	for i := range 50 {
		if err := admit(t.Context(), l, request(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(data); i++ {
		data[i] = 0x5a
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, path, fault.Internal, "damaged")
}

func TestAStoreThatCannotBeWritten(t *testing.T) {
	if _, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "missing", "ledger.db")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without its folder Open returned %v", err)
	}
	if _, err := Open(t.Context(), Config{}); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("without a path Open returned %v", err)
	}
}

func TestAPathWithOddCharacters(t *testing.T) {
	l := openLedger(t, Config{Path: filepath.Join(t.TempDir(), "a b?c#d%20e&f.db")})
	if err := admit(t.Context(), l, request(1)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.cfg.Path); err != nil {
		t.Error(err)
	}
}
