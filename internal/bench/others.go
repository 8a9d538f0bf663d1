package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// other is another kind of sandbox that may be installed.
type other struct {
	program string
	does    string

	// prepare makes what it needs in dir, and returns the arguments of one
	// start of `echo hello`; n tells starts apart.
	prepare func(ctx context.Context, path, dir string) (args func(n int64) []string, err error)
}

// others are those that there are.
func others() []other {
	return []other{
		{ofGVisor, "`runsc run` of `echo` on the host's own root, read-only, without network", prepareRunsc},
		{"bwrap", "`bwrap` around `echo`: namespaces on the host's own kernel and root", prepareBwrap},
		{"docker", "`docker run --rm` of `echo` in an image that is there", prepareDocker},
	}
}

// trialTimeout bounds the one start that shows whether another sandbox works.
const trialTimeout = 30 * time.Second

// findOthers are those that are installed and work here, and a note for each.
func findOthers(ctx context.Context, dir string) (found []contender, notes []string) {
	for _, o := range others() {
		path, err := exec.LookPath(o.program)
		if err != nil {
			notes = append(notes, o.program+" is not installed: there is no comparison with it")
			continue
		}
		c, err := o.try(ctx, path, filepath.Join(dir, o.program))
		if err != nil {
			notes = append(notes, fmt.Sprintf("%s is installed and does not work here: %v", o.program, err))
			continue
		}
		found, notes = append(found, c), append(notes, o.program+": "+version(ctx, path))
	}
	return found, notes
}

func (o other) try(ctx context.Context, path, dir string) (contender, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return contender{}, err
	}
	tctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	args, err := o.prepare(tctx, path, dir)
	if err != nil {
		return contender{}, err
	}
	var n atomic.Int64
	start := func(ctx context.Context) started { return startProgram(ctx, path, args(n.Add(1))) }
	if s := start(tctx); s.err != nil {
		return contender{}, s.err
	}
	return contender{
		name:     o.program,
		includes: o.does + ", from the start of the program to the first byte of its output, after one trial that does not count; the rate counts until it has ended",
		worker: func(ctx context.Context, _ int) (func() started, func()) {
			return func() started { return start(ctx) }, func() {}
		},
	}, nil
}

// startProgram runs a program until its first output, and to its end.
func startProgram(ctx context.Context, path string, args []string) (s started) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	// A group, so that all of it can be killed; and it ends with us. As root in
	// mounts of its own, because runsc leaves one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killTimeout
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return started{err: err}
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return started{err: err}
	}
	_, silent := io.ReadFull(out, make([]byte, 1))
	s.ms = milliseconds(time.Since(began))
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		s.err = fmt.Errorf("%w: %s", err, lastLine(said.String()))
	} else if silent != nil {
		s.err = errors.New("there was no output")
	}
	return s
}

// lastLine is the last line of what a program said, shortened.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return fmt.Sprintf("%.200q", lines[len(lines)-1])
}

// version is the first line of what a program says of itself.
func version(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "of an unknown version"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.Trim(fmt.Sprintf("%.100q", line), `"`)
}

// prepareRunsc makes a bundle of the host's own root: it needs no image.
func prepareRunsc(_ context.Context, _, dir string) (func(int64) []string, error) {
	namespaces := []map[string]string{{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}
	config, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.0",
		"process": map[string]any{
			"args": []string{"/bin/echo", "hello"}, "cwd": "/", "env": []string{"PATH=/usr/bin:/bin"},
			"user": map[string]int{"uid": 0, "gid": 0},
		},
		"root":   map[string]any{"path": "/", "readonly": true},
		"mounts": []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}},
		"linux":  map[string]any{"namespaces": namespaces},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		return nil, err
	}
	return func(n int64) []string {
		name := strconv.FormatInt(n, 10)
		args := []string{"--root", filepath.Join(dir, "state-"+name), "--network=none", "--ignore-cgroups"}
		if os.Geteuid() != 0 {
			args = append(args, "--rootless")
		}
		return append(args, "run", "--bundle", dir, "tartarus-bench-"+strconv.Itoa(os.Getpid())+"-"+name)
	}, nil
}

func prepareBwrap(context.Context, string, string) (func(int64) []string, error) {
	args := []string{"--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "echo", "hello"}
	return func(int64) []string { return args }, nil
}

// prepareDocker takes the first image that is there: nothing is downloaded.
func prepareDocker(ctx context.Context, path, _ string) (func(int64) []string, error) {
	out, err := exec.CommandContext(ctx, path, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, lastLine(string(exit.Stderr)))
	}
	if err != nil {
		return nil, err
	}
	for image := range strings.Lines(string(out)) {
		if image = strings.TrimSpace(image); image != "" && !strings.Contains(image, "<none>") {
			args := []string{"run", "--rm", "--pull=never", "--network=none", "--entrypoint=echo", image, "hello"}
			return func(int64) []string { return args }, nil
		}
	}
	return nil, errors.New("there is no image, and none is downloaded for this")
}
