package sqliteledger

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// conn is one connection with its prepared statements. One goroutine at a time
// uses it.
type conn struct {
	db    *sqlite3.Conn
	stmts map[string]*sqlite3.Stmt
}

// busyTimeout is how long a step waits for another process that writes.
const busyTimeout = 10 * time.Second

// dial opens a connection to the file, which is there. vfs is Config.vfs.
func dial(path, vfs string) (*conn, error) {
	// modeof: the files beside it get the mode of the database itself.
	query := url.Values{"modeof": {path}}
	if vfs != "" {
		query.Set("vfs", vfs)
	}
	// SQLite does not read + as a space.
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20")}
	db, err := sqlite3.OpenFlags(u.String(), sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	if err := db.BusyTimeout(busyTimeout); err != nil {
		_ = db.Close()
		return nil, err
	}
	return &conn{db: db, stmts: map[string]*sqlite3.Stmt{}}, nil
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		_ = s.Close()
	}
	return c.db.Close()
}

// stmt is sql prepared and bound.
func (c *conn) stmt(sql string, args []any) (*sqlite3.Stmt, error) {
	s := c.stmts[sql]
	if s == nil {
		var err error
		if s, _, err = c.db.PrepareFlags(sql, sqlite3.PREPARE_PERSISTENT); err != nil {
			return nil, err
		}
		c.stmts[sql] = s
	}
	for i, a := range args {
		if err := bind(s, i+1, a); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// document is JSON that is bound as text.
type document []byte

func bind(s *sqlite3.Stmt, i int, a any) error {
	switch a := a.(type) {
	case string:
		return s.BindText(i, a)
	case int64:
		return s.BindInt64(i, a)
	case int:
		return s.BindInt64(i, int64(a))
	case time.Time:
		return s.BindInt64(i, nanos(a))
	case document:
		return s.BindRawText(i, a)
	case []byte:
		return s.BindBlob(i, a)
	}
	return fmt.Errorf("a %T cannot be bound", a)
}

// query calls row for each row. row must not keep what it is given.
func (c *conn) query(row func(s *sqlite3.Stmt) error, sql string, args ...any) error {
	s, err := c.stmt(sql, args)
	if err != nil {
		return err
	}
	for s.Step() {
		if err := row(s); err != nil {
			_ = s.Reset()
			_ = s.ClearBindings()
			return err
		}
	}
	err = s.Err()
	if e := s.Reset(); err == nil {
		err = e
	}
	_ = s.ClearBindings() // secrets are not kept in the statement
	return err
}

// exec runs sql for its effect.
func (c *conn) exec(sql string, args ...any) error {
	return c.query(func(*sqlite3.Stmt) error { return nil }, sql, args...)
}

// first calls row for the first row; found is false when there is none.
func (c *conn) first(row func(s *sqlite3.Stmt) error, sql string, args ...any) (found bool, err error) {
	err = c.query(func(s *sqlite3.Stmt) error {
		if found {
			return nil
		}
		found = true
		return row(s)
	}, sql, args...)
	return found, err
}

// number is the one number that sql gives; 0 for none.
func (c *conn) number(sql string, args ...any) (n int64, err error) {
	_, err = c.first(func(s *sqlite3.Stmt) error {
		n = s.ColumnInt64(0)
		return nil
	}, sql, args...)
	return n, err
}

// parse reads the JSON of a column.
func parse(s *sqlite3.Stmt, col int, v any) error {
	if err := json.Unmarshal(s.ColumnRawText(col), v); err != nil {
		return fmt.Errorf("%w: a stored %T cannot be read: %w", errDamaged, v, err)
	}
	return nil
}

// text is v as JSON.
func text(v any) (document, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("writing a %T as JSON: %w", v, err)
	}
	return b, nil
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
