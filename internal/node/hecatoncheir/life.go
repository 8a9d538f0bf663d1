package hecatoncheir

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	nodev1 "github.com/tartarus-vm/tartarus/api/node/v1"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/erinyes/alecto"
	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/styx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/node/thanatos"
	"github.com/tartarus-vm/tartarus/internal/nodewire"
	"github.com/tartarus-vm/tartarus/internal/record/hermes"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
	"github.com/tartarus-vm/tartarus/internal/tracing"
)

// How a VM started, as in the record's runtime.start.
const (
	startCold     = "cold"
	startRestored = "restored"
	startStandby  = "standby"
)

// life is the life of one sandbox on this node. Its goroutine is run; fields
// without a remark are that goroutine's, or never change.
type life struct {
	a          *Agent
	id         sandbox.ID
	assignment sandbox.Assignment
	verdict    sandbox.Digest
	req        sandbox.Resolved
	received   time.Time
	started    time.Time // when the order to execute left; zero before
	slot       int       // written by reserve
	logger     *slog.Logger

	death *thanatos.Death
	clock *alecto.Clock
	tell  *teller

	logged chan struct{} // closed when there is a log to read
	taken  chan struct{} // closed when the journal has, or refused, the assignment
	cut    chan struct{} // closed when VM and files are gone
	over   chan struct{} // closed when the agent is done with it

	secrets sandbox.Secrets // emptied when they are in the guest
	done    []step          // what is to be undone, the last first
	standby *standby        // nil where none waited
	files   vmFiles
	card    *styx.Card // nil without a network
	vm      tartarus.VM
	guest   Guest

	freed bool // its room is; guarded by Agent.mu

	watchers sync.WaitGroup
	unwatch  context.CancelFunc // nil until there are watchers
	ended    chan struct{}      // closed when the command ended, or nobody can know any more
	fed      chan struct{}      // closed when the secrets' standard input is in

	mu       sync.Mutex
	leave    bool        // the control plane gave leave to execute
	disowned bool        // its end interests nobody
	output   *hermes.Log // nil before its step and after its undoing
	proc     Process     // nil until the command runs
	exit     *guestwire.Exit
	last     tartarus.Sample
	quiet    bool       // the log's trouble was told
	stdin    sync.Mutex // held by whoever writes to the command
}

// offer is an assignment as it came, checked.
type offer struct {
	seal.Assign
	secrets  sandbox.Secrets
	received time.Time
	logger   *slog.Logger // of all that concerns it
}

func newLife(a *Agent, o offer) *life {
	r := o.Verdict.Request
	dcfg := a.cfg.Death
	dcfg.Logger = o.logger
	info := a.cfg.Driver.Info()
	l := &life{
		a: a, received: o.received, id: o.Verdict.Sandbox, assignment: o.Order.Assignment, verdict: o.Digest, req: r, logger: o.logger,
		death:  thanatos.New(dcfg),
		clock:  alecto.New(alecto.Terms{StartTimeout: r.StartTimeout, MaxDuration: r.MaxDuration}, o.received),
		logged: make(chan struct{}), taken: make(chan struct{}), cut: make(chan struct{}), over: make(chan struct{}),
		ended: make(chan struct{}), fed: make(chan struct{}), secrets: o.secrets,
	}
	l.tell = newTeller(a, l.assignment, sandbox.Progress{Runtime: sandbox.Runtime{
		Driver: info.Name, Version: info.Version, Accelerator: info.Accelerator,
		Attempt: l.assignment.Attempt, // and how it starts, when that is known
	}}, o.logger)
	return l
}

// run is the whole life. It returns when nothing of the sandbox is left on
// this node, and the control plane knows or ctx ended.
func (l *life) run(ctx context.Context) {
	defer close(l.over)
	var helpers sync.WaitGroup
	hctx, cancel := context.WithCancel(ctx)
	helpers.Go(func() { l.watchClock(hctx) })
	helpers.Go(func() { l.tell.run(hctx) })
	if err := l.start(ctx); err != nil {
		l.startFailed(err)
	}
	<-l.death.Taken()
	l.end(ctx, func() { cancel(); helpers.Wait() })
}

// start brings the command to run, or says why not. Execution begins only
// when the VM is ready and the control plane gave leave.
func (l *life) start(ctx context.Context) error {
	sctx, cancel := context.WithCancel(ctx)
	stop := l.onDeath(sctx, cancel)
	defer stop()
	g, gctx := errgroup.WithContext(sctx)
	g.Go(func() error { return l.prepare(gctx) })
	g.Go(func() error { return l.askLeave(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	return l.execute(ctx, sctx)
}

// onDeath calls cancel when a cause to die is known, until the func that it
// returns is called.
func (l *life) onDeath(ctx context.Context, cancel context.CancelFunc) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-l.death.Taken():
			cancel()
		case <-ctx.Done():
		}
	}()
	return func() { cancel(); <-done }
}

var errNoLeave = errors.New("the control plane gave no leave to execute")

