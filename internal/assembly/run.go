package assembly

import (
	"context"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// handleUnknown lets a driver find a VM by its folder alone.
var handleUnknown tartarus.Handle

// up is the command: a server until it is told to end.
func up(ctx context.Context, o cli.UpOptions, ready func([]string)) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	cfg := Config{
		StateDir: o.StateDir, Policy: o.Policy, Listen: o.Listen, Templates: []string{"base"}, Progress: o.Progress,
		Logger: newLogger(stderr(), o.Verbose, slog.LevelInfo),
	}
	return Run(ctx, cfg, func(r Running) { ready(r.Addresses) })
}

// local is `run --local`: everything in this process.
func local(ctx context.Context, o cli.LocalOptions) (cli.Local, func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	template := o.Template
	if template == "" {
		template = "base"
	}
	cfg := Config{
		StateDir: o.StateDir, Policy: o.Policy, Local: true, Templates: []string{template}, Progress: o.Progress,
		Logger: newLogger(stderr(), o.Verbose, slog.LevelError),
	}
	up := make(chan Running, 1)
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, func(r Running) { up <- r }) }()
	select {
	case r := <-up:
		return cli.Local{Dial: r.Dial}, func() error { cancel(); return <-done }, nil
	case err := <-done:
		cancel()
		return cli.Local{}, nil, err
	}
}

// How long ended records and their logs are kept.
var retention = ledger.Retention{Age: 7 * 24 * time.Hour, Count: 10_000}

const (
	houseEvery = 10 * time.Minute
	logGrace   = time.Hour // a log is stored before its record names it
	auditEvery = time.Minute
)

// keepHouse prunes old records and the logs that no record names, and writes
// the audit entries that cerberus gathers.
func (e *embedded) keepHouse(ctx context.Context) error {
	house, audit := time.NewTicker(houseEvery), time.NewTicker(auditEvery)
	defer house.Stop()
	defer audit.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			// What was gathered in the minute under way is written too.
			return e.guard.WriteDue(context.WithoutCancel(ctx), time.Now().Add(auditEvery), e.book.Audit)
		case <-audit.C:
			err = e.guard.WriteDue(ctx, time.Now(), e.book.Audit)
		case <-house.C:
			err = e.clean(ctx)
		}
		if err != nil && ctx.Err() == nil {
			e.log.Warn("housekeeping failed", "error", err)
		}
	}
}

func (e *embedded) clean(ctx context.Context) error {
	if _, err := e.book.Prune(ctx, retention, time.Now()); err != nil {
		return err
	}
	named := map[sandbox.Digest]bool{}
	q := ledger.Query{Limit: 1000}
	for {
		page, err := e.book.List(ctx, q)
		if err != nil {
			return err
		}
		for _, rec := range page.Records {
			named[rec.LogDigest] = true
			q.Before = rec.ID
		}
		if !page.More {
			break
		}
	}
	_, err := e.logs.Collect(ctx, func(d sandbox.Digest) bool { return named[d] }, logGrace)
	return err
}
