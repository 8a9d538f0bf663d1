package cli

import (
	"context"
	"fmt"
	"io"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/client"
)

// outputs are where the two streams of a sandbox go.
type outputs struct{ out, err io.Writer }

// raw are the streams as they are: for who ran the command.
func (a *app) raw() outputs { return outputs{a.io.Out, a.io.Err} }

// shown are the streams for who reads what somebody may have run: escaped
// where they reach a terminal.
func (a *app) shown() outputs {
	o := a.raw()
	if a.io.OutTerminal {
		o.out = &escaper{w: a.io.Out}
	}
	if a.io.ErrTerminal {
		o.err = &escaper{w: a.io.Err}
	}
	return o
}

// flush writes what is held back of unfinished characters.
func (o outputs) flush() error {
	for _, w := range []io.Writer{o.out, o.err} {
		if e, ok := w.(*escaper); ok {
			if err := e.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyLogs passes the output on. cut says that it went on past its cap.
func copyLogs(ctx context.Context, c *client.Client, req *apiv1.LogsRequest, o outputs) (cut bool, err error) {
	for e, err := range c.Logs(ctx, req) {
		if err != nil {
			return cut, err
		}
		to := o.out
		if e.GetStream() == "stderr" {
			to = o.err
		}
		if _, err := to.Write(e.GetData()); err != nil {
			return cut, &writeError{err}
		}
		cut = cut || e.GetTruncated()
	}
	if err := o.flush(); err != nil {
		return cut, &writeError{err}
	}
	return cut, nil
}

// writeError says that the output could not be passed on.
type writeError struct{ cause error }

func (w *writeError) Error() string { return fmt.Sprintf("writing the output: %v", w.cause) }
func (w *writeError) Unwrap() error { return w.cause }

// verdict says on stderr what was not the command's own end, and returns the
// exit code.
func (a *app) verdict(sb *apiv1.Sandbox) int {
	id := escape(sb.GetId())
	exit := sb.GetExit()
	if cause := exit.GetCause(); cause != "exited" {
		msg := exit.GetMessage()
		if msg != "" {
			msg = ": " + msg
		}
		if cause == "" {
			cause = sb.GetState()
		}
		fmt.Fprintf(a.io.Err, "tartarus: %s ended: %s%s\n", id, escape(cause), escape(msg))
	}
	if client.ExitCode(sb) != 0 {
		for _, l := range exit.GetLimitsHit() {
			fmt.Fprintf(a.io.Err, "tartarus: %s met a limit, as the guest says: %s, %.0f times\n", id, escape(l.GetLimit()), l.GetCount())
		}
	}
	if sb.GetUsage().GetLogTruncated() {
		fmt.Fprintf(a.io.Err, "tartarus: %s: the output was cut at %.0f bytes\n", id, sb.GetUsage().GetLogBytes())
	}
	return client.ExitCode(sb)
}
