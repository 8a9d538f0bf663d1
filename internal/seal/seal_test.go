package seal_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

const (
	firstID  = sandbox.ID("sb-01arz3ndektsv4rrffq69g5fav")
	secondID = sandbox.ID("sb-01arz3ndektsv4rrffq69g5faw")
)

var (
	now    = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)
	digest = sandbox.Digest("sha256:" + strings.Repeat("ab", 32))
)

func newKey(t testing.TB) (*seal.Key, *seal.Ring) {
	t.Helper()
	k, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	r, err := seal.NewRing(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k, r
}

func verdictOf(id sandbox.ID) seal.Verdict {
	return seal.Verdict{
		Sandbox: id, Tenant: "local", PolicyVersion: string(digest), Issued: now, Expires: now.Add(time.Minute),
		Request: sandbox.Resolved{
			Template: "base", TemplateDigest: digest, GuestDigest: digest, SecretsDigest: digest,
			Command: []string{"sh", "-c", "echo <&>\u2028 \x01"}, Labels: map[string]string{"b": "2", "a": "1"},
			MaxDuration: time.Minute,
		},
	}
}

func orderOf(v sandbox.Digest, id sandbox.ID) seal.Order {
	return seal.Order{
		Kind: seal.OrderAssign, Verdict: v, Issued: now, Expires: now.Add(time.Minute),
		Assignment: sandbox.Assignment{Sandbox: id, Attempt: 1, Node: "n1", Epoch: 3},
	}
}

func signed(t testing.TB, k *seal.Key, v seal.Verdict) ([]byte, sandbox.Digest) {
	t.Helper()
	b, d, err := k.SignVerdict(v)
	if err != nil {
		t.Fatal(err)
	}
	return b, d
}

func ordered(t testing.TB, k *seal.Key, o seal.Order) []byte {
	t.Helper()
	b, err := k.SignOrder(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantDenied(t *testing.T, err error, part string) {
	t.Helper()
	if !fault.Is(err, fault.PolicyDenied) || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v; want policy_denied with %q", err, part)
	}
}

func TestVerdictTravels(t *testing.T) {
	k, r := newKey(t)
	want := verdictOf(firstID)
	b, d := signed(t, k, want)
	got, gotDigest, err := r.OpenVerdict(b, now)
	if err != nil {
		t.Fatal(err)
	}
	want.Version, want.KeyID = seal.FormatVersion, k.ID()
	if !reflect.DeepEqual(got, want) || gotDigest != d || !d.Valid() {
		t.Errorf("got %+v (%s), want %+v (%s)", got, gotDigest, want, d)
	}
	again, againDigest := signed(t, k, verdictOf(firstID))
	if !bytes.Equal(again, b) || againDigest != d {
		t.Error("signing the same verdict again made other bytes")
	}
}

func TestVerdictTimes(t *testing.T) {
	k, r := newKey(t)
	b, _ := signed(t, k, verdictOf(firstID))
	for _, c := range []struct {
		now  time.Time
		want string // "" holds
	}{
		{now, ""},
		{now.Add(time.Minute - 1), ""},
		{now.Add(time.Minute), "expired"},
		{now.Add(time.Hour), "expired"},
		{now.Add(-seal.ClockSkew), ""},
		{now.Add(-seal.ClockSkew - 1), "future"},
	} {
		_, _, err := r.OpenVerdict(b, c.now)
		if c.want == "" && err != nil {
			t.Errorf("at %v: %v", c.now, err)
		}
		if c.want != "" {
			wantDenied(t, err, c.want)
		}
	}
}

func TestSignRefusesWhatWouldNotHold(t *testing.T) {
	k, _ := newKey(t)
	for name, spoil := range map[string]func(*seal.Verdict){
		"no sandbox":   func(v *seal.Verdict) { v.Sandbox = "sb-x" },
		"no tenant":    func(v *seal.Verdict) { v.Tenant = "" },
		"no policy":    func(v *seal.Verdict) { v.PolicyVersion = "" },
		"no time":      func(v *seal.Verdict) { v.Expires = v.Issued },
		"no template":  func(v *seal.Verdict) { v.Request.TemplateDigest = "" },
		"no guest":     func(v *seal.Verdict) { v.Request.GuestDigest = "sha256:" },
		"no secrets":   func(v *seal.Verdict) { v.Request.SecretsDigest = "" },
		"no command":   func(v *seal.Verdict) { v.Request.Command = nil },
		"far too much": func(v *seal.Verdict) { v.Request.Command = []string{strings.Repeat("x", seal.MaxEnvelope)} },
	} {
		v := verdictOf(firstID)
		spoil(&v)
		if _, _, err := k.SignVerdict(v); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	for name, spoil := range map[string]func(*seal.Order){
		"no kind":       func(o *seal.Order) { o.Kind = "" },
		"no verdict":    func(o *seal.Order) { o.Verdict = "" },
		"no sandbox":    func(o *seal.Order) { o.Assignment.Sandbox = "" },
		"no attempt":    func(o *seal.Order) { o.Assignment.Attempt = 0 },
		"no epoch":      func(o *seal.Order) { o.Assignment.Epoch = 0 },
		"no node":       func(o *seal.Order) { o.Assignment.Node = "" },
		"assign, cause": func(o *seal.Order) { o.Cause = sandbox.Killed },
		"assign, grace": func(o *seal.Order) { o.Grace = 1 },
		"kill, no cause": func(o *seal.Order) {
			o.Kind = seal.OrderKill
		},
		"kill, odd cause": func(o *seal.Order) { o.Kind, o.Cause = seal.OrderKill, "boredom" },
		"kill, long": func(o *seal.Order) {
			o.Kind, o.Cause, o.Grace = seal.OrderKill, sandbox.Killed, seal.MaxGrace+1
		},
		"kill, negative": func(o *seal.Order) { o.Kind, o.Cause, o.Grace = seal.OrderKill, sandbox.Killed, -1 },
	} {
		o := orderOf(digest, firstID)
		spoil(&o)
		if _, err := k.SignOrder(o); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// Every bit of verdict, order and secrets counts.
func TestTamperedAnywhere(t *testing.T) {
	k, r := newKey(t)
	verdict, _ := signed(t, k, verdictOf(firstID))
	order := ordered(t, k, orderOf(digest, firstID))
	secrets, d, err := seal.EncodeSecrets(someSecrets())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		bytes []byte
		open  func([]byte) error
	}{
		"verdict": {verdict, func(b []byte) error { _, _, err := r.OpenVerdict(b, now); return err }},
		"order":   {order, func(b []byte) error { _, err := r.OpenOrder(b, now); return err }},
		"secrets": {secrets, func(b []byte) error { _, err := seal.DecodeSecrets(b, d); return err }},
	} {
		if err := c.open(c.bytes); err != nil {
			t.Fatalf("%s untouched: %v", name, err)
		}
		for i := range c.bytes {
			b := bytes.Clone(c.bytes)
			b[i] ^= 1 << (i % 8)
			if err := c.open(b); !fault.Is(err, fault.PolicyDenied) {
				t.Errorf("%s with byte %d changed: %v", name, i, err)
			}
			if err := c.open(c.bytes[:i]); !fault.Is(err, fault.PolicyDenied) {
				t.Errorf("%s cut at %d: %v", name, i, err)
			}
		}
		if err := c.open(append(bytes.Clone(c.bytes), ' ')); !fault.Is(err, fault.PolicyDenied) {
			t.Errorf("%s with a byte more: %v", name, err)
		}
	}
}

func TestWrongKeyAndKind(t *testing.T) {
	k, r := newKey(t)
	other, otherRing := newKey(t)
	verdict, _ := signed(t, k, verdictOf(firstID))
	order := ordered(t, k, orderOf(digest, firstID))

	_, _, err := otherRing.OpenVerdict(verdict, now)
	wantDenied(t, err, "not known here")
	_, err = r.OpenOrder(verdict, now)
	wantDenied(t, err, "signature does not hold")
	_, _, err = r.OpenVerdict(order, now)
	wantDenied(t, err, "signature does not hold")

	// The same bytes under another key's name.
	forged := bytes.Replace(verdict, []byte(k.ID()), []byte(other.ID()), 1)
	both, err := seal.NewRing(k.Public(), other.Public())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = both.OpenVerdict(forged, now)
	wantDenied(t, err, "signature does not hold")
	if _, _, err := both.OpenVerdict(verdict, now); err != nil {
		t.Errorf("a ring of two keys: %v", err)
	}
}

func TestReplay(t *testing.T) {
	k, r := newKey(t)
	verdict, d := signed(t, k, verdictOf(firstID))
	otherVerdict, otherDigest := signed(t, k, verdictOf(secondID))
	here := seal.Here{Node: "n1", Epoch: 3, Now: now}
	assign := ordered(t, k, orderOf(d, firstID))
	kill := orderOf(d, firstID)
	kill.Kind, kill.Cause, kill.Grace = seal.OrderKill, sandbox.Killed, time.Second
	killBytes := ordered(t, k, kill)

	got, err := r.OpenAssign(assign, verdict, here)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != d || got.Verdict.Sandbox != firstID || got.Order.Assignment.Attempt != 1 {
		t.Errorf("opened %+v", got)
	}
	if o, err := r.OpenKill(killBytes, here); err != nil || o.Cause != sandbox.Killed || o.Grace != time.Second {
		t.Errorf("kill: %+v, %v", o, err)
	}

	open := func(order, verdict []byte, here seal.Here) error {
		_, err := r.OpenAssign(order, verdict, here)
		return err
	}
	wantDenied(t, open(assign, verdict, seal.Here{Node: "n2", Epoch: 3, Now: now}), "another node")
	for _, epoch := range []int64{2, 4} {
		if err := open(assign, verdict, seal.Here{Node: "n1", Epoch: epoch, Now: now}); !fault.Is(err, fault.Conflict) {
			t.Errorf("in epoch %d: %v", epoch, err)
		}
		if _, err := r.OpenKill(killBytes, seal.Here{Node: "n1", Epoch: epoch, Now: now}); !fault.Is(err, fault.Conflict) {
			t.Errorf("kill in epoch %d: %v", epoch, err)
		}
	}
	wantDenied(t, open(assign, verdict, seal.Here{Node: "n1", Epoch: 3, Now: now.Add(time.Minute)}), "expired")
	wantDenied(t, open(assign, otherVerdict, here), "another verdict")
	wantDenied(t, open(ordered(t, k, orderOf(otherDigest, firstID)), otherVerdict, here), "another sandbox")
	wantDenied(t, open(killBytes, verdict, here), "no order to run")

	_, err = r.OpenKill(assign, here)
	wantDenied(t, err, "no order to end")
	_, err = r.OpenKill(killBytes, seal.Here{Node: "n2", Epoch: 3, Now: now})
	wantDenied(t, err, "another node")

	// An order that outlives its verdict does not revive it.
	long := orderOf(d, firstID)
	long.Expires = now.Add(time.Hour)
	wantDenied(t, open(ordered(t, k, long), verdict, seal.Here{Node: "n1", Epoch: 3, Now: now.Add(2 * time.Minute)}), "expired")
}

func TestOrdersDiffer(t *testing.T) {
	k, _ := newKey(t)
	if bytes.Equal(ordered(t, k, orderOf(digest, firstID)), ordered(t, k, orderOf(digest, firstID))) {
		t.Error("two orders are the same bytes: the nonce is missing")
	}
}

func TestRing(t *testing.T) {
	k, _ := newKey(t)
	if _, err := seal.NewRing[[]byte](); err == nil {
		t.Error("a ring of no keys was made")
	}
	if _, err := seal.NewRing(k.Public()[:31]); err == nil {
		t.Error("a ring of a short key was made")
	}
	if _, err := seal.NewRing([]byte(k.Public()), []byte(k.Public())); err != nil {
		t.Errorf("the same key twice: %v", err)
	}
}

func someSecrets() sandbox.Secrets {
	return sandbox.Secrets{
		Salt: bytes.Repeat([]byte{7}, seal.SaltLen), Env: map[string]string{"K": "v<>"}, Stdin: []byte{0, 255},
		Files: []sandbox.File{{Path: "/work/a", Mode: 0o644, Data: []byte("x")}, {Path: "/work/b", Mode: 0o600}},
	}
}

func TestSecretsTravel(t *testing.T) {
	want := someSecrets()
	b, d, err := seal.EncodeSecrets(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := seal.DecodeSecrets(b, d)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	_, err = seal.DecodeSecrets(b, digest)
	wantDenied(t, err, "digest")
	for name, s := range map[string]sandbox.Secrets{
		"no salt":   {},
		"odd value": {Salt: want.Salt, Env: map[string]string{"K": "\xff"}},
		"odd path":  {Salt: want.Salt, Files: []sandbox.File{{Path: "/\xff"}}},
		"too large": {Salt: want.Salt, Stdin: make([]byte, seal.MaxSecrets)},
	} {
		if _, _, err := seal.EncodeSecrets(s); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestBox(t *testing.T) {
	box, other := seal.NewBox(), seal.NewBox()
	plain := []byte("marker-of-a-secret")
	sealed, err := box.Seal(firstID, plain)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plain) {
		t.Error("the secret is readable")
	}
	if got, err := box.Open(firstID, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("opened %q, %v", got, err)
	}
	if _, err := box.Open(secondID, sealed); err == nil {
		t.Error("opened for another sandbox")
	}
	if _, err := other.Open(firstID, sealed); err == nil {
		t.Error("opened with another key")
	}
	for i := range sealed {
		b := bytes.Clone(sealed)
		b[i] ^= 1
		if _, err := box.Open(firstID, b); err == nil {
			t.Errorf("opened with byte %d changed", i)
		}
		if _, err := box.Open(firstID, sealed[:i]); err == nil {
			t.Errorf("opened cut at %d", i)
		}
	}
	if again, err := box.Seal(firstID, plain); err != nil || bytes.Equal(again, sealed) {
		t.Errorf("sealed again to the same bytes, %v", err)
	}
	if _, err := box.Seal("../x", plain); err == nil {
		t.Error("sealed for what is no ID")
	}
}
