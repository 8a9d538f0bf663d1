package hecatoncheir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/record/cocytus"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// recoverAtOnce bounds how many leftovers are ended at the same time.
const recoverAtOnce = 16

// recover ends whatever an earlier process left: VMs, disks, logs, folders.
// Sandboxes that were accepted and whose end nobody knows get one; those that
// were not never ran, and are the control plane's to place again.
func (a *Agent) recover(ctx context.Context, left []journal.Entry) error {
	known := map[sandbox.ID]journal.Entry{}
	for _, e := range left {
		known[e.Assignment.Sandbox] = e
	}
	names, err := os.ReadDir(a.sandboxesDir())
	if err != nil {
		return fmt.Errorf("looking for what was left: %w", err)
	}
	for _, n := range names {
		id := sandbox.ID(n.Name())
		if !id.Valid() {
			a.cfg.Logger.Warn("something that is not ours lies among the sandboxes", "name", n.Name())
		} else if _, ok := known[id]; !ok {
			known[id] = journal.Entry{Assignment: sandbox.Assignment{Sandbox: id}}
		}
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		errs  []error
		limit = make(chan struct{}, recoverAtOnce)
	)
	for _, e := range known {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			if err := a.recoverOne(ctx, e); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("ending what was left of %q: %w", e.Assignment.Sandbox, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (a *Agent) recoverOne(ctx context.Context, e journal.Entry) error {
	id := e.Assignment.Sandbox
	if err := a.pass("reap", id, func() error { return a.cfg.Driver.Reap(ctx, a.vmDir(id), e.VM) }); err != nil {
		return err
	}
	if err := a.detachLost(ctx, e); err != nil {
		return err
	}
	if err := a.cfg.Scratch.Wipe(ctx, a.scratchPath(id)); err != nil {
		return err
	}
	if !e.AcceptedAt.IsZero() && e.End == nil {
		end := a.lostEnd(ctx, e)
		if err := a.write("lost", id, func(e *journal.Entry) { e.End = &end }); err != nil {
			return err
		}
		e.End = &end
	}
	if err := a.pass("sweep", id, func() error { return os.RemoveAll(a.sandboxDir(id)) }); err != nil {
		return err
	}
	if e.End == nil {
		return a.strike(id)
	}
	return nil
}

// lostEnd is the end of a sandbox that died with its agent. What its log had
// by then is kept.
func (a *Agent) lostEnd(ctx context.Context, e journal.Entry) sandbox.End {
	f := cocytus.Facts{Cause: sandbox.NodeLost, Message: "the agent of its node died"}
	end := sandbox.End{At: time.Now().UTC()}
	end.Progress.Runtime.Attempt = e.Assignment.Attempt
	if e.VM != (tartarus.Handle{}) {
		info := a.cfg.Driver.Info()
		end.Progress.Runtime = sandbox.Runtime{
			Driver: info.Name, Version: info.Version, Accelerator: info.Accelerator, Start: e.Start, Attempt: e.Assignment.Attempt,
		}
	}
	if !e.StartedAt.IsZero() {
		end.Progress.State, end.Progress.At = sandbox.Running, e.StartedAt
		logger := a.loggerOf(a.base, e.Assignment)
		output, err := hermes.Recover(filepath.Join(a.sandboxDir(e.Assignment.Sandbox), "log"))
		if err != nil {
			logger.Warn("the log of a lost sandbox is lost too", "error", err)
		} else {
			f.Log = cocytus.LogFacts{Bytes: output.Bytes(), Truncated: output.Truncated()}
			end.LogDigest = a.keepLog(ctx, e.Assignment.Sandbox, output.Path(), logger)
		}
	}
	end.Exit = cocytus.Compose(f)
	return end
}

// tellOld tells the ends that the journal holds of sandboxes that are no
// longer here. It is done before the first heartbeat of an epoch, which lets
// the control plane write off what it has heard nothing of; so it is bounded
// by part of the lease, and what it does not manage goes on beside Run.
func (a *Agent) tellOld(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, e := range a.journal.Entries() {
		if _, err := a.get(e.Assignment.Sandbox); err == nil || e.End == nil || !a.claimOld(e.Assignment.Sandbox) {
			continue
		}
		wg.Add(1)
		a.lives.Add(1)
		go func() {
			defer a.lives.Done()
			told := a.report(a.base, account{e.Assignment, *e.End, func() bool { return false }, a.loggerOf(a.base, e.Assignment)})
			wg.Done()
			if told {
				if err := a.strike(e.Assignment.Sandbox); err != nil {
					a.loggerOf(a.base, e.Assignment).Error("an entry could not be removed from the journal", "error", err)
				}
			}
		}()
	}
	a.mu.Lock()
	patience := a.lease / 2
	a.mu.Unlock()
	told := make(chan struct{})
	go func() {
		wg.Wait() // ends with base at the latest
		close(told)
	}()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-told:
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// claimOld makes sure that one goroutine tells each old end.
func (a *Agent) claimOld(id sandbox.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.old[id] {
		return false
	}
	a.old[id] = true
	return true
}
