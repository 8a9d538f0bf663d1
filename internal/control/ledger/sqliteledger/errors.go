package sqliteledger

import (
	"context"
	"errors"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

var errDamaged = errors.New("the store is damaged")

// classify gives an error of SQLite its kind. Others stay as they are.
func classify(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	if ctx.Err() != nil && errors.Is(err, sqlite3.INTERRUPT) {
		return ctx.Err()
	}
	switch {
	case errors.Is(err, sqlite3.FULL):
		return fault.Wrap(fault.Unavailable, err, "the ledger's disk is full").
			WithHint("free some space in the state folder")
	case errors.Is(err, sqlite3.BUSY), errors.Is(err, sqlite3.LOCKED):
		return fault.Wrap(fault.Unavailable, err, "the ledger is in use by another process").
			WithHint("try again")
	case errors.Is(err, sqlite3.CORRUPT), errors.Is(err, sqlite3.NOTADB), errors.Is(err, errDamaged):
		return fault.Wrap(fault.Internal, err, "the ledger's file is damaged, or is not a ledger").
			WithHint("move it away, with the -wal and -shm files beside it, or put a copy in its place")
	case errors.Is(err, sqlite3.IOERR), errors.Is(err, sqlite3.CANTOPEN), errors.Is(err, sqlite3.READONLY),
		errors.Is(err, sqlite3.PERM), errors.Is(err, sqlite3.NOMEM):
		return fault.Wrap(fault.Unavailable, err, "the ledger's file cannot be read or written").
			WithHint("see to its disk and its permissions")
	}
	return err
}
