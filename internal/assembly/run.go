package assembly

import (
	"context"
	"log/slog"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// handleUnknown lets a driver find a VM by its folder alone.
var handleUnknown tartarus.Handle

// up is the command: a server until ctx ends.
func up(ctx context.Context, o cli.UpOptions, ready func([]string)) error {
	cfg := Config{
		StateDir: o.StateDir, Policy: o.Policy, Listen: o.Listen, TLSCert: o.TLSCert, TLSKey: o.TLSKey, Hosts: o.Hosts,
		VMM: o.VMM, Standby: int(o.Standby), AllowTCG: o.AllowTCG, Templates: []string{"base"}, Progress: o.Progress,
		AuditSinks: o.AuditSinks, Logger: newLogger(stderr(), o.LogFormat, o.Verbose, slog.LevelInfo),
	}
	return Run(ctx, cfg, func(r Running) { ready(r.Addresses) })
}

// local is `run --local`: everything in this process.
func local(ctx context.Context, o cli.LocalOptions) (cli.Local, func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	template := o.Template
	if template == "" {
		template = "base"
	}
	cfg := Config{
		StateDir: o.StateDir, Policy: o.Policy, VMM: o.VMM, Local: true, Templates: []string{template}, Progress: o.Progress,
		Logger: newLogger(stderr(), cli.LogText, o.Verbose, slog.LevelError),
	}
	up := make(chan Running, 1)
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, func(r Running) { up <- r }) }()
	select {
	case r := <-up:
		return cli.Local{Dial: r.Dial}, func() error { cancel(); return <-done }, nil
	case err := <-done:
		cancel()
		return cli.Local{}, nil, err
	}
}
