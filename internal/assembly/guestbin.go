package assembly

import (
	"embed"
	"errors"
	"io/fs"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// guestFiles holds the guest's init, when the binary was built with it.
//
//go:embed guest
var guestFiles embed.FS

// guestInit is PID 1 of the guest, a static binary.
func guestInit() ([]byte, error) {
	b, err := guestFiles.ReadFile("guest/tartarus-guest")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unsupported, "this binary was built without the guest's init").
			WithHint("build it with `make build`")
	}
	return b, err
}
