package qemu

import (
	"context"
	"fmt"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Reap ends what an earlier process of this agent left: see tartarus.Driver.
func (d *Driver) Reap(ctx context.Context, dir string, h tartarus.Handle) error {
	if err := d.kind.Reap(ctx, dir, h); err != nil {
		return fmt.Errorf("ending what is left in %s: %w", dir, err)
	}
	removeFiles(dir)
	return nil
}
