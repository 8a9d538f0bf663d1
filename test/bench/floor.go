package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// bare is SQLite with nothing around it: one writer that takes who waits into
// one commit, as durable as the ledger's, and one table.
type bare struct {
	db   *sqlite3.Conn
	row  *sqlite3.Stmt
	text string // of each row

	jobs chan chan error
	done chan struct{}
	n    int64
}

// bareBatch is the ledger's bound of a commit.
const bareBatch = 256

func openBare(dir string, bytes int) (_ *bare, err error) {
	b := &bare{text: fmt.Sprintf("%0*d", bytes, 7), jobs: make(chan chan error), done: make(chan struct{})}
	if dir, err = os.MkdirTemp(dir, "bare-"); err != nil {
		return nil, err
	}
	if b.db, err = sqlite3.Open(filepath.Join(dir, "bare.db")); err != nil {
		return nil, err
	}
	err = b.db.Exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE bare (n INTEGER PRIMARY KEY, t TEXT)`)
	if err == nil {
		b.row, _, err = b.db.Prepare(`INSERT INTO bare VALUES (?1, ?2)`)
	}
	if err != nil {
		return nil, errors.Join(err, b.db.Close())
	}
	go b.write()
	return b, nil
}

// commit returns when one more row is on the disk.
func (b *bare) commit() error {
	answer := make(chan error, 1)
	b.jobs <- answer
	return <-answer
}

// close ends the writer. Nobody may commit any more.
func (b *bare) close() error {
	close(b.jobs)
	<-b.done
	return errors.Join(b.row.Close(), b.db.Close())
}

func (b *bare) write() {
	defer close(b.done)
	for first := range b.jobs {
		batch := []chan error{first}
	collect:
		for len(batch) < bareBatch {
			select {
			case more, ok := <-b.jobs:
				if !ok {
					break collect
				}
				batch = append(batch, more)
			default:
				break collect
			}
		}
		err := b.db.Exec(`BEGIN IMMEDIATE`)
		for range batch {
			if err == nil {
				err = b.insert()
			}
		}
		if err == nil {
			err = b.db.Exec(`COMMIT`)
		}
		for _, answer := range batch {
			answer <- err
		}
	}
}

func (b *bare) insert() error {
	b.n++
	if err := errors.Join(b.row.BindInt64(1, b.n), b.row.BindText(2, b.text)); err != nil {
		return err
	}
	return b.row.Exec()
}

// rate is n commits of 64 clients, a second.
func (b *bare) rate(n int) (float64, error) {
	return crowd(n, func() (func() error, func(), error) { return b.commit, func() {}, nil })
}

// pairs is how often workers do two commits one after the other, a second.
func (b *bare) pairs(n, workers int) (float64, error) {
	errs := make([]error, workers)
	var all sync.WaitGroup
	began := time.Now()
	for w := range workers {
		all.Go(func() {
			for i := w; i < n && errs[w] == nil; i += workers {
				errs[w] = errors.Join(b.commit(), b.commit())
			}
		})
	}
	all.Wait()
	return float64(n) / time.Since(began).Seconds(), errors.Join(errs...)
}
