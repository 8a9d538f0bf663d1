package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// refusedCode is the exit code where Tartarus refused, failed or lost it.
const refusedCode = 125

// killGrace is what Ctrl-C gives the command to end by itself.
const killGrace = 5 * time.Second

// runFlags are what `run` was told.
type runFlags struct {
	local, detach, timings             bool
	template, name, workdir, user      string
	memory, disk                       string
	cpus, processes                    int32
	timeout                            time.Duration
	env, files, allow, labels, selects []string
	policy                             string
}

func (a *app) runCommand() *cobra.Command {
	f := &runFlags{}
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG...]",
		Short: "Run a command in a microVM of its own",
		Long: `Runs a command in a microVM of its own, passes standard input to it, and its
output on. With no server running, everything runs in this process.

The exit code is the command's own; 128+n after signal n; 124 after --timeout;
137 after a memory or forced kill; 125 where Tartarus refused, failed or lost it.
Ctrl-C kills the sandbox; twice, at once.`,
		Example: `  tartarus run -- echo hello
  echo hi | tartarus run -- cat
  tartarus run --template debian --file job.py:/work/job.py -- python3 job.py
  tartarus run --memory 512MiB --cpus 2 --timeout 90s --env LANG=C.UTF-8 -- ./task
  tartarus run --detach --label team=ci -- sleep 30`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.run(c.Context(), f, args) },
	}
	fl := c.Flags()
	fl.SetInterspersed(false)
	fl.BoolVar(&f.local, "local", false, "run everything in this process, even if a server is there")
	fl.BoolVarP(&f.detach, "detach", "d", false, "print the ID and do not wait")
	fl.BoolVar(&f.timings, "timings", false, "print where the time went, to stderr")
	fl.StringVarP(&f.template, "template", "t", "", "root disk to start from (default from the policy)")
	fl.StringVar(&f.name, "name", "", "a name for people")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "folder the command starts in")
	fl.StringVarP(&f.user, "user", "u", "", "user in the sandbox, by name or number (default an unprivileged one)")
	fl.StringVarP(&f.memory, "memory", "m", "", "memory, as 256MiB")
	fl.StringVar(&f.disk, "disk", "", "size of the writable layer, as 512MiB")
	fl.Int32Var(&f.cpus, "cpus", 0, "virtual CPUs")
	fl.Int32Var(&f.processes, "processes", 0, "how many processes at once")
	fl.DurationVar(&f.timeout, "timeout", 0, "how long it may run, as 60s")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment: K=V, or K for the value it has here")
	fl.StringArrayVar(&f.files, "file", nil, "file to put in: LOCAL:/GUEST/PATH")
	fl.StringArrayVar(&f.allow, "allow", nil, "destination it may reach: HOST:PORT")
	fl.StringArrayVarP(&f.labels, "label", "l", nil, "label: key=value")
	fl.StringArrayVar(&f.selects, "node", nil, "label that its node must have: key=value")
	fl.StringVar(&f.policy, "policy", "", "policy file, with --local")
	return c
}

func (a *app) run(ctx context.Context, f *runFlags, command []string) error {
	req, err := a.runRequest(f, command)
	if err != nil {
		return &failure{code: refusedCode, err: err}
	}
	c, stop, err := a.server4run(ctx, f)
	if err != nil {
		return &failure{code: refusedCode, err: err}
	}
	defer stop()
	code, err := a.drive(ctx, c, f, req)
	if err != nil {
		return &failure{code: refusedCode, err: err}
	}
	if code != 0 {
		return &failure{code: code}
	}
	return nil
}

func (a *app) runRequest(f *runFlags, command []string) (*apiv1.RunRequest, error) {
	req := &apiv1.RunRequest{
		Template: f.template, Command: command, Name: f.name, WorkingDir: f.workdir, User: f.user,
		Resources: &apiv1.Resources{Vcpus: f.cpus, Processes: f.processes},
		// A terminal has nobody typing for a command that is not interactive.
		StdinOpen: !f.detach && !a.io.InTerminal,
	}
	var err error
	if f.memory != "" {
		if req.Resources.MemoryMib, err = parseMiB(f.memory); err != nil {
			return nil, fmt.Errorf("--memory: %w", err)
		}
	}
	if f.disk != "" {
		if req.Resources.DiskMib, err = parseMiB(f.disk); err != nil {
			return nil, fmt.Errorf("--disk: %w", err)
		}
	}
	if f.timeout != 0 {
		req.MaxDuration = durationpb.New(f.timeout)
	}
	if req.Env, err = parseEnv(f.env, a.io.Lookup); err != nil {
		return nil, err
	}
	if req.Labels, err = parseLabels("label", f.labels); err != nil {
		return nil, err
	}
	if req.NodeSelector, err = parseLabels("node", f.selects); err != nil {
		return nil, err
	}
	if req.Files, err = parseFiles(f.files); err != nil {
		return nil, err
	}
	if len(f.allow) > 0 {
		grants, err := parseAllow(f.allow)
		if err != nil {
			return nil, err
		}
		req.Network = &apiv1.NetworkContract{Allow: grants}
	}
	return req, nil
}

