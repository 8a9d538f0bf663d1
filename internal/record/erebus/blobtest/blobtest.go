// Package blobtest is the suite that every blob store passes.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Backend is one empty store, and how to do it harm.
type Backend struct {
	Blobs erebus.Blobs

	// Rewrite replaces the stored bytes of a blob behind the store's back;
	// nil if nothing can.
	Rewrite func(d sandbox.Digest, edit func([]byte) []byte) error

	// Count is how many files or records there are in all, half-made ones
	// too.
	Count func() (int, error)
}

// TB is what a back end may be made under: a test, or one try of a property.
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(f func())
}

// Run runs the suite. fresh makes an empty store.
func Run(t *testing.T, fresh func(t TB) Backend) {
	for _, c := range []struct {
		name string
		test func(*testing.T, func(TB) Backend)
	}{
		{"RoundTrip", roundTrip},
		{"Zeros", zeros},
		{"Model", model},
		{"Seek", seek},
		{"Malformed", malformed},
		{"FailedPut", failedPut},
		{"SameAtOnce", sameAtOnce},
		{"CollectGrace", collectGrace},
		{"CollectAgainstPut", collectAgainstPut},
		{"CollectWhileReading", collectWhileReading},
		{"Damage", damage},
		{"DamageSeek", damageSeek},
		{"Path", path},
		{"PathDamage", pathDamage},
		{"Ended", ended},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, fresh)
		})
	}
}

func put(t TB, b erebus.Blobs, data []byte) sandbox.Digest {
	t.Helper()
	d, err := b.Put(context.Background(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(fmt.Errorf("storing %d bytes: %w", len(data), err))
	}
	return d
}

func get(b erebus.Blobs, d sandbox.Digest) ([]byte, error) {
	r, err := b.Open(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func wantKind(t *testing.T, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Errorf("error %v, want one of kind %v", err, k)
	}
}

func roundTrip(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	for _, size := range []int{0, 1, 4095, 4096, 256<<10 - 1, 256 << 10, 256<<10 + 1, 3 << 20} {
		data := bytes.Repeat([]byte("blob"), size/4+1)[:size]
		began := time.Now()
		d := put(t, b, data)
		if d != erebus.Digest(data) {
			t.Errorf("%d bytes are named %s", size, d)
		}
		info, err := b.Stat(t.Context(), d)
		if err != nil || info.Digest != d || info.Bytes != int64(size) {
			t.Errorf("%d bytes: Stat %+v, %v", size, info, err)
		}
		if info.Stored.Before(began.Add(-time.Second)) || info.Stored.After(time.Now().Add(time.Second)) {
			t.Errorf("stored now, at %v", info.Stored)
		}
		r, err := b.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, data); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// zeros: runs of zero bytes come back as they were, wherever they begin and
// end, and in whatever pieces they came.
func zeros(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	rapid.Check(t, func(t *rapid.T) {
		var data []byte
		for range rapid.IntRange(0, 12).Draw(t, "runs") {
			n := rapid.OneOf(rapid.SampledFrom([]int{1, 4095, 4096, 4097, 8192, 65536, 256 << 10}), rapid.IntRange(1, 20_000)).Draw(t, "length")
			data = append(data, bytes.Repeat([]byte{rapid.SampledFrom([]byte{0, 0, 1, 0xff}).Draw(t, "byte")}, n)...)
		}
		piece := rapid.SampledFrom([]int{700, 4096, 5000, 300_000}).Draw(t, "piece")
		r := bytes.NewReader(data)
		d, err := b.Put(context.Background(), readFunc(func(p []byte) (int, error) { return r.Read(p[:min(len(p), piece)]) }))
		if err != nil || d != erebus.Digest(data) {
			t.Fatalf("%d bytes are named %s, %v", len(data), d, err)
		}
		if info, err := b.Stat(context.Background(), d); err != nil || info.Bytes != int64(len(data)) {
			t.Fatalf("%d bytes: Stat %+v, %v", len(data), info, err)
		}
		if got, err := get(b, d); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back as %d others, %v", len(data), len(got), err)
		}
	})
}

// model holds the store against a map.
func model(t *testing.T, fresh func(TB) Backend) {
	rapid.Check(t, func(t *rapid.T) {
		b := fresh(t).Blobs
		have := map[sandbox.Digest][]byte{}
		content := rapid.SliceOfN(rapid.Byte(), 0, 40)
		known := rapid.Custom(func(t *rapid.T) sandbox.Digest { return erebus.Digest(content.Draw(t, "content")) })
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				data := content.Draw(t, "data")
				have[put(t, b, data)] = data
			},
			"open": func(t *rapid.T) {
				d := known.Draw(t, "digest")
				got, err := get(b, d)
				want, there := have[d]
				if there && (err != nil || !bytes.Equal(got, want)) {
					t.Fatalf("read %q, %v; want %q", got, err, want)
				}
				if !there && !fault.Is(err, fault.NotFound) {
					t.Fatalf("read what is not there: %q, %v", got, err)
				}
			},
			"collect": func(t *rapid.T) {
				keep := map[sandbox.Digest]bool{}
				for d := range have {
					keep[d] = rapid.Bool().Draw(t, "keep")
				}
				removed, err := b.Collect(context.Background(), func(d sandbox.Digest) bool { return keep[d] }, 0)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range removed {
					if want, there := have[r.Digest]; !there || keep[r.Digest] || r.Bytes != int64(len(want)) {
						t.Fatalf("removed %+v, of %d bytes, keep %v", r, len(want), keep[r.Digest])
					}
					delete(have, r.Digest)
				}
			},
			"": func(t *rapid.T) {
				for d, data := range have {
					info, err := b.Stat(context.Background(), d)
					if err != nil || info.Bytes != int64(len(data)) {
						t.Fatalf("%s: %+v, %v", d, info, err)
					}
				}
			},
		})
		// With no keeper and no grace, nothing that was stored before stays.
		time.Sleep(time.Millisecond) // the age of a blob is older than a clock's step
		if _, err := b.Collect(context.Background(), func(sandbox.Digest) bool { return false }, 0); err != nil {
			t.Fatal(err)
		}
		for d := range have {
			if _, err := b.Stat(context.Background(), d); !fault.Is(err, fault.NotFound) {
				t.Fatalf("%s is still there: %v", d, err)
			}
		}
	})
}

