package memblobs

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus/blobtest"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSuite(t *testing.T) {
	t.Parallel()
	blobtest.Run(t, func(blobtest.TB) blobtest.Backend {
		s := New(Config{})
		return blobtest.Backend{
			Blobs: s,
			Rewrite: func(d sandbox.Digest, edit func([]byte) []byte) error {
				s.mu.Lock()
				defer s.mu.Unlock()
				b, ok := s.blobs[d]
				if !ok {
					return errors.New("not there")
				}
				b.data = edit(bytes.Clone(b.data))
				s.blobs[d] = b
				return nil
			},
			Count: func() (int, error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.blobs), nil
			},
		}
	})
}

func TestFull(t *testing.T) {
	t.Parallel()
	s := New(Config{MaxBytes: 10})
	for range 2 { // the second time it is there already, and takes no more room
		if _, err := s.Put(t.Context(), strings.NewReader("12345678")); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"123", strings.Repeat("x", 1<<20)} {
		if _, err := s.Put(t.Context(), strings.NewReader(text)); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%d bytes too many: %v", len(text), err)
		}
	}
	time.Sleep(time.Millisecond)
	if removed, err := s.Collect(t.Context(), func(sandbox.Digest) bool { return false }, 0); err != nil || len(removed) != 1 {
		t.Fatalf("removed %v, %v", removed, err)
	}
	if _, err := s.Put(t.Context(), strings.NewReader("0123456789")); err != nil {
		t.Errorf("after making room: %v", err)
	}
}
