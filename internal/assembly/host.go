package assembly

import (
	"context"
	"errors"

	"github.com/tartarus-vm/tartarus/internal/node/nyx"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// Host stands for the machine that an up is on: its VMs and its kernel. All
// else of such an up is real.
type Host struct {
	Driver tartarus.Driver
	Kernel string // file, of the guest bundle
}

// standInTemplate is the template that a stood-in host has.
const standInTemplate = "base"

// standIn takes from Config.Host what is otherwise found out of this machine.
func (e *embedded) standIn(ctx context.Context) (err error) {
	e.detected = func() error { return errors.New("this host is a fake") }
	e.driver = e.cfg.Host.Driver
	if e.images, e.blobs, err = openImages(e.paths, nyx.Config{Kernel: e.cfg.Host.Kernel}); err != nil {
		return err
	}
	if _, err = e.images.EnsureBundle(ctx, []byte("\x7fELF, as far as anybody looks"), nil); err != nil {
		return err
	}
	_, err = e.images.EnsureTemplate(ctx, standInTemplate, nil)
	return err
}
