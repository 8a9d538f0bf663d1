package seal_test

import (
	"testing"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"

	"crypto/sha256"
	"encoding/hex"
)

// What was not signed never opens, whatever its bytes; what was signed opens
// only as it was.
func FuzzOpenVerdict(f *testing.F) {
	k, r := newKey(f)
	good, _ := signed(f, k, verdictOf(firstID))
	f.Add(good)
	f.Add(good[:84])
	f.Add([]byte("TSL1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := r.OpenVerdict(b, now); err == nil && string(b) != string(good) {
			t.Errorf("opened what was never signed: %q", b)
		}
	})
}

func FuzzOpenOrder(f *testing.F) {
	k, r := newKey(f)
	good := ordered(f, k, orderOf(digest, firstID))
	f.Add(good)
	f.Add(good[:84])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := r.OpenOrder(b, now); err == nil && string(b) != string(good) {
			t.Errorf("opened what was never signed: %q", b)
		}
	})
}

// Whatever decodes has one encoding: the one it came from.
func FuzzDecodeSecrets(f *testing.F) {
	good, _, err := seal.EncodeSecrets(someSecrets())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"salt":"","salt":null,"Env":{}}`))
	f.Add([]byte(`{"salt":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := sha256.Sum256(b)
		d := sandbox.Digest("sha256:" + hex.EncodeToString(sum[:]))
		s, err := seal.DecodeSecrets(b, d)
		if err != nil {
			return
		}
		again, againDigest, err := seal.EncodeSecrets(s)
		if err != nil || string(again) != string(b) || againDigest != d {
			t.Errorf("%q decodes, but encodes to %q, %v", b, again, err)
		}
	})
}