// seek holds the reader against bytes.Reader.
func seek(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	data := bytes.Repeat([]byte("0123456789abcdef"), 5000)
	d := put(t, b, data)
	rapid.Check(t, func(t *rapid.T) {
		r, err := b.Open(context.Background(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		want := bytes.NewReader(data)
		t.Repeat(map[string]func(*rapid.T){
			"seek": func(t *rapid.T) {
				at, whence := rapid.Int64Range(-1000, int64(len(data))+1000).Draw(t, "at"), rapid.IntRange(0, 2).Draw(t, "whence")
				got, gotErr := r.Seek(at, whence)
				should, shouldErr := want.Seek(at, whence)
				if (gotErr == nil) != (shouldErr == nil) || gotErr == nil && got != should {
					t.Fatalf("seek %d, %d: %d, %v; want %d, %v", at, whence, got, gotErr, should, shouldErr)
				}
			},
			"read": func(t *rapid.T) {
				n := rapid.IntRange(1, 70000).Draw(t, "n")
				got, gotErr := io.ReadAll(io.LimitReader(r, int64(n)))
				should, _ := io.ReadAll(io.LimitReader(want, int64(n)))
				if gotErr != nil || !bytes.Equal(got, should) {
					t.Fatalf("read %d bytes, %v; want %d", len(got), gotErr, len(should))
				}
			},
		})
	})
}

func malformed(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	good := string(put(t, b, []byte("x")))
	for _, d := range []string{
		"", "sha256:", strings.TrimPrefix(good, "sha256:"), strings.ToUpper(good), good + "0", good[:len(good)-1],
		"sha512:" + strings.TrimPrefix(good, "sha256:"), "sha256:../../../../../../../../../../../../../../../etc/passwd/././././.",
		good[:len(good)-2] + "/x", good[:len(good)-1] + "\x00",
	} {
		_, err := b.Open(t.Context(), sandbox.Digest(d))
		wantKind(t, err, fault.InvalidArgument)
		_, err = b.Stat(t.Context(), sandbox.Digest(d))
		wantKind(t, err, fault.InvalidArgument)
		if l, ok := b.(erebus.Local); ok {
			_, err = l.Path(t.Context(), sandbox.Digest(d))
			wantKind(t, err, fault.InvalidArgument)
		}
	}
	missing := erebus.Digest([]byte("nobody stored this"))
	_, err := b.Open(t.Context(), missing)
	wantKind(t, err, fault.NotFound)
	_, err = b.Stat(t.Context(), missing)
	wantKind(t, err, fault.NotFound)
}

// A Put that fails leaves nothing, whatever had been written.
func failedPut(t *testing.T, fresh func(TB) Backend) {
	be := fresh(t)
	before, err := be.Count()
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the line broke")
	r := io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(broken))
	if _, err := be.Blobs.Put(t.Context(), r); !errors.Is(err, broken) {
		t.Errorf("a broken reader: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r = io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), readFunc(func([]byte) (int, error) {
		cancel()
		return 1, nil // it would go on for ever
	}))
	if _, err := be.Blobs.Put(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Put: %v", err)
	}
	after, err := be.Count()
	if err != nil {
		t.Fatal(err)
	}
	if after != before {
		t.Errorf("%d things are left of what failed", after-before)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func sameAtOnce(t *testing.T, fresh func(TB) Backend) {
	be := fresh(t)
	data := bytes.Repeat([]byte("same"), 100_000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if d, err := be.Blobs.Put(context.Background(), bytes.NewReader(data)); err != nil || d != erebus.Digest(data) {
				t.Errorf("%s, %v", d, err)
			}
			if got, err := get(be.Blobs, erebus.Digest(data)); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if n, err := be.Count(); err != nil || n != 1 {
		t.Errorf("one blob became %d, %v", n, err)
	}
}

func collectGrace(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	kept, old := put(t, b, []byte("kept")), put(t, b, []byte("old"))
	keep := func(d sandbox.Digest) bool { return d == kept }
	removed, err := b.Collect(t.Context(), keep, time.Hour)
	if err != nil || len(removed) != 0 {
		t.Errorf("within the grace: removed %v, %v", removed, err)
	}
	time.Sleep(20 * time.Millisecond)
	renewed := put(t, b, []byte("renewed"))
	put(t, b, []byte("old again"))
	time.Sleep(20 * time.Millisecond)
	put(t, b, []byte("renewed"))
	removed, err = b.Collect(t.Context(), keep, 15*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if len(removed) != 2 {
		t.Errorf("removed %v", removed)
	}
	for d, want := range map[sandbox.Digest]bool{kept: true, renewed: true, old: false} {
		if _, err := b.Stat(t.Context(), d); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", d, err, want)
		}
	}
}

// A blob that is stored or renewed while Collect runs stays.
func collectAgainstPut(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	stop := make(chan struct{})
	var collector sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// Nothing lives longer than the grace; whatever a Put has just
			// returned is younger.
			if _, err := b.Collect(context.Background(), func(sandbox.Digest) bool { return false }, 2*time.Second); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 50 {
				data := fmt.Appendf(nil, "%d", (w+i)%5)
				d, err := b.Put(context.Background(), bytes.NewReader(data))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := get(b, d); err != nil || !bytes.Equal(got, data) {
					t.Errorf("what was just stored is %q, %v", got, err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	collector.Wait()

	// One that Collect asks about while it is renewed.
	d := put(t, b, []byte("wanted again"))
	time.Sleep(5 * time.Millisecond)
	_, err := b.Collect(t.Context(), func(x sandbox.Digest) bool {
		if x == d {
			put(t, b, []byte("wanted again"))
		}
		return false
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := get(b, d); err != nil || string(got) != "wanted again" {
		t.Errorf("renewed while Collect looked at it: %q, %v", got, err)
	}
}

func collectWhileReading(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	data := bytes.Repeat([]byte("read me"), 10000)
	d := put(t, b, data)
	r, err := b.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	time.Sleep(5 * time.Millisecond)
	if removed, err := b.Collect(t.Context(), func(sandbox.Digest) bool { return false }, 0); err != nil || len(removed) != 1 {
		t.Fatalf("removed %v, %v", removed, err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("an open blob that was collected: %d bytes, %v", len(got), err)
	}
}

func path(t *testing.T, fresh func(TB) Backend) {
	b, ok := fresh(t).Blobs.(erebus.Local)
	if !ok {
		return
	}
	data := []byte("map me")
	d := put(t, b, data)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p, err := b.Path(context.Background(), d)
			if err != nil {
				t.Error(err)
				return
			}
			got, err := os.ReadFile(p)
			st, serr := os.Lstat(p)
			if err != nil || serr != nil || !bytes.Equal(got, data) || st.Mode() != 0o444 {
				t.Errorf("%q, %v, %v, %v", got, err, serr, st.Mode())
			}
		})
	}
	wg.Wait()
	_, err := b.Path(t.Context(), erebus.Digest([]byte("nobody stored this")))
	wantKind(t, err, fault.NotFound)
}

func ended(t *testing.T, fresh func(TB) Backend) {
	b := fresh(t).Blobs
	d := put(t, b, []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Open(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("reading after the end of its context: %v", err)
	}
	if _, err := b.Put(ctx, strings.NewReader("y")); !errors.Is(err, context.Canceled) {
		t.Errorf("storing after the end of its context: %v", err)
	}
	if _, err := b.Collect(ctx, func(sandbox.Digest) bool { return false }, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("collecting after the end of its context: %v", err)
	}
}
