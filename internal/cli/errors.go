package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tartarus-vm/tartarus/client"
)

// Exit codes beside those of package client.
const (
	failedCode = 1   // it went wrong
	usageCode  = 2   // the call itself is wrong
	pipeCode   = 141 // nobody reads the output any more, as after SIGPIPE
)

// likeRun marks the commands whose exit code is that of a sandbox: their own
// failures must not look like one.
const likeRun = "exits-like-run"

// failure carries an exit code through cobra.
type failure struct {
	code int
	err  error // nil: everything was said already
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

// Hint is what to do about it.
func (h *hinted) Hint() string  { return h.hint }
func (h *hinted) Unwrap() error { return h.error }

func withHint(err error, hint string) error { return &hinted{err, hint} }

// usageError is an error of the call itself, found while the command ran.
type usageError struct{ error }

func (u *usageError) Unwrap() error { return u.error }

// exitCode says what err is about, if that was not done yet, and returns the
// exit code. c is the command that ended with it.
func (a *app) exitCode(ctx context.Context, c *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	var f *failure
	if errors.As(err, &f) {
		if f.err != nil {
			a.complain(f.err)
		}
		return f.code
	}
	var i interrupted
	if errors.As(context.Cause(ctx), &i) {
		fmt.Fprintln(a.io.Err, "tartarus: interrupted")
		return i.code()
	}
	if errors.Is(err, syscall.EPIPE) {
		return pipeCode
	}
	a.complain(err)
	var u *usageError
	switch {
	case c != nil && c.Annotations[likeRun] != "":
		return client.ExitFailed
	case !a.began, errors.As(err, &u):
		return usageCode
	}
	return failedCode
}

// complain says what happened, where, and what to do about it.
func (a *app) complain(err error) {
	fmt.Fprintf(a.io.Err, "tartarus: %s\n", escape(oneLine(err.Error())))
	var details [][2]string
	var e *client.Error
	if errors.As(err, &e) {
		details = [][2]string{{"field", e.Field}, {"sandbox", e.ID}, {"hint", e.Hint}, {"request", e.RequestID}}
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		details = append(details, [2]string{"hint", h.Hint()})
	}
	for _, d := range details {
		if d[1] != "" {
			fmt.Fprintf(a.io.Err, "  %s: %s\n", d[0], escape(d[1]))
		}
	}
}

// oneLine joins the lines of errors that were joined.
func oneLine(s string) string { return strings.Join(strings.Split(strings.TrimSpace(s), "\n"), "; ") }

// badFlag says what is wrong with a flag, in words of this command line.
func badFlag(c *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	if errors.As(err, &value) {
		f := value.GetFlag()
		err = fmt.Errorf("--%s: %q is no %s", f.Name, value.GetValue(), wanted(f))
	}
	return misuse(c, err)
}

// wanted says what a flag takes.
func wanted(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "duration":
		return "duration; write it as 90s, 5m or 1h"
	case "int", "int32":
		return "whole number"
	case "intSlice":
		return "list of whole numbers; write it as 1,2,4"
	case "float64":
		return "number"
	case "bool":
		return "yes or no; write it as true or false"
	}
	return f.Value.Type() // a type of our own says what it takes
}

// misuse is an error of how c was called.
func misuse(c *cobra.Command, err error) error {
	if c.HasParent() {
		err = fmt.Errorf("%s: %w", shortPath(c), err)
	}
	return &usageError{withHint(err, fmt.Sprintf("%s; more in `%s --help`", c.UseLine(), c.CommandPath()))}
}

// shortPath is how c is called, without the program's name.
func shortPath(c *cobra.Command) string {
	return strings.TrimSpace(strings.TrimPrefix(c.CommandPath(), c.Root().Name()))
}

// takes checks the arguments: at least as many as there are names, and no
// more unless the last name ends in "...".
func takes(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return misuse(c, fmt.Errorf("%s is missing", strings.TrimSuffix(names[len(args)], "...")))
		}
		more := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "...")
		if len(args) > len(names) && !more {
			return misuse(c, fmt.Errorf("unexpected argument %q", args[len(names)]))
		}
		return nil
	}
}

// group is the body of a command that only holds others.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	return unknown(c, args[0])
}

// unknown says that c has no such command, and which one may be meant.
func unknown(c *cobra.Command, name string) error {
	hint := fmt.Sprintf("`%s --help` lists the commands", c.CommandPath())
	c.SuggestionsMinimumDistance = 2
	if s := c.SuggestionsFor(name); len(s) > 0 {
		hint = fmt.Sprintf("did you mean `%s %s`?", c.CommandPath(), strings.Join(s, "`, `"))
	}
	return &usageError{withHint(fmt.Errorf("there is no command %q", strings.TrimSpace(shortPath(c)+" "+name)), hint)}
}
