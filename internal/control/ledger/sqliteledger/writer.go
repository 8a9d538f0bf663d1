package sqliteledger

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// batchSteps bounds how many steps share one commit.
const batchSteps = 256

// writer owns the connection that writes.
type writer struct {
	c    *conn
	hub  *ledger.Hub
	log  *slog.Logger
	wipe time.Duration
	eye  ledger.Observer // nil: none

	jobs chan *job     // unbuffered: what was taken is answered
	stop chan struct{} // closed by close
	done chan struct{} // closed when run has returned

	// Of run alone.
	wipeAt  time.Time // when the log is to be emptied; zero if it need not be
	reserve *reserve
}

// job is one step that waits for its turn.
type job struct {
	do     func(t *txn) error
	state  atomic.Int32
	answer chan error // room for one
}

// The states of a job.
const (
	jobWaits int32 = iota
	jobTaken
	jobAbandoned
)

// txn is what a step works on.
type txn struct {
	*conn
	reserve *reserve
	changed bool // something was written that watchers may want to know
	erased  bool // secrets were
	changes []change
}

// change is for the observer.
type change struct {
	rec    sandbox.Record
	events []sandbox.Event
}

func newWriter(c *conn, hub *ledger.Hub, cfg Config) *writer {
	w := &writer{
		c: c, hub: hub, log: cfg.Logger, wipe: cfg.WipeAfter, eye: cfg.Observer,
		jobs: make(chan *job), stop: make(chan struct{}), done: make(chan struct{}),
		wipeAt:  time.Now(), // what the process before left in the log
		reserve: newReserve(cfg),
	}
	go w.run()
	return w
}

// step hands f over and waits for its answer. Once f has begun, the end of ctx
// is not waited for: the answer says truly what happened.
func (w *writer) step(ctx context.Context, f func(t *txn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{do: f, answer: make(chan error, 1)}
	select {
	case w.jobs <- j:
	case <-w.stop:
		return ledger.ErrClosed()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-j.answer:
		return err
	case <-ctx.Done():
		if j.state.CompareAndSwap(jobWaits, jobAbandoned) {
			return ctx.Err()
		}
		return <-j.answer
	}
}

// close ends run, after the steps that it has taken.
func (w *writer) close() error {
	close(w.stop)
	<-w.done
	if err := w.emptyLog(); err != nil {
		w.log.Warn("emptying the ledger's write-ahead log failed", "error", err)
	}
	return w.c.close()
}

func (w *writer) run() {
	defer close(w.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if !w.wipeAt.IsZero() {
			timer.Reset(time.Until(w.wipeAt))
			due = timer.C
		}
		select {
		case <-w.stop:
			return
		case <-due:
			w.tidy()
		case j := <-w.jobs:
			w.commit(w.collect(j))
		}
	}
}

// collect adds to first whoever waits already.
func (w *writer) collect(first *job) []*job {
	batch := []*job{first}
	runtime.Gosched() // those just answered may be about to ask again
	for len(batch) < batchSteps {
		select {
		case j := <-w.jobs:
			batch = append(batch, j)
		default:
			return batch
		}
	}
	return batch
}

// commit runs the steps of batch in one transaction and answers them all.
func (w *writer) commit(batch []*job) {
	w.reserve.keep()
	answers := make([]error, len(batch))
	t := &txn{conn: w.c, reserve: w.reserve}
	began := time.Now()
	err := w.transact(t, batch, answers)
	w.tell(t, len(batch), time.Since(began), err)
	if err == nil && t.changed {
		w.hub.Notify()
	}
	if err == nil && t.erased && w.wipeAt.IsZero() {
		w.wipeAt = time.Now().Add(w.wipe)
	}
	for i, j := range batch {
		if err != nil { // whatever it had done is undone
			answers[i] = err
		}
		j.answer <- answers[i]
	}
}

// tell tells the observer.
func (w *writer) tell(t *txn, steps int, took time.Duration, err error) {
	if w.eye == nil {
		return
	}
	w.eye.Committed(steps, took, err)
	if err != nil {
		return
	}
	for _, c := range t.changes {
		w.eye.Changed(c.rec, c.events)
	}
}

// transact returns an error if the transaction as a whole did not happen.
func (w *writer) transact(t *txn, batch []*job, answers []error) error {
	if err := t.exec(sqlBegin); err != nil {
		return err
	}
	for i, j := range batch {
		if !j.state.CompareAndSwap(jobWaits, jobTaken) {
			continue
		}
		s := &txn{conn: t.conn, reserve: t.reserve}
		answers[i] = s.savepoint(j.do)
		if t.db.GetAutocommit() {
			// SQLite gave the whole transaction up: no disk, no memory.
			return answers[i]
		}
		if answers[i] == nil {
			t.changed = t.changed || s.changed
			t.erased = t.erased || s.erased
			t.changes = append(t.changes, s.changes...)
		}
	}
	if err := t.exec(sqlCommit); err != nil {
		if !t.db.GetAutocommit() {
			err = errors.Join(err, t.exec(sqlRollback))
		}
		return err
	}
	return nil
}

// savepoint runs f so that an error of it leaves nothing behind, and nothing
// of the other steps undone.
func (t *txn) savepoint(f func(t *txn) error) error {
	if err := t.exec(sqlSave); err != nil {
		return err
	}
	err := f(t)
	if t.db.GetAutocommit() {
		if err == nil {
			err = errors.New("the transaction was given up")
		}
		return err
	}
	if err != nil {
		return errors.Join(err, t.exec(sqlBackToSave), t.exec(sqlUnsave))
	}
	return t.exec(sqlUnsave)
}

// tidy empties the log, so that what was erased is gone from there too. Where
// a reader is in the way, or the disk is full and the log has all the room
// there is, it tries again later.
func (w *writer) tidy() {
	w.wipeAt = time.Time{}
	w.reserve.keep()
	err := errors.New("the disk is nearly full")
	if !w.reserve.tight {
		err = w.emptyLog()
	}
	if err != nil {
		w.log.Debug("emptying the ledger's write-ahead log has to wait", "error", err)
		w.wipeAt = time.Now().Add(w.wipe)
	}
}

func (w *writer) emptyLog() error {
	busy, err := w.c.number(sqlTruncateWAL)
	if err == nil && busy != 0 {
		err = errors.New("it is being read")
	}
	return err
}
