package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/assembly"
	"github.com/tartarus-vm/tartarus/internal/bench"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/fakevm"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/testkit"
)

// upRole, as the first argument, makes this program an up that is measured, in
// a process of its own; idleRole one that does nothing.
const (
	upRole   = "serve-up"
	idleRole = "idle"
)

// policy leaves room for whatever is measured. running says how many sandboxes
// may be on the node at once.
func policy(running int) string {
	return fmt.Sprintf(`version: 1
tenants:
  local:
    quota: {live: 1000000, running: %d, vcpus: 1000000, memory_mib: 1000000000, disk_mib: 1000000000, rate_per_minute: 1000000, burst: 1000000}
defaults: {template: base, queue_timeout: 1h}
`, running)
}

// room is that of a host that is never full.
var room = sandbox.Capacity{VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}

// up is one that runs.
type up struct {
	cmd   *exec.Cmd
	life  io.Closer // its standard input
	said  *bytes.Buffer
	state string
	api   bench.API
}

// startUp starts an up on fakes, and waits until it answers.
func (b *run) startUp(state, policy string) (_ *up, err error) {
	u := &up{state: state, said: &bytes.Buffer{}}
	file := filepath.Join(filepath.Dir(state), filepath.Base(state)+"-policy.yaml")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		return nil, err
	}
	u.cmd = exec.Command(b.exe, upRole, state, file)
	u.cmd.Stderr = u.said
	if u.life, err = u.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := u.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the up did not start: %w: %s", err, u.said), u.stop())
	}
	addr := strings.TrimPrefix(strings.TrimSpace(line), "http://")
	token, err := os.ReadFile(filepath.Join(state, "admin-token"))
	u.api = bench.API{Host: addr, Token: strings.TrimSpace(string(token)), Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}}
	if err != nil {
		return nil, errors.Join(err, u.stop())
	}
	return u, nil
}

// stop ends it in order.
func (u *up) stop() error {
	_ = u.life.Close()
	if err := u.cmd.Wait(); err != nil {
		return fmt.Errorf("the up ended with %w: %s", err, u.said)
	}
	return nil
}

// serveUp is the up's process. It ends with its standard input.
func serveUp(args []string) (err error) {
	if len(args) == 1 && args[0] == idleRole {
		fmt.Println("http://idle")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	if len(args) != 2 {
		return errors.New("serve-up STATE POLICY")
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // as long as the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if p := os.Getenv("TARTARUS_BENCH_PROFILE"); p != "" {
		f, err := os.Create(p)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	cfg := assembly.Config{
		StateDir: args[0], Policy: args[1], Listen: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	kernel := filepath.Join(filepath.Dir(args[0]), "vmlinux")
	if err := os.WriteFile(kernel, testkit.FakeKernel(), 0o600); err != nil {
		return err
	}
	cfg.Host, cfg.Capacity = &assembly.Host{Driver: fakevm.New(fakevm.Config{}), Kernel: kernel}, room
	return assembly.Run(ctx, cfg, func(r assembly.Running) { fmt.Println(r.Addresses[1]) })
}

func (u *up) look() (bench.Process, error) { return bench.Look(u.cmd.Process.Pid) }
