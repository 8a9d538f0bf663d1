package hecatoncheir

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/cenkalti/backoff/v5"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/thanatos"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/record/cocytus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// end carries the cause out, records it, undoes every step, and tells the
// control plane. stopHelpers ends the clock and the telling of progress.
func (l *life) end(ctx context.Context, stopHelpers func()) {
	cause, at, _ := l.death.First()
	if !l.started.IsZero() {
		l.trace(tracing.Span{Name: "execute", Begin: l.started, End: at, Attrs: []slog.Attr{slog.String("cause", string(cause.Cause))}})
	}
	if cause.Cause != sandbox.Exited {
		l.tell.state(sandbox.Progress{State: sandbox.Stopping, At: at.UTC(), Cause: cause.Cause})
	}
	l.die(ctx)
	if l.unwatch != nil {
		l.unwatch()
	}
	if l.guest != nil {
		_ = l.guest.Close() // the watchers may wait for it
		l.guest = nil
	}
	l.watchers.Wait()
	l.forgetSecrets()
	end := l.record(ctx, cause)
	stopHelpers()
	end.Progress = l.tell.untold()
	if !l.isDisowned() {
		if err := l.a.write("end", l.id, func(e *journal.Entry) { e.End = &end }); err != nil {
			l.logger.Error("an end could not be written down", "error", err)
		}
	}
	l.a.metrics.Ended(end.Exit, l.peak())
	l.logger.Info("sandbox ended", "cause", end.Exit.Cause, "state", end.Exit.State())
	l.trace(tracing.Span{Name: "end", Begin: at, End: end.At})
	l.undoAll(ctx)
	l.trace(tracing.Span{Name: "cleanup", Begin: end.At})
	l.a.free(l)
	close(l.cut)
	if !l.isDisowned() && !l.a.report(ctx, account{l.assignment, end, l.isDisowned, l.logger}) {
		return // the journal has it, and the next start tells it
	}
	if err := l.a.strike(l.id); err != nil {
		l.logger.Error("an entry could not be removed from the journal", "error", err)
	}
	l.a.drop(l)
}

// die goes through thanatos until the VM is gone: before that there is no end
// to tell, and no room to give away.
func (l *life) die(ctx context.Context) {
	l.mu.Lock()
	proc := l.proc
	l.mu.Unlock()
	body := thanatos.Body{Last: func(context.Context) { l.lastSample() }}
	if proc != nil {
		body.Signal, body.Ended = proc.Signal, l.ended
	}
	if l.vm != nil {
		body.Kill = l.vm.Kill
	}
	carry := func() (struct{}, error) {
		err := l.death.Carry(ctx, body)
		if err != nil {
			l.logger.Error("a VM could not be ended", "error", err)
		}
		return struct{}{}, err
	}
	_, _ = backoff.Retry(ctx, carry, backoff.WithBackOff(pauses()), backoff.WithMaxElapsedTime(0)) // ends with ctx only
}

func (l *life) lastSample() {
	if l.vm == nil {
		return
	}
	if s, err := l.sample(); err == nil {
		l.mu.Lock()
		l.last = s
		l.mu.Unlock()
	}
}

// sample is what the VM used for this sandbox.
func (l *life) sample() (tartarus.Sample, error) {
	s, err := l.vm.Sample()
	if l.standby != nil {
		s.CPUSeconds -= l.standby.used.CPUSeconds
		s.DiskWritten -= l.standby.used.DiskWritten
	}
	return s, err
}

// peak is the most memory that the VMM took, as the host saw it.
func (l *life) peak() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.MemoryPeakBytes
}

