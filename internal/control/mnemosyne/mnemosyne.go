// Package mnemosyne is the audit's memory: it signs checkpoints of the audit
// log, has them kept where the log's writer cannot change them, and checks a
// log against them.
//
// A checkpoint says how many entries there were at a time and what the last
// one was. The log alone shows edits in its middle; whether it was rewritten
// from some entry on, cut off at its end or replaced by an older copy only
// checkpoints tell, and of what came after the last of them nobody can.
package mnemosyne

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/metrics"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// Book is what mnemosyne needs of the ledger.
type Book interface {
	AuditHead(ctx context.Context) (ledger.AuditHead, error)
	Watch(ctx context.Context) <-chan struct{}
}

// Config is what a Keeper is made of.
type Config struct {
	Book   Book
	Key    *seal.Key
	Writer string // the log's name, the same for as long as there is the log
	Sinks  []Sink

	// A checkpoint is made of what is new when Entries have come, 100 if zero,
	// or the last one is Every old, a minute if zero; and at start and end.
	Entries int64
	Every   time.Duration

	Metrics prometheus.Registerer // nil: none
	Logger  *slog.Logger          // nil: none
	Clock   func() time.Time      // time.Now if nil
}

const (
	defaultEntries = 100
	defaultEvery   = time.Minute

	lookPause = 250 * time.Millisecond // between two looks at a busy log
	lookPoll  = time.Minute            // other processes' entries are not told of
	lookAgain = time.Second            // after the ledger could not answer
	stopTime  = 5 * time.Second        // for what is queued when the keeper stops
)

// Keeper makes checkpoints and has them kept.
type Keeper struct {
	cfg     Config
	outlets []*outlet
	last    mark // of the last checkpoint; only Run uses it
}

// mark is a checkpoint that was made.
type mark struct {
	seq int64
	at  time.Time
}

// New makes a keeper. Nothing happens until Run.
func New(cfg Config) (*Keeper, error) {
	if cfg.Book == nil || cfg.Key == nil || cfg.Writer == "" {
		return nil, errors.New("mnemosyne needs a book, a key and the writer's name")
	}
	if cfg.Entries < 0 || cfg.Every < 0 {
		return nil, errors.New("mnemosyne: checkpoints cannot be less than nothing apart")
	}
	if cfg.Entries == 0 {
		cfg.Entries = defaultEntries
	}
	if cfg.Every == 0 {
		cfg.Every = defaultEvery
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	counts, err := metrics.NewCounter(cfg.Metrics, metrics.Checkpoints)
	if err != nil {
		return nil, err
	}
	k := &Keeper{cfg: cfg}
	for _, s := range cfg.Sinks {
		k.outlets = append(k.outlets, newOutlet(s, counts, cfg.Logger))
	}
	return k, nil
}

// due says when the next checkpoint is to be made of a log that ends at head;
// a zero time is never. A log that has become shorter is due at once: the
// checkpoint is what will show it.
func due(last mark, head int64, entries int64, every time.Duration) (at time.Time, ok bool) {
	switch {
	case head == last.seq:
		return time.Time{}, false
	case head < last.seq || head-last.seq >= entries:
		return last.at, true
	}
	return last.at.Add(every), true
}

// Run makes checkpoints until ctx ends, then a last one of what is new.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	kept, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for _, o := range k.outlets {
		wg.Go(func() { o.run(kept) })
	}
	changed := k.cfg.Book.Watch(ctx)
	for ctx.Err() == nil {
		wait := k.look(ctx, false)
		pause(ctx, min(wait, lookPause), nil)
		if wait > lookPause {
			pause(ctx, wait-lookPause, changed)
		}
	}
	end, cancel := context.WithTimeout(kept, stopTime)
	defer cancel()
	k.look(end, true)
	for _, o := range k.outlets {
		o.finish()
	}
	unhook := context.AfterFunc(end, stop)
	defer unhook()
	wg.Wait()
	return nil
}

// look makes a checkpoint if one is due, or the last one, and says how long
// nothing will be due unless the log grows.
func (k *Keeper) look(ctx context.Context, final bool) time.Duration {
	head, err := k.cfg.Book.AuditHead(ctx)
	if err != nil {
		if ctx.Err() == nil {
			k.cfg.Logger.Warn("the audit log cannot be looked at for a checkpoint", "error", err)
		}
		return lookAgain
	}
	now := k.cfg.Clock()
	at, ok := due(k.last, head.Seq, k.cfg.Entries, k.cfg.Every)
	if !ok {
		return lookPoll
	}
	if !final && now.Before(at) {
		return min(at.Sub(now), lookPoll)
	}
	if head.Seq < k.last.seq {
		k.cfg.Logger.Error("the audit log has become shorter: somebody else has changed it", "entries", head.Seq, "were", k.last.seq)
	}
	k.last = mark{head.Seq, now}
	if head.Seq == 0 { // there is nothing to sign
		return lookPoll
	}
	line, err := k.cfg.Key.SignCheckpoint(seal.Checkpoint{Writer: k.cfg.Writer, Count: head.Seq, Head: head.Digest, Time: now})
	if err != nil {
		k.cfg.Logger.Error("no checkpoint of the audit log can be made", "error", err)
		return lookPoll
	}
	for _, o := range k.outlets {
		o.put(line)
	}
	return lookPoll
}

// pause waits for d, a change, or the end of ctx.
func pause(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
	}
}
