package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// MaxEnvelope bounds a verdict or an order on its way. The largest request that
// package themis lets pass stays below it.
const MaxEnvelope = 2 << 20

const (
	magic     = "TSL1"
	headerLen = len(magic) + keyIDLen + ed25519.SignatureSize
)

// domain names a kind of payload in its signature.
type domain string

const (
	verdictDomain    domain = "tartarus verdict v1\n"
	orderDomain      domain = "tartarus order v1\n"
	checkpointDomain domain = "tartarus audit checkpoint v1\n"
)

// signed is what a signature of the domain is over.
func (d domain) signed(keyID string, payload []byte) []byte {
	b := make([]byte, 0, len(d)+len(keyID)+len(payload))
	b = append(b, d...)
	b = append(b, keyID...)
	return append(b, payload...)
}

func (k *Key) seal(d domain, value any) ([]byte, error) {
	payload, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	if headerLen+len(payload) > MaxEnvelope {
		return nil, fault.New(fault.TooLarge, "the request is too large to be signed: %d bytes of %d", headerLen+len(payload), MaxEnvelope)
	}
	b := make([]byte, 0, headerLen+len(payload))
	b = append(b, magic...)
	b = append(b, k.id...)
	b = append(b, ed25519.Sign(k.private, d.signed(k.id, payload))...)
	return append(b, payload...), nil
}

// open returns the key's ID and the payload of an envelope whose signature
// holds. The payload is part of b.
func (r *Ring) open(d domain, b []byte) (keyID string, payload []byte, err error) {
	if len(b) < headerLen || len(b) > MaxEnvelope || string(b[:len(magic)]) != magic {
		return "", nil, errors.New("it is no envelope of a version known here")
	}
	b = b[len(magic):]
	keyID, b = string(b[:keyIDLen]), b[keyIDLen:]
	sig, payload := b[:ed25519.SignatureSize], b[ed25519.SignatureSize:]
	pub, ok := r.keys[keyID]
	if !ok {
		return "", nil, fmt.Errorf("its key %q is not known here", keyID)
	}
	if !ed25519.Verify(pub, d.signed(keyID, payload), sig) {
		return "", nil, errors.New("its signature does not hold")
	}
	return keyID, payload, nil
}

// decodeStrict decodes JSON that must be exactly what the value encodes to: no
// unknown or repeated keys, no other spelling, nothing after it.
func decodeStrict(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return errors.New("its content is not what was expected") // err could tell a secret
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows its content")
	}
	again, err := json.Marshal(into)
	if err != nil || !bytes.Equal(again, b) {
		return errors.New("its content is not in canonical form")
	}
	return nil
}

// digestOf is the name of bytes.
func digestOf(b []byte) sandbox.Digest {
	sum := sha256.Sum256(b)
	return sandbox.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// refuse is the error of something signed that does not hold.
func refuse(what string, why error) error {
	return fault.New(fault.PolicyDenied, "the %s does not hold: %v", what, why).
		WithHint("Whoever sent it is not this control plane, or its clock or key differs; see the node's and the server's keys and times.")
}
