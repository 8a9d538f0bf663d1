package cli

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// runFlags are what `run` was told.
type runFlags struct {
	local, detach, timings             bool
	template, name, workdir, user      string
	memory, disk                       string
	cpus, processes                    int32
	timeout                            time.Duration
	env, files, allow, labels, selects []string
	policy                             string
	vmm                                VMMOptions
	ofLocal                            string // a flag that a server does not ask its callers for; "" for none
}

func (a *app) runCommand() *cobra.Command {
	f := &runFlags{}
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG...]",
		Short: "Run a command in a microVM of its own",
		Long: `Runs a command in a microVM of its own, passes standard input to it, and its
output on. With no server running, everything runs in this process, and the
first time also prepares what is missing.

The exit code is the command's own; 128+n after signal n; 124 after --timeout;
137 after a memory or forced kill; 125 where Tartarus refused, failed or lost
it. Ctrl-C asks the command to end and kills it after 5s; twice, at once.

What is not said here (template, user, memory and so on) is as the policy has
it. Values of --env, of files and of standard input are secret: they are erased
at the end. The command and its arguments are not: the record shows them.`,
		Example: `  tartarus run -- echo hello
  echo hi | tartarus run -- cat
  tartarus run --template debian --file job.py:/work/job.py -- python3 job.py
  tartarus run --memory 512MiB --cpus 2 --timeout 90s --env LANG=C.UTF-8 -- ./task
  tartarus run --detach --label team=ci -- sleep 30`,
		Args:                  takes("COMMAND..."),
		Annotations:           map[string]string{likeRun: "yes"},
		DisableFlagsInUseLine: true,
	}
	fl := c.Flags()
	fl.SetInterspersed(false)
	fl.SortFlags = false
	fl.StringVarP(&f.template, "template", "t", "", "`NAME` of the root disk to start from")
	fl.StringVarP(&f.memory, "memory", "m", "", "memory, a `SIZE` such as 256MiB or 1GiB")
	fl.Int32Var(&f.cpus, "cpus", 0, "virtual CPUs, a `NUMBER`")
	fl.StringVar(&f.disk, "disk", "", "writable layer, a `SIZE` such as 512MiB")
	fl.Int32Var(&f.processes, "processes", 0, "how many processes at once, a `NUMBER`")
	fl.DurationVar(&f.timeout, "timeout", 0, "how long it may run, a `DURATION` such as 90s")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment: `K=V`, or K for the value it has here (repeatable)")
	fl.StringArrayVar(&f.files, "file", nil, "file to put in: `LOCAL:/GUEST/PATH` (repeatable)")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "`FOLDER` that the command starts in")
	fl.StringVarP(&f.user, "user", "u", "", "`USER` in the sandbox, by name or number")
	fl.StringArrayVar(&f.allow, "allow", nil, "destination it may reach: `HOST:PORT` (repeatable)")
	fl.StringVar(&f.name, "name", "", "a `NAME` for people")
	fl.StringArrayVarP(&f.labels, "label", "l", nil, "label to find it by: `K=V` (repeatable)")
	fl.StringArrayVar(&f.selects, "node", nil, "label that its node must have: `K=V` (repeatable)")
	fl.BoolVarP(&f.detach, "detach", "d", false, "print the ID and do not wait")
	fl.BoolVar(&f.timings, "timings", false, "print to stderr where the time went")
	fl.BoolVar(&f.local, "local", false, "run everything in this process, even if a server is there")
	settingFlag(fl, &f.policy, "policy", "")
	f.vmm.flags(c)
	_ = c.RegisterFlagCompletionFunc("template", a.completeTemplates) // the flag is there
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := f.check(c); err != nil {
			return err
		}
		f.ofLocal = localFlag(c)
		return a.run(c.Context(), f, args)
	}
	return c
}

// check finds flags that contradict each other.
func (f *runFlags) check(c *cobra.Command) error {
	switch {
	case f.local && c.Flags().Changed("server"):
		return misuse(c, errors.New("--local and --server exclude each other"))
	case f.local && f.detach:
		return misuse(c, errors.New("--local and --detach exclude each other: the sandbox would end with this process"))
	case c.Flags().Changed("timeout") && f.timeout <= 0:
		return misuse(c, fmt.Errorf("--timeout: %v is no time to run in", f.timeout))
	}
	return nil
}

