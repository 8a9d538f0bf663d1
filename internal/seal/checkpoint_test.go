package seal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

func checkpointOf(t testing.TB, k *seal.Key) (seal.Checkpoint, []byte) {
	t.Helper()
	c := seal.Checkpoint{Writer: "up", Count: 12, Head: digest, Time: now}
	line, err := k.SignCheckpoint(c)
	if err != nil {
		t.Fatal(err)
	}
	c.Version = seal.FormatVersion
	return c, line
}

func TestCheckpoint(t *testing.T) {
	k, r := newKey(t)
	c, line := checkpointOf(t, k)
	want := fmt.Sprintf(`{"checkpoint":{"version":1,"writer":"up","count":12,"head":"%s","time":"2026-11-23T12:00:00.123456789Z"},"key_id":"%s","signature":"`, digest, k.ID())
	if !strings.HasPrefix(string(line), want) || bytes.ContainsAny(line, "\n") {
		t.Errorf("the line is\n%s\nwant\n%s…", line, want)
	}
	if got, err := r.OpenCheckpoint(line); err != nil || got != c {
		t.Errorf("opened %+v, %v; want %+v", got, err, c)
	}
	for name, bad := range map[string]seal.Checkpoint{
		"no writer": {Count: 1, Head: digest}, "no entry": {Writer: "up", Head: digest}, "no head": {Writer: "up", Count: 1},
	} {
		if line, err := k.SignCheckpoint(bad); err == nil {
			t.Errorf("%s: signed %s", name, line)
		}
	}
}

// A checkpoint with any byte changed, or signed by another key or as another
// kind, does not open.
func TestCheckpointTamperedAnywhere(t *testing.T) {
	k, r := newKey(t)
	c, line := checkpointOf(t, k)
	for i := range line {
		for _, flip := range []byte{1, 0x20, 0x80} {
			b := bytes.Clone(line)
			b[i] ^= flip
			if got, err := r.OpenCheckpoint(b); !fault.Is(err, fault.PolicyDenied) {
				t.Errorf("byte %d flipped with %#x: %+v, %v", i, flip, got, err)
			}
		}
	}
	for name, b := range map[string][]byte{
		"cut": line[:len(line)-1], "longer": append(bytes.Clone(line), ' '), "nothing": nil, "another key's": func() []byte {
			other, _ := newKey(t)
			_, l := checkpointOf(t, other)
			return l
		}(),
		"count edited": bytes.Replace(line, []byte(`"count":12`), []byte(`"count":13`), 1),
		"parts moved": func() []byte {
			var l struct {
				Checkpoint json.RawMessage `json:"checkpoint"`
				KeyID      string          `json:"key_id"`
				Signature  []byte          `json:"signature"`
			}
			if err := json.Unmarshal(line, &l); err != nil {
				t.Fatal(err)
			}
			l.KeyID, l.Signature = l.KeyID[:14], append([]byte(l.KeyID[14:]), l.Signature...)
			b, err := json.Marshal(l)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}(),
		"a space in it": bytes.Replace(line, []byte(`{"version"`), []byte("{ \"version\""), 1),
	} {
		if got, err := r.OpenCheckpoint(b); !fault.Is(err, fault.PolicyDenied) {
			t.Errorf("%s: %+v, %v; want %+v refused", name, got, err, c)
		}
	}
}

func TestPublicKeyText(t *testing.T) {
	k, _ := newKey(t)
	text, err := k.PublicPEM()
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Split(string(text), "\n")[1]
	for _, form := range []string{string(text), string(text) + "\n", body, body + "\n"} {
		if pub, err := seal.ParsePublicKey([]byte(form)); err != nil || !pub.Equal(k.Public()) {
			t.Errorf("%q: %v, %v", form, pub, err)
		}
	}
	for _, bad := range []string{"", "x", body[1:], string(text) + string(text), strings.ReplaceAll(string(text), "PUBLIC", "PRIVATE"), k.ID()} {
		if _, err := seal.ParsePublicKey([]byte(bad)); !fault.Is(err, fault.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Whatever line opens is the very line that was signed.
func FuzzOpenCheckpoint(f *testing.F) {
	k, r := newKey(f)
	_, good := checkpointOf(f, k)
	f.Add(good)
	f.Add(good[:60])
	f.Add([]byte(`{"checkpoint":{},"key_id":"","signature":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := r.OpenCheckpoint(b); err == nil && !bytes.Equal(b, good) {
			t.Errorf("opened what was never signed: %q", b)
		}
	})
}
