package erebus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Check is the error of a digest that is malformed, or nil.
func Check(d sandbox.Digest) error {
	if !d.Valid() {
		return fault.Invalid("digest", "a digest is sha256: and 64 lower-case hexadecimal digits", "malformed digest %q", string(d))
	}
	return nil
}

// Missing is the error of a blob that is not there.
func Missing(d sandbox.Digest) error {
	return fault.New(fault.NotFound, "no blob %s", d)
}

// Damaged is the error of a blob whose bytes are not what its name says.
func Damaged(d sandbox.Digest) error {
	return fault.New(fault.Conflict, "blob %s is damaged: its bytes are not what its name says", d).
		WithHint("make or fetch it again; the damaged file was put aside")
}

// DigestOf is the name of the bytes that went into h.
func DigestOf(h hash.Hash) sandbox.Digest {
	return sandbox.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// Digest is the name of b.
func Digest(b []byte) sandbox.Digest {
	sum := sha256.Sum256(b)
	return sandbox.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Content is the stored bytes of one blob, as a back end holds them.
type Content interface {
	io.ReaderAt
	io.Closer
}

// Reader reads a blob and verifies it on the way: what is read in order is
// hashed as it passes, and the first read that goes elsewhere verifies the
// whole first. It is not for use by several goroutines at once.
type Reader struct {
	ctx     context.Context // of Open: it bounds the reading too
	content Content
	digest  sandbox.Digest
	size    int64
	whole   func() error // verifies all of content; called once at most
	damaged func()       // told once that content is damaged

	hash     hash.Hash
	hashed   int64 // bytes from the start that went into hash
	pos      int64
	verified bool
	err      error // what every later read returns; nil while all is well
}

// ReaderConfig is what a back end knows of a blob it opens.
type ReaderConfig struct {
	Content Content
	Digest  sandbox.Digest
	Size    int64
	Whole   func() error // verifies all of Content and puts it aside when it is damaged; nil: the reader hashes it itself
	Damaged func()       // puts a damaged blob aside; may be nil
}

// NewReader reads c.Content, which it closes in the end. ctx bounds the
// reading: after its end reads fail.
func NewReader(ctx context.Context, c ReaderConfig) *Reader {
	r := &Reader{ctx: ctx, content: c.Content, digest: c.Digest, size: c.Size, whole: c.Whole, damaged: c.Damaged, hash: sha256.New()}
	if r.damaged == nil {
		r.damaged = func() {}
	}
	if r.whole == nil {
		r.whole = func() error {
			err := Verify(ctx, c.Content, c.Size, c.Digest)
			if fault.Is(err, fault.Conflict) {
				r.damaged()
			}
			return err
		}
	}
	return r
}

// Read reads the next bytes. The read that would end a damaged blob returns
// the Conflict error, and so does every later one.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if !r.verified && r.pos != r.hashed {
		if err := r.verifyWhole(); err != nil {
			return 0, err
		}
	}
	if r.pos >= r.size {
		return 0, r.atEnd()
	}
	if len(p) == 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), r.size-r.pos)]
	n, err := r.content.ReadAt(p, r.pos)
	if n > 0 && !r.verified {
		r.hash.Write(p[:n])
		r.hashed += int64(n)
	}
	r.pos += int64(n)
	switch {
	case n > 0:
		return n, nil // an error comes again with the next read
	case errors.Is(err, io.EOF):
		return 0, r.fail() // shorter than it was when it was opened
	}
	return 0, err
}

// verifyWhole verifies everything before bytes from the middle go out.
func (r *Reader) verifyWhole() error {
	if err := r.whole(); err != nil {
		if fault.Is(err, fault.Conflict) {
			r.err = err
		}
		return err
	}
	r.verified = true
	return nil
}

// atEnd is io.EOF for a good blob.
func (r *Reader) atEnd() error {
	if !r.verified {
		if DigestOf(r.hash) != r.digest {
			return r.fail()
		}
		r.verified = true
	}
	return io.EOF
}

func (r *Reader) fail() error {
	r.damaged()
	r.err = Damaged(r.digest)
	return r.err
}

// Seek sets where the next read begins, as io.Seeker says.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	default:
		return 0, fault.New(fault.InvalidArgument, "seek: unknown whence %d", whence)
	}
	if offset < 0 {
		return 0, fault.New(fault.InvalidArgument, "seek: offset %d is before the start", offset)
	}
	r.pos = offset
	return offset, nil
}

// Close closes the content.
func (r *Reader) Close() error { return r.content.Close() }

// Verify reads size bytes of content and tells by the Conflict error if they
// are not what d says, or are followed by more.
func Verify(ctx context.Context, content io.ReaderAt, size int64, d sandbox.Digest) error {
	h := sha256.New()
	n, err := Copy(ctx, h, io.NewSectionReader(content, 0, size+1))
	if err != nil {
		return err
	}
	if n != size || DigestOf(h) != d {
		return Damaged(d)
	}
	return nil
}

// copyBuffer is how much is copied between two looks at the context.
const copyBuffer = 256 << 10

// Copy is io.Copy that ends with ctx.
func Copy(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, copyBuffer)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := r.Read(buf)
		if n > 0 {
			m, werr := w.Write(buf[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