// run does everything. An interrupt before there is a sandbox ends it all;
// what one does afterwards is killer's.
func (a *app) run(ctx context.Context, f *runFlags, command []string) error {
	req, err := a.runRequest(f, command)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.signals.on(func(s interrupted) { cancel(s) })
	c, stop, err := a.serverForRun(ctx, f)
	if err != nil {
		return whyEnded(ctx, err)
	}
	defer stop()
	k := &killer{ctx: ctx, giveUp: cancel, c: c, fail: a.complain}
	a.signals.on(k.interrupt)
	code, err := a.drive(ctx, k, f, req)
	a.signals.on(nil)
	a.signals.restore()
	cancel(nil)
	k.calls.Wait()
	if err != nil {
		return err
	}
	if code != 0 {
		return &failure{code: code}
	}
	return nil
}

// whyEnded is err, or the interrupt that it comes from.
func whyEnded(ctx context.Context, err error) error {
	var i interrupted
	if errors.As(context.Cause(ctx), &i) {
		return &failure{code: i.code(), err: i}
	}
	return err
}

func (a *app) runRequest(f *runFlags, command []string) (*apiv1.RunRequest, error) {
	req := &apiv1.RunRequest{
		Template: f.template, Command: command, Name: f.name, WorkingDir: f.workdir, User: f.user,
		Resources: &apiv1.Resources{Vcpus: f.cpus, Processes: f.processes},
		StdinOpen: !f.detach && !a.io.NoInput,
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

// localFlag is a flag that was given and that a server does not ask its
// callers for; "" for none.
func localFlag(c *cobra.Command) string {
	for _, name := range []string{"policy", "driver", "firecracker", "insecure-test-vmm"} {
		if c.Flags().Changed(name) {
			return "--" + name
		}
	}
	return ""
}

// serverForRun is the server that was named or is running, or one in this
// process.
func (a *app) serverForRun(ctx context.Context, f *runFlags) (*client.Client, func(), error) {
	if !f.local {
		c, err := a.connect(ctx)
		if err != nil {
			return nil, nil, err
		}
		if flag := f.ofLocal; c != nil && flag != "" {
			c.Close()
			return nil, nil, withHint(fmt.Errorf("%s is for a run in this process, and there is a server", flag), "add --local, or give it to `tartarus up`")
		}
		if c != nil {
			return c, func() { c.Close() }, nil
		}
	}
	if f.detach {
		return nil, nil, withHint(errors.New("--detach needs a server, and none is running"), "start one with `tartarus up`, or name one with --server or TARTARUS_URL")
	}
	p := a.progress()
	l, stopLocal, err := a.cfg.Inside.Local(ctx, LocalOptions{
		StateDir: a.stateDir, Policy: f.policy, VMM: f.vmm, Template: f.template, Progress: p.step, Verbose: a.verbose,
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
			a.complain(fmt.Errorf("ending what ran in this process: %w", err))
		}
	}, nil
}

// drive runs the request to its end and returns the exit code.
func (a *app) drive(ctx context.Context, k *killer, f *runFlags, req *apiv1.RunRequest) (int, error) {
	sb, err := k.c.Run(ctx, req)
	if err != nil {
		return 0, notRun(ctx, err)
	}
	id := sb.GetId()
	k.born(id)
	if f.detach {
		_, err := fmt.Fprintln(a.io.Out, id)
		return 0, err
	}
	inCtx, endIn := context.WithCancel(ctx)
	defer endIn()
	stdinEnd := func() {}
	if req.GetStdinOpen() {
		stdinEnd = a.passStdin(inCtx, k.c, id)
	}
	_, err = copyLogs(ctx, k.c, &apiv1.LogsRequest{Id: id, Follow: true}, a.raw())
	var unwritten *writeError
	if errors.As(err, &unwritten) {
		k.now() // nobody wants what it still has to say
	}
	if err == nil || unwritten != nil {
		var werr error
		sb, werr = k.c.Wait(ctx, id)
		err = errors.Join(err, werr)
	}
	endIn()
	stdinEnd()
	switch {
	case errors.Is(err, syscall.EPIPE):
		return pipeCode, nil
	case err != nil:
		return 0, a.lost(ctx, id, err)
	}
	if f.timings {
		printTimings(a.io.Err, sb)
	}
	return a.verdict(sb), nil
}

// notRun is why a request was not taken.
func notRun(ctx context.Context, err error) error {
	var e *client.Error
	if errors.As(err, &e) && e.Code == client.TooLarge && e.Hint == "" {
		err = withHint(err, "files travel with the request: pass what is large on standard input")
	}
	return whyEnded(ctx, err)
}

// lost says that the end of a sandbox was not seen.
func (a *app) lost(ctx context.Context, id string, err error) error {
	fmt.Fprintf(a.io.Err, "tartarus: the end of %s was not seen\n", escape(id))
	return whyEnded(ctx, err)
}
