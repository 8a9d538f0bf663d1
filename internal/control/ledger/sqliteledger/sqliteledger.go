// Package sqliteledger is the ledger in one SQLite file.
//
// One goroutine writes: it takes the steps that wait, runs each in a savepoint
// of one transaction, and answers all of them after the commit has reached the
// disk. Readers go on beside it. Any number of processes may use the same file;
// they see each other's steps but not each other's Watch.
package sqliteledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Config is what a Ledger is made of.
type Config struct {
	Path    string // of the file, in a folder that is there; made with mode 0600 if it is not
	Readers int    // connections that read at once; 4 if zero

	// WipeAfter bounds how long the write-ahead log still holds the sealed
	// secrets of a sandbox that has ended; 1 s if zero. The database itself
	// loses them within the same step. While the disk is full the log keeps
	// them, since emptying it would give its room to whoever fills the disk.
	WipeAfter time.Duration

	// Reserve is how many bytes of the disk are kept free for what must be
	// written when the disk is full; 0 for none. One process keeps it.
	Reserve int64

	Logger   *slog.Logger    // nil: none
	Observer ledger.Observer // nil: none

	vfs string // that SQLite reads and writes through; "" but in tests
}

// Validate fills in the defaults and says what cannot be.
func (c *Config) Validate() error {
	if c.Path == "" {
		return fault.Invalid("path", "name the file", "the ledger has no path")
	}
	abs, err := filepath.Abs(c.Path)
	if err != nil {
		return fmt.Errorf("finding the ledger's file: %w", err)
	}
	c.Path = abs
	if c.Readers < 0 || c.WipeAfter < 0 || c.Reserve < 0 {
		return fault.Invalid("readers", "use a positive number", "the ledger's readers, wipe_after and reserve cannot be negative")
	}
	if c.Readers == 0 {
		c.Readers = 4
	}
	if c.WipeAfter == 0 {
		c.WipeAfter = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Ledger is a ledger in a file. Make one with Open.
type Ledger struct {
	cfg    Config
	hub    ledger.Hub
	writer *writer

	// readers holds Config.Readers entries; one that is nil is still to be
	// opened. Whoever takes one out puts it back.
	readers chan *conn

	joined joined

	closing sync.Once
	closed  chan struct{} // closed by Close
	err     error         // of Close
}

var _ ledger.Ledger = (*Ledger)(nil)

// Open opens the file, makes it if it is not there, and brings an older one up
// to date. A newer one, a damaged one, or one that is another program's, is
// refused. The caller closes the Ledger.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := open(cfg, migrations)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger %q: %w", cfg.Path, classify(ctx, err))
	}
	l := &Ledger{
		cfg: cfg, readers: make(chan *conn, cfg.Readers), closed: make(chan struct{}),
		joined: joined{byID: map[string]sandbox.Node{}},
	}
	for range cfg.Readers {
		l.readers <- nil
	}
	l.writer = newWriter(c, &l.hub, cfg)
	return l, nil
}

// Close implements ledger.Ledger.
func (l *Ledger) Close() error {
	l.closing.Do(func() {
		close(l.closed)
		errs := []error{}
		for range cap(l.readers) {
			if c := <-l.readers; c != nil {
				errs = append(errs, c.close())
			}
		}
		errs = append(errs, l.writer.close()) // last: it is the one to remove the log
		l.err = errors.Join(errs...)
	})
	return l.err
}

// step runs f in the writer's next transaction and returns when that is
// durable. f runs at most once.
func (l *Ledger) step(ctx context.Context, f func(t *txn) error) error {
	return classify(ctx, l.writer.step(ctx, f))
}

// read runs f on a connection that only reads, with one view of the store.
func (l *Ledger) read(ctx context.Context, f func(c *conn) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-l.closed:
		return ledger.ErrClosed()
	default:
	}
	var c *conn
	select {
	case c = <-l.readers:
	case <-l.closed:
		return ledger.ErrClosed()
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { l.readers <- c }()
	if c == nil {
		if c, err = l.dialReader(); err != nil {
			return classify(ctx, err)
		}
	}
	c.db.SetInterrupt(ctx)
	defer c.db.SetInterrupt(context.Background())
	if err := c.exec(sqlSnapshot); err != nil {
		return classify(ctx, err)
	}
	err = f(c)
	c.db.SetInterrupt(context.Background())
	if e := c.exec(sqlRollback); e != nil { // nothing was written
		err = errors.Join(err, e, c.close())
		c = nil
	}
	return classify(ctx, err)
}

func (l *Ledger) dialReader() (*conn, error) {
	c, err := dial(l.cfg.Path, l.cfg.vfs)
	if err != nil {
		return nil, err
	}
	if err := c.db.Exec(sqlReaderPragmas); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// Watch implements ledger.Book.
func (l *Ledger) Watch(ctx context.Context) <-chan struct{} { return l.hub.Watch(ctx) }

// makeFile makes sure that the file is there and only its owner's.
func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}