// record composes the end out of what is known, and keeps the log.
func (l *life) record(ctx context.Context, cause thanatos.Order) sandbox.End {
	l.mu.Lock()
	exit, last, output := l.exit, l.last, l.output
	l.mu.Unlock()
	f := cocytus.Facts{
		Cause: cause.Cause, Message: cause.Message,
		Host: cocytus.HostWord{CPUSeconds: last.CPUSeconds, MemoryPeakBytes: last.MemoryPeakBytes, DiskWrittenBytes: last.DiskWritten},
	}
	f.Host.NetworkRxBytes, f.Host.NetworkTxBytes = l.traffic()
	if exit != nil {
		f.Guest = &cocytus.GuestWord{
			Code: int(exit.Code), Signal: int(exit.Signal),
			MemoryKills: exit.Usage.OOMKills, ProcessLimitHits: exit.Usage.ForksRefused, DiskFull: exit.Usage.DiskFull,
			MemoryPeakBytes: exit.Usage.MemoryPeak, CPUSeconds: float64(exit.Usage.CPUMicros) / 1e6,
		}
	}
	end := sandbox.End{At: time.Now().UTC()}
	if output != nil {
		if err := output.Finish(); err != nil {
			l.logger.Error("a log could not be finished", "error", err)
		}
		f.Log = cocytus.LogFacts{Bytes: output.Bytes(), Truncated: output.Truncated()}
		if l.tell.ran() {
			end.LogDigest = l.a.keepLog(ctx, l.id, output.Path(), l.logger)
		}
	}
	end.Exit = cocytus.Compose(f)
	return end
}

// keepLogTries bounds how often a full or absent store is tried: the sandbox's
// end must not wait for ever.
const keepLogTries = 4

// keepLogTimeout bounds keepLog, which an agent that stops does not cut short:
// the log would be lost.
const keepLogTimeout = 30 * time.Second

// keepLog stores an ended log; "" when it is lost.
func (a *Agent) keepLog(ctx context.Context, id sandbox.ID, path string, logger *slog.Logger) sandbox.Digest {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepLogTimeout)
	defer cancel()
	put := func() (d sandbox.Digest, err error) {
		f, err := os.Open(path)
		if err != nil {
			return "", backoff.Permanent(err)
		}
		defer func() { _ = f.Close() }() // only read
		err = a.pass("log to blob", id, func() (err error) { d, err = a.cfg.Blobs.Put(ctx, f); return err })
		return d, err
	}
	d, err := backoff.Retry(ctx, put, backoff.WithBackOff(pauses()), backoff.WithMaxTries(keepLogTries))
	if err != nil {
		logger.Error("a log is lost", "log", path, "error", err)
		a.metrics.LogLost()
		return ""
	}
	return d
}

// free gives the room of l away.
func (a *Agent) free(l *life) {
	l.mu.Lock()
	l.last.MemoryBytes = 0
	l.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	l.freed = true
	delete(a.slots, l.slot)
}

func (a *Agent) drop(l *life) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.byID, l.id)
}

// account is an end to be told.
type account struct {
	of     sandbox.Assignment
	end    sandbox.End
	moot   func() bool // it interests nobody any more
	logger *slog.Logger
}

// report tells an end until the control plane has it, or says that it does not
// want it, or moot does. It returns false when ctx ended before.
func (a *Agent) report(ctx context.Context, e account) bool {
	b, err := nodewire.EncodeEnd(e.end)
	if err != nil {
		e.logger.Error("an end cannot be told", "error", err)
		return true
	}
	req := &nodev1.ReportRequest{Assignment: nodewire.EncodeAssignment(e.of), End: b}
	tell := func() (struct{}, error) {
		if e.moot() {
			return struct{}{}, nil
		}
		err := a.pass("report end", e.of.Sandbox, func() error { return a.reportCall(ctx, req) })
		if err != nil && definite(err) {
			e.logger.Warn("the control plane does not take an end", "error", err)
			err = nil
		}
		return struct{}{}, err
	}
	_, err = backoff.Retry(ctx, tell, backoff.WithBackOff(pauses()), backoff.WithMaxElapsedTime(0))
	return err == nil
}

func (a *Agent) reportCall(ctx context.Context, req *nodev1.ReportRequest) error {
	_, err := call(ctx, a, func(ctx context.Context, req *nodev1.ReportRequest) (*nodev1.ReportResponse, error) {
		return a.cfg.Control.Report(ctx, req)
	}, req)
	if err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	return nil
}
