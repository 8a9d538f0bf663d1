package sqliteledger

import (
	"errors"
	"fmt"
	"os"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// open opens the one connection that writes, and sees to the schema.
func open(cfg Config, steps []string) (*conn, error) {
	if err := makeFile(cfg.Path); err != nil {
		return nil, err
	}
	c, err := dial(cfg.Path, cfg.vfs)
	if err != nil {
		return nil, err
	}
	err = prepare(c, steps)
	if err == nil && len(steps) >= sumsVersion {
		err = sumAnew(c)
	}
	if err == nil {
		// The index of the log is the one file that does not follow modeof.
		if err = os.Chmod(cfg.Path+"-shm", 0o600); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func prepare(c *conn, steps []string) error {
	// Before anything is written: is it ours?
	if err := ours(c); err != nil {
		return err
	}
	var mode string
	if _, err := c.first(func(s *sqlite3.Stmt) error {
		mode = s.ColumnText(0)
		return nil
	}, sqlWAL); err != nil {
		return err
	}
	if mode != "wal" {
		return fault.New(fault.Unsupported, "the ledger's file system cannot keep a write-ahead log (journal mode is %q)", mode).
			WithHint("put the state folder on a local file system")
	}
	if err := c.db.Exec(sqlWriterPragmas); err != nil {
		return err
	}
	return migrate(c, steps)
}

// ours refuses a database of another program.
func ours(c *conn) error {
	id, err := c.number(sqlApplication)
	if err != nil {
		return err
	}
	tables, err := c.number(sqlTables)
	if err != nil {
		return err
	}
	if id == applicationID || id == 0 && tables == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "the file is a database of another program").
		WithHint("give the ledger a file of its own")
}

// migrate brings the schema to version len(steps), in one transaction.
func migrate(c *conn, steps []string) (err error) {
	if err := c.exec(sqlBegin); err != nil {
		return err
	}
	defer func() {
		if err != nil && !c.db.GetAutocommit() {
			err = errors.Join(err, c.exec(sqlRollback))
		}
	}()
	if err := ours(c); err != nil { // another process may have been first
		return err
	}
	tables, err := c.number(sqlTables)
	if err != nil {
		return err
	}
	if tables == 0 {
		if err := c.db.Exec(sqlMark + ";" + sqlVersionTable); err != nil {
			return err
		}
	}
	version, err := c.number(sqlVersion)
	if err != nil {
		return err
	}
	if version > int64(len(steps)) {
		return fault.New(fault.Unsupported, "the ledger's file has version %d, and this program knows versions up to %d", version, len(steps)).
			WithHint("use the newer program that wrote it")
	}
	for v := version; v < int64(len(steps)); v++ {
		if err := c.db.Exec(steps[v]); err != nil {
			return fmt.Errorf("bringing the ledger from version %d to %d: %w", v, v+1, err)
		}
		if err := c.exec(sqlSetVersion, v+1); err != nil {
			return err
		}
	}
	return c.exec(sqlCommit)
}

// sumAnew makes the sums over what is live.
func sumAnew(c *conn) error {
	if err := c.exec(sqlBegin); err != nil {
		return err
	}
	err := c.db.Exec(sqlSumAnew)
	if err == nil {
		err = c.exec(sqlCommit)
	}
	if err != nil && !c.db.GetAutocommit() {
		err = errors.Join(err, c.exec(sqlRollback))
	}
	return err
}
