package blobtest

import (
	"bytes"
	"io"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/record/erebus"
)

// harms are ways to damage a blob.
var harms = []struct {
	name string
	edit func([]byte) []byte
}{
	{"bit flip at the start", func(b []byte) []byte { b[0] ^= 1; return b }},
	{"bit flip at the end", func(b []byte) []byte { b[len(b)-1] ^= 0x80; return b }},
	{"truncated", func(b []byte) []byte { return b[:len(b)/2] }},
	{"emptied", func([]byte) []byte { return nil }},
	{"longer", func(b []byte) []byte { return append(b, 0) }},
}

func damage(t *testing.T, fresh func(TB) Backend) {
	for _, h := range harms {
		be := fresh(t)
		if be.Rewrite == nil {
			return
		}
		data := bytes.Repeat([]byte("precious"), 100_000)
		d := put(t, be.Blobs, data)
		if err := be.Rewrite(d, h.edit); err != nil {
			t.Fatal(err)
		}
		_, err := get(be.Blobs, d)
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v, want Conflict", h.name, err)
		}
		if _, err := get(be.Blobs, d); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: a damaged blob is still handed out: %v", h.name, err)
		}
		if again := put(t, be.Blobs, data); again != d {
			t.Errorf("%s: stored again as %s", h.name, again)
		}
		if got, err := get(be.Blobs, d); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: after storing it again: %d bytes, %v", h.name, len(got), err)
		}
	}
}

// Storing again heals, and bytes from the middle are as safe as the rest.
func damageSeek(t *testing.T, fresh func(TB) Backend) {
	be := fresh(t)
	if be.Rewrite == nil {
		return
	}
	data := bytes.Repeat([]byte("precious"), 1000)
	d := put(t, be.Blobs, data)
	if err := be.Rewrite(d, harms[1].edit); err != nil {
		t.Fatal(err)
	}
	put(t, be.Blobs, data)
	if got, err := get(be.Blobs, d); err != nil || !bytes.Equal(got, data) {
		t.Errorf("stored over a damaged one: %d bytes, %v", len(got), err)
	}
	if err := be.Rewrite(d, harms[1].edit); err != nil {
		t.Fatal(err)
	}
	r, err := be.Blobs.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	n, err := r.Read(make([]byte, 10))
	if n != 0 || !fault.Is(err, fault.Conflict) {
		t.Errorf("%d bytes from the middle of a damaged blob, %v", n, err)
	}
}

func pathDamage(t *testing.T, fresh func(TB) Backend) {
	for _, h := range harms {
		be := fresh(t)
		b, ok := be.Blobs.(erebus.Local)
		if !ok || be.Rewrite == nil {
			return
		}
		d := put(t, b, []byte("map me"))
		if _, err := b.Path(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if err := be.Rewrite(d, h.edit); err != nil {
			t.Fatal(err)
		}
		if p, err := b.Path(t.Context(), d); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: the path of a damaged blob is %q, %v", h.name, p, err)
		}
		if p, err := b.Path(t.Context(), d); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: the path of a blob that was put aside is %q, %v", h.name, p, err)
		}
	}
}
