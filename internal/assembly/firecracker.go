package assembly

import (
	"context"
	"path/filepath"

	"github.com/tartarus-vm/tartarus/internal/cli"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus/firecracker/fcget"
)

// setupFirecracker installs the pinned release beside the state.
func setupFirecracker(ctx context.Context, o cli.SetupFirecrackerOptions) (string, error) {
	root, err := stateRoot(o.StateDir)
	if err != nil {
		return "", err
	}
	p, err := openState(root)
	if err != nil {
		return "", err
	}
	r, err := fcget.Pinned()
	if err != nil {
		return "", err
	}
	cfg := fcget.Config{Release: r, Dir: p.firecracker(), From: o.From}
	if o.Progress != nil {
		name := "firecracker " + r.Version + ": downloading it"
		if o.From != "" {
			name = "firecracker " + r.Version + ": installing it"
		}
		o.Progress(cli.Step{Name: name})
		cfg.Progress = func(done, total int64) { o.Progress(cli.Step{Name: name, Done: done, Total: total}) }
	}
	in, err := fcget.Install(ctx, cfg)
	return filepath.Dir(in.Firecracker), err
}
