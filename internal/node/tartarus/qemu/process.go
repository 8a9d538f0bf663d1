package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// process is a launched QEMU.
type process interface {
	VMM() int // QEMU's pid
	Handle() tartarus.Handle
	Isolation() sandbox.Isolation
	Done() <-chan struct{}
	Exit() tartarus.Exit // after Done
	Kill(ctx context.Context) error
}

type plain struct {
	cmd  *exec.Cmd
	done chan struct{}
	exit tartarus.Exit
}

func (d *Driver) launch(ctx context.Context, b boot, files []*os.File) (process, error) {
	stderr, err := os.Create(filepath.Join(b.spec.Dir, stderrFile))
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	p := &plain{cmd: exec.Command(d.binary, b.args()...), done: make(chan struct{})}
	p.cmd.Env = environment()
	p.cmd.ExtraFiles = files
	p.cmd.Stdout, p.cmd.Stderr = stderr, stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("launching qemu: %w", err)
	}
	go func() {
		p.cmd.Wait()
		ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
		p.exit = tartarus.Exit{At: time.Now(), Code: p.cmd.ProcessState.ExitCode()}
		if ws.Signaled() {
			p.exit.Signal = int(ws.Signal())
		}
		close(p.done)
	}()
	return p, nil
}

func (p *plain) VMM() int                     { return p.cmd.Process.Pid }
func (p *plain) Handle() tartarus.Handle      { return tartarus.Handle{Driver: Name, Pid: p.VMM()} }
func (p *plain) Isolation() sandbox.Isolation { return sandbox.Isolation{} }
func (p *plain) Done() <-chan struct{}        { return p.done }
func (p *plain) Exit() tartarus.Exit          { return p.exit }
func (p *plain) Kill(ctx context.Context) error {
	p.cmd.Process.Kill()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
