package seal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"testing"
	"time"
)

// Even what is signed is parsed strictly: it opens only in canonical form.
func FuzzSignedPayload(f *testing.F) {
	k, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	r, err := NewRing(k.Public())
	if err != nil {
		f.Fatal(err)
	}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"version":1,"kind":"assign"} `))
	f.Add([]byte(`{"version":1,"key_id":"` + k.ID() + `","kind":"kill","verdict":"sha256:abababababababababababababababababababababababababababababababab",` +
		`"assignment":{"sandbox":"sb-01arz3ndektsv4rrffq69g5fav","attempt":1,"node":"n1","epoch":1},"cause":"killed",` +
		`"issued":"2026-11-23T12:00:00Z","expires":"2026-11-23T13:00:00Z","nonce":"00112233445566778899aabbccddeeff"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, d := range []domain{verdictDomain, orderDomain} {
			b := append([]byte(magic+k.id), ed25519.Sign(k.private, d.signed(k.id, payload))...)
			b = append(b, payload...)
			var value any
			if d == orderDomain {
				value, err = r.OpenOrder(b, now)
			} else {
				value, _, err = r.OpenVerdict(b, now)
			}
			if err != nil {
				continue
			}
			if again, err := json.Marshal(value); err != nil || !bytes.Equal(again, payload) {
				t.Errorf("%q opens, but encodes to %q, %v", payload, again, err)
			}
		}
	})
}

func TestSignedButNotCanonical(t *testing.T) {
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRing(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	good := `{"version":1,"key_id":"` + k.ID() + `","kind":"kill","verdict":"sha256:abababababababababababababababababababababababababababababababab",` +
		`"assignment":{"sandbox":"sb-01arz3ndektsv4rrffq69g5fav","attempt":1,"node":"n1","epoch":1},"cause":"killed",` +
		`"issued":"2026-11-23T12:00:00Z","expires":"2026-11-23T13:00:00Z","nonce":"00112233445566778899aabbccddeeff"}`
	open := func(payload string) error {
		b := append([]byte(magic+k.id), ed25519.Sign(k.private, orderDomain.signed(k.id, []byte(payload)))...)
		_, err := r.OpenOrder(append(b, payload...), now)
		return err
	}
	if err := open(good); err != nil {
		t.Fatalf("the canonical form: %v", err)
	}
	for name, payload := range map[string]string{
		"space":        " " + good,
		"more":         good + "{}",
		"repeated key": `{"version":1,` + good[1:],
		"unknown key":  `{"extra":1,` + good[1:],
		"other case":   `{"VERSION":1` + good[len(`{"version":1`):],
		"version 2":    `{"version":2` + good[len(`{"version":1`):],
	} {
		if open(payload) == nil {
			t.Errorf("%s: opened", name)
		}
	}
}
