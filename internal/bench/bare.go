package bench

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// Bare is SQLite with nothing around it: one writer that takes who waits into
// one commit, as durable as the ledger's.
type Bare struct {
	db     *sqlite3.Conn
	insert func() error // what a commit writes, for each who waits
	end    func() error // ends insert
	n      int64        // of inserts, for insert to use; of the writer

	jobs chan chan error
	done chan struct{}
}

// bareBatch is the ledger's bound of a commit.
const bareBatch = 256

const sqlDurable = `PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;`

func startBare(path, sql string) (*Bare, error) {
	b := &Bare{jobs: make(chan chan error), done: make(chan struct{})}
	var err error
	if b.db, err = sqlite3.Open(path); err != nil {
		return nil, err
	}
	if err := b.db.Exec(sql); err != nil {
		return nil, errors.Join(err, b.db.Close())
	}
	return b, nil
}

// OpenBare is one that inserts a small row into one table.
func OpenBare(dir string) (*Bare, error) {
	dir, err := os.MkdirTemp(dir, "bare-")
	if err != nil {
		return nil, err
	}
	b, err := startBare(filepath.Join(dir, "bare.db"), sqlDurable+`CREATE TABLE bare (n INTEGER PRIMARY KEY, t TEXT)`)
	if err != nil {
		return nil, err
	}
	row, _, err := b.db.Prepare(`INSERT INTO bare VALUES (?1, 'a small row')`)
	if err != nil {
		return nil, errors.Join(err, b.db.Close())
	}
	b.insert = func() error { return errors.Join(row.BindInt64(1, b.n), row.Exec()) }
	b.end = row.Close
	go b.write()
	return b, nil
}

// Commit returns when one more row is on the disk.
func (b *Bare) Commit() error {
	answer := make(chan error, 1)
	b.jobs <- answer
	return <-answer
}

// Close ends the writer. Nobody may commit any more.
func (b *Bare) Close() error {
	close(b.jobs)
	<-b.done
	return errors.Join(b.end(), b.db.Close())
}

func (b *Bare) write() {
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
			b.n++
			if err == nil {
				err = b.insert()
			}
		}
		if err == nil {
			err = b.db.Exec(`COMMIT`)
		}
		if err != nil && !b.db.GetAutocommit() {
			err = errors.Join(err, b.db.Exec(`ROLLBACK`))
		}
		for _, answer := range batch {
			answer <- err
		}
	}
}

// rate is n commits of 64 clients, a second.
func (b *Bare) rate(n int) (float64, error) {
	return Crowd(n, func() (func() error, func(), error) { return b.Commit, func() {}, nil })
}

// pairs is how often workers do two commits one after the other, a second.
func (b *Bare) pairs(n, workers int) (float64, error) {
	errs := make([]error, workers)
	var all sync.WaitGroup
	began := time.Now()
	for w := range workers {
		all.Go(func() {
			for i := w; i < n && errs[w] == nil; i += workers {
				errs[w] = errors.Join(b.Commit(), b.Commit())
			}
		})
	}
	all.Wait()
	return float64(n) / time.Since(began).Seconds(), errors.Join(errs...)
}
