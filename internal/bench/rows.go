package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/ncruces/go-sqlite3"
	"github.com/oklog/ulid/v2"

	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
)

// copied is what an admission writes: a row in each of these tables, as found
// in a ledger, which is inserted again and again under other IDs.
var copied = []string{"records", "live", "sealed", "events", "audit"}

// inserts are the statements of one admission.
type inserts struct {
	stmts []*sqlite3.Stmt
	rows  [][]any // as they were found
	ids   []int   // column of the ID, from 1; 0: seq is what tells rows apart
}

// openRows is a bare SQLite that writes in each commit what the last admission
// wrote into a ledger's file, into tables with the ledger's indexes.
func openRows(ctx context.Context, dir, from string) (_ *Bare, err error) {
	path := filepath.Join(dir, "rows.db")
	l, err := sqliteledger.Open(ctx, sqliteledger.Config{Path: path})
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		return nil, err
	}
	b, err := startBare(path, sqlDurable)
	if err != nil {
		return nil, err
	}
	in, err := readInserts(b.db, from)
	if err != nil {
		return nil, errors.Join(err, b.db.Close())
	}
	b.insert, b.end = func() error { return in.insert(b.n) }, in.close
	go b.write()
	return b, nil
}

func readInserts(to *sqlite3.Conn, from string) (*inserts, error) {
	src, err := sqlite3.OpenFlags("file:"+from, sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	in := &inserts{}
	for _, table := range copied {
		row, id, err := lastRow(src, table)
		if err != nil {
			return nil, errors.Join(err, in.close())
		}
		s, _, err := to.Prepare("INSERT INTO " + table + " VALUES (?" + strings.Repeat(", ?", len(row)-1) + ")")
		if err != nil {
			return nil, errors.Join(err, in.close())
		}
		in.stmts, in.rows, in.ids = append(in.stmts, s), append(in.rows, row), append(in.ids, id)
	}
	return in, nil
}

// lastRow is the newest row of a table, and which of its columns is the ID.
func lastRow(db *sqlite3.Conn, table string) (row []any, id int, err error) {
	order := "id"
	if table == "audit" {
		order = "seq"
	}
	s, _, err := db.Prepare("SELECT * FROM " + table + " ORDER BY " + order + " DESC LIMIT 1")
	if err != nil {
		return nil, 0, err
	}
	defer s.Close()
	if !s.Step() {
		return nil, 0, errors.Join(s.Err(), fmt.Errorf("%s has no row", table))
	}
	for i := range s.ColumnCount() {
		if s.ColumnName(i) == "id" {
			id = i + 1
		}
		switch s.ColumnType(i) {
		case sqlite3.INTEGER:
			row = append(row, s.ColumnInt64(i))
		case sqlite3.BLOB:
			row = append(row, s.ColumnBlob(i, nil))
		default:
			row = append(row, s.ColumnText(i))
		}
	}
	return row, id, nil
}

func (in *inserts) insert(n int64) error {
	name := "sb-" + strings.ToLower(ulid.Make().String())
	for i, s := range in.stmts {
		for c, v := range in.rows[i] {
			switch {
			case c+1 == in.ids[i]:
				v = name
			case in.ids[i] == 0 && c == 0:
				v = n
			}
			if err := bind(s, c+1, v); err != nil {
				return err
			}
		}
		if err := s.Exec(); err != nil {
			return err
		}
	}
	return nil
}

func bind(s *sqlite3.Stmt, i int, v any) error {
	switch v := v.(type) {
	case int64:
		return s.BindInt64(i, v)
	case []byte:
		return s.BindBlob(i, v)
	case string:
		return s.BindText(i, v)
	}
	return fmt.Errorf("a %T cannot be bound", v)
}

func (in *inserts) close() error {
	var errs []error
	for _, s := range in.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
