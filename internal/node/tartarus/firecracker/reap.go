package firecracker

import (
	"context"
	"fmt"

	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Reap ends what an earlier process of this agent left: see tartarus.Driver. A
// jail ends with its process.
func (d *Driver) Reap(ctx context.Context, dir string, h tartarus.Handle) error {
	err := d.kind.Reap(ctx, dir, h)
	if err == nil {
		err = removeFiles(dir)
	}
	if err != nil {
		return fmt.Errorf("ending what is left in %s: %w", dir, err)
	}
	return nil
}
