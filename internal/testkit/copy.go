package testkit

import (
	"errors"
	"os"

	"github.com/tartarus-vm/tartarus/internal/sparse"
)

// CopyFile copies what is in a file, for its owner alone; runs of zeros become
// holes, so that a snapshot's memory or an empty disk takes no room.
func CopyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	st, err := in.Stat()
	if err == nil {
		err = sparse.Copy(out, in, st.Size())
	}
	return errors.Join(err, out.Close())
}