// askLeave asks until there is an answer: after a yes the sandbox runs here or
// nowhere, after a no it never runs here.
func (l *life) askLeave(ctx context.Context) (err error) {
	began := time.Now()
	defer func() { l.trace(tracing.Span{Name: "accept", Begin: began, Err: err}) }()
	ask := func() (struct{}, error) {
		err := l.a.pass("accept", l.id, func() error {
			_, err := call(ctx, l.a, func(ctx context.Context, req *nodev1.AcceptRequest) (*nodev1.AcceptResponse, error) {
				return l.a.cfg.Control.Accept(ctx, req)
			}, &nodev1.AcceptRequest{Assignment: nodewire.EncodeAssignment(l.assignment)})
			return err
		})
		if err != nil && definite(err) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}
	_, err = backoff.Retry(ctx, ask, backoff.WithBackOff(pauses()), backoff.WithMaxElapsedTime(0))
	if err != nil {
		if definite(err) {
			l.logger.Info("no leave to execute", "error", err)
			l.disown()
		}
		return errors.Join(errNoLeave, err)
	}
	l.mu.Lock()
	l.leave = true
	l.mu.Unlock()
	l.tell.open()
	at := time.Now().UTC()
	return l.a.write("accepted", l.id, func(e *journal.Entry) { e.AcceptedAt = at })
}

// slowStart is how long the guest may take to say whether the command could be
// started, before the order to execute is told as having left.
const slowStart = 500 * time.Millisecond

// execute sends the order to execute. ctx is the life's, sctx ends with it or
// at a cause to die.
func (l *life) execute(ctx, sctx context.Context) error {
	if !l.a.holdsLease() {
		l.death.Take(thanatos.Order{Cause: sandbox.NodeLost, Message: "its node lost the control plane"})
	}
	at := time.Now()
	if err := l.a.write("started", l.id, func(e *journal.Entry) { e.StartedAt = at.UTC() }); err != nil {
		return err
	}
	running := sync.OnceFunc(func() { l.tell.state(sandbox.Progress{State: sandbox.Running, At: at.UTC()}) })
	var proc Process
	err := l.a.pass("execute", l.id, func() (err error) {
		if _, _, dying := l.death.First(); dying {
			return context.Canceled
		}
		l.started = at
		l.clock.Started(at)
		l.a.metrics.Started(at.Sub(l.received))
		defer time.AfterFunc(slowStart, running).Stop()
		proc, err = l.guest.Start(sctx, guestwire.Start{
			Argv: l.req.Command, Env: environment(l.secrets.Env), Cwd: l.req.WorkingDir, MakeCwd: true,
			User: l.req.User, StdinOpen: l.req.StdinOpen || len(l.secrets.Stdin) > 0,
		}, l.sink)
		return err
	})
	var no *CommandError
	if errors.As(err, &no) || l.started.IsZero() {
		return err
	}
	running()
	l.logger.Info("sandbox runs", "since_assigned", time.Since(l.received).Round(time.Millisecond))
	if err != nil { // the order may have been carried out
		if sctx.Err() == nil {
			l.guestLost(sctx, err)
		}
		return err
	}
	stdin := l.secrets.Stdin
	l.forgetSecrets()
	l.mu.Lock()
	l.proc = proc
	l.mu.Unlock()
	l.watch(ctx, stdin)
	return nil
}

// CommandError is the guest's word that a command could not be started: there
// is no such process.
type CommandError struct {
	Code    int // as a shell's: 127 not found, 126 not executable
	Message string
}

// Error is the guest's message.
func (e *CommandError) Error() string { return e.Message }

// startFailed takes the cause for an error of start. Where start ended because
// of a cause, that one was first.
func (l *life) startFailed(err error) {
	var no *CommandError
	message := "the VM could not be started"
	var f *fault.Error
	switch {
	case errors.As(err, &no):
		message = "the command could not be started: " + no.Message
	case errors.As(err, &f):
		message += ": " + f.Message
	case errors.Is(err, syscall.ENOSPC):
		message += ": the host's disk is full"
	}
	if l.death.Take(thanatos.Order{Cause: sandbox.StartFailed, Message: message}) && !l.isDisowned() {
		l.logger.Warn("the start failed", "error", err)
	}
}

func environment(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for name, value := range env {
		out = append(out, name+"="+value)
	}
	slices.Sort(out)
	return out
}

// forgetSecrets lets go of the values as soon as the guest has them.
func (l *life) forgetSecrets() {
	for _, f := range l.secrets.Files {
		clear(f.Data)
	}
	l.secrets = sandbox.Secrets{}
}

// sink takes the command's output.
func (l *life) sink(f guestwire.Flow, _ int64, data []byte) {
	now := time.Now()
	stream := hermes.Stdout
	if f == guestwire.Err {
		stream = hermes.Stderr
	}
	l.tell.firstOutput(now)
	l.mu.Lock()
	output := l.output
	l.mu.Unlock()
	if err := output.Append(stream, now, data); err != nil {
		l.mu.Lock()
		told := l.quiet
		l.quiet = true
		l.mu.Unlock()
		if !told {
			l.logger.Error("output is lost", "error", err)
		}
	}
}

func (l *life) disown() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disowned = true
}

func (l *life) disownUnlessAccepted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disowned = l.disowned || !l.leave
}

func (l *life) isDisowned() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.disowned
}

func (l *life) accepted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leave
}
