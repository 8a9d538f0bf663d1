// Package erebus is the blob store: images, snapshots and ended logs, each
// named by the SHA-256 of its content.
//
// The seam is Blobs; its suite is blobtest, and every back end passes it.
package erebus

import (
	"context"
	"io"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Blobs keeps immutable blobs by their content. All methods may be called at
// once, by any number of processes on the same store.
//
// Errors have the kinds of package fault: NotFound for a digest that is not
// there, InvalidArgument for one that is malformed, Unavailable when the store
// is full or out of reach, Conflict for a blob whose bytes are not what its
// name says (it is never handed out, and is put aside).
type Blobs interface {
	// Put stores all of r and returns its name. It is there as a whole and
	// durably, or not at all. Storing what is there already is no error, and
	// renews its age. Put does not close r.
	Put(ctx context.Context, r io.Reader) (sandbox.Digest, error)

	// Open reads a blob. Its bytes are verified as they are read: the read
	// that would end a damaged blob returns the Conflict error instead of
	// io.EOF. Who does not read them in order gets them as Path's are, or
	// after all of them were verified. The caller closes it.
	Open(ctx context.Context, d sandbox.Digest) (io.ReadSeekCloser, error)

	// Stat tells the size and age of a blob without reading it.
	Stat(ctx context.Context, d sandbox.Digest) (Info, error)

	// Collect removes every blob for which keep is false and which is older
	// than grace, and returns what it removed. A blob that is stored, or
	// renewed, while Collect runs stays.
	Collect(ctx context.Context, keep func(sandbox.Digest) bool, grace time.Duration) ([]Info, error)
}

// Info describes a blob.
type Info struct {
	Digest sandbox.Digest
	Bytes  int64
	Stored time.Time // when it was stored or renewed last
}

// Local is a store whose blobs are files of this host. What maps or mounts a
// blob (a VMM, a kernel) needs it so.
type Local interface {
	Blobs

	// Path is the read-only file of a blob, its content verified by this or
	// another process within a day, and as far as the file system tells not
	// changed since. The file stays unchanged for as long as the blob is
	// kept; the caller must not write it.
	Path(ctx context.Context, d sandbox.Digest) (string, error)
}