// server4run is the server that was named or is running, or one in this process.
func (a *app) server4run(ctx context.Context, f *runFlags) (*client.Client, func(), error) {
	if !f.local {
		c, err := a.connect(ctx)
		if err != nil {
			return nil, nil, err
		}
		if c != nil {
			return c, func() { c.Close() }, nil
		}
	}
	if f.detach {
		return nil, nil, errors.New("--detach needs a server: start one with `tartarus up`")
	}
	p := a.progress()
	l, stopLocal, err := a.cfg.Inside.Local(ctx, LocalOptions{
		StateDir: a.state(), Policy: f.policy, Template: f.template, Progress: p.step, Verbose: a.verbose,
	})
	p.end()
	if err != nil {
		return nil, nil, err
	}
	c, err := client.Dial("http://localhost", l.Token, client.WithDialer(l.Dial))
	if err != nil {
		return nil, nil, errors.Join(err, stopLocal())
	}
	return c, func() {
		c.Close()
		if err := stopLocal(); err != nil {
			fmt.Fprintf(a.io.Err, "tartarus: ending: %v\n", err)
		}
	}, nil
}

// drive runs the request to its end and returns the exit code.
func (a *app) drive(ctx context.Context, c *client.Client, f *runFlags, req *apiv1.RunRequest) (int, error) {
	sb, err := c.Run(ctx, req)
	if err != nil {
		return 0, err
	}
	if f.detach {
		fmt.Fprintln(a.io.Out, sb.GetId())
		return 0, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waitKill := a.killOnSignal(ctx, c, sb.GetId())
	stdinEnd := a.passStdin(ctx, c, req, sb.GetId())
	sb, err = a.follow(ctx, c, sb.GetId())
	cancel()
	stdinEnd()
	waitKill()
	if err != nil {
		return 0, err
	}
	if f.timings {
		printTimings(a.io.Err, sb)
	}
	return a.verdict(sb), nil
}

// verdict says on stderr what was not the command's own end, and returns the
// exit code.
func (a *app) verdict(sb *apiv1.Sandbox) int {
	code := client.ExitCode(sb)
	if cause := sb.GetExit().GetCause(); cause != "exited" {
		msg := sb.GetExit().GetMessage()
		if msg != "" {
			msg = ": " + msg
		}
		fmt.Fprintf(a.io.Err, "tartarus: %s ended: %s%s\n", sb.GetId(), escape(cause), escape(msg))
	}
	if sb.GetUsage().GetLogTruncated() {
		fmt.Fprintf(a.io.Err, "tartarus: %s: the output was cut at %.0f bytes\n", sb.GetId(), sb.GetUsage().GetLogBytes())
	}
	return code
}

// follow passes the output on until the sandbox has ended.
func (a *app) follow(ctx context.Context, c *client.Client, id string) (*apiv1.Sandbox, error) {
	if err := a.copyLogs(ctx, c, &apiv1.LogsRequest{Id: id, Follow: true}); err != nil {
		return nil, err
	}
	return c.Wait(ctx, id)
}

func (a *app) copyLogs(ctx context.Context, c *client.Client, req *apiv1.LogsRequest) error {
	for e, err := range c.Logs(ctx, req) {
		if err != nil {
			return err
		}
		to := a.io.Out
		if e.GetStream() == "stderr" {
			to = a.io.Err
		}
		if _, err := to.Write(e.GetData()); err != nil {
			return fmt.Errorf("writing the output: %w", err)
		}
	}
	return nil
}

// killOnSignal kills the sandbox at the first interrupt and at once at the
// second. The function it returns ends the watch and waits for it.
func (a *app) killOnSignal(ctx context.Context, c *client.Client, id string) func() {
	sigs := make(chan os.Signal, 2)
	signal.Notify(sigs, os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for grace := killGrace; ; grace = 0 {
			select {
			case <-ctx.Done():
				return
			case <-sigs:
			}
			if _, err := c.Kill(ctx, id, grace); err != nil && ctx.Err() == nil {
				a.complain(err)
			}
		}
	}()
	return func() {
		signal.Stop(sigs)
		cancel()
		<-done
	}
}

// passStdin passes standard input to the command. The function it returns
// waits until nothing is sent any more; a read that blocks is left behind with
// the process.
func (a *app) passStdin(ctx context.Context, c *client.Client, req *apiv1.RunRequest, id string) func() {
	if !req.GetStdinOpen() {
		return func() {}
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		_, err := io.Copy(pw, a.io.In)
		pw.CloseWithError(err)
	}()
	go func() {
		defer close(done)
		// The command may end without reading it all: that is its business.
		_, _ = c.Stdin(ctx, id, pr)
		pr.Close()
	}()
	return func() {
		pr.CloseWithError(io.ErrClosedPipe)
		<-done
	}
}
