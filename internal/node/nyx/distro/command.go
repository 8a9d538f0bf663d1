package distro

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command is a program of the host that ends with ctx, together with all that
// it started; it is told to end when this process dies. It speaks plain English, and finds the programs of sbin.
func Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	path, err := Look(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive",
		"PATH="+os.Getenv("PATH")+":"+strings.Join(sbin, ":"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd, nil
}

// Run runs a program to its end and returns what it printed. When it fails,
// the error has its last words.
func Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd, err := Command(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	err = Finish(ctx, cmd)
	return out.Bytes(), err
}

// Finish starts cmd, made by Command and started by nothing else, and waits
// for its end. Its standard
// error, if nothing else reads it, becomes the text of the error.
func Finish(ctx context.Context, cmd *exec.Cmd) error {
	last := &Tail{}
	switch w := cmd.Stderr; w {
	case nil:
		cmd.Stderr = last
	default:
		cmd.Stderr = io.MultiWriter(w, last)
	}
	// The signal at our death hangs on the thread that forks: it must not end
	// before the program does.
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	if cmd.Process != nil && ctx.Err() != nil {
		// What ignored the polite signal, or left its parent, ends here.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", cmd.Args[0], ctx.Err())
	}
	return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, last.String())
}

// Tail keeps the last bytes written to it. It is not for several writers at
// once.
type Tail struct{ b []byte }

// tailBytes bounds a Tail.
const tailBytes = 2 << 10

// Write implements io.Writer; it never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - tailBytes; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// String is what was kept, on one line.
func (t *Tail) String() string {
	return strings.Join(strings.FieldsFunc(string(bytes.ToValidUTF8(t.b, []byte("?"))), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
