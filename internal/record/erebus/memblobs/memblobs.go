// Package memblobs is the blob store in memory, for tests and for what need
// not outlive its process.
package memblobs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Config is the size of a store.
type Config struct {
	MaxBytes int64 // of all blobs together; 0: no bound
}

// Store keeps blobs in memory.
type Store struct {
	max int64

	mu    sync.Mutex
	used  int64                   // mu
	blobs map[sandbox.Digest]blob // mu; the bytes never change
}

type blob struct {
	data   []byte
	stored time.Time
}

var _ erebus.Blobs = (*Store)(nil)

// New makes an empty store.
func New(c Config) *Store {
	return &Store{max: c.MaxBytes, blobs: map[sandbox.Digest]blob{}}
}

// Put implements erebus.Blobs.
func (s *Store) Put(ctx context.Context, r io.Reader) (sandbox.Digest, error) {
	var buf bytes.Buffer
	if s.max > 0 {
		r = io.LimitReader(r, s.max+1) // one more than fits, so that it is seen
	}
	if _, err := erebus.Copy(ctx, &buf, r); err != nil {
		return "", fmt.Errorf("storing blob: %w", err)
	}
	d := erebus.Digest(buf.Bytes())
	s.mu.Lock()
	defer s.mu.Unlock()
	used := s.used + int64(buf.Len()) - int64(len(s.blobs[d].data))
	if s.max > 0 && used > s.max {
		return "", fault.New(fault.Unavailable, "the blob store is full")
	}
	s.used = used
	s.blobs[d] = blob{data: buf.Bytes(), stored: time.Now()}
	return d, nil
}

// Open implements erebus.Blobs.
func (s *Store) Open(ctx context.Context, d sandbox.Digest) (io.ReadSeekCloser, error) {
	b, err := s.get(d)
	if err != nil {
		return nil, err
	}
	return erebus.NewReader(ctx, erebus.ReaderConfig{
		Content: content{bytes.NewReader(b.data)}, Digest: d, Size: int64(len(b.data)),
		Damaged: func() { s.drop(d) },
	}), nil
}

// Stat implements erebus.Blobs.
func (s *Store) Stat(_ context.Context, d sandbox.Digest) (erebus.Info, error) {
	b, err := s.get(d)
	if err != nil {
		return erebus.Info{}, err
	}
	return erebus.Info{Digest: d, Bytes: int64(len(b.data)), Stored: b.stored}, nil
}

// Collect implements erebus.Blobs.
func (s *Store) Collect(ctx context.Context, keep func(sandbox.Digest) bool, grace time.Duration) ([]erebus.Info, error) {
	young := time.Now().Add(-grace)
	s.mu.Lock()
	all := make([]sandbox.Digest, 0, len(s.blobs))
	for d := range s.blobs {
		all = append(all, d)
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b sandbox.Digest) int { return strings.Compare(string(a), string(b)) })
	var removed []erebus.Info
	for _, d := range all {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if keep(d) { // called without the lock: it may use the store
			continue
		}
		s.mu.Lock()
		b, ok := s.blobs[d]
		if ok && b.stored.Before(young) {
			delete(s.blobs, d)
			s.used -= int64(len(b.data))
			removed = append(removed, erebus.Info{Digest: d, Bytes: int64(len(b.data)), Stored: b.stored})
		}
		s.mu.Unlock()
	}
	return removed, nil
}

func (s *Store) get(d sandbox.Digest) (blob, error) {
	if err := erebus.Check(d); err != nil {
		return blob{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[d]
	if !ok {
		return blob{}, erebus.Missing(d)
	}
	return b, nil
}

func (s *Store) drop(d sandbox.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.blobs[d]; ok {
		s.used -= int64(len(b.data))
		delete(s.blobs, d)
	}
}

type content struct{ *bytes.Reader }

func (content) Close() error { return nil }
