package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

const (
	keyIDLen      = 16 // hexadecimal digits
	pemType       = "PRIVATE KEY"
	publicPEMType = "PUBLIC KEY"
)

// KeyID is the short name of a public key: the first 16 hexadecimal digits of
// its SHA-256.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:])[:keyIDLen]
}

// Key signs. It may be used by many at once.
type Key struct {
	private ed25519.PrivateKey
	id      string
}

// NewKey makes a key that lives only in memory.
func NewKey() (*Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return keyOf(private), nil
}

func keyOf(private ed25519.PrivateKey) *Key {
	return &Key{private: private, id: KeyID(private.Public().(ed25519.PublicKey))}
}

// LoadOrCreateKey reads the signing key (PKCS #8, PEM) from the file at path,
// or makes one there at first use; the file is guarded as ReadOrCreateFile
// says.
func LoadOrCreateKey(path string) (*Key, error) {
	b, err := ReadOrCreateFile(path, newKeyPEM)
	if err != nil {
		return nil, fmt.Errorf("loading the signing key: %w", err)
	}
	private, err := parseKeyPEM(b)
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "%s holds no Ed25519 signing key", path).
			WithHint("Restore it from a backup, or remove it so that a new one is made: then what was signed before no longer holds.")
	}
	return keyOf(private), nil
}

func newKeyPEM() ([]byte, error) {
	k, err := NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

func parseKeyPEM(b []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, errors.New("not one PEM block of a private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("not a PKCS #8 private key") // err could tell bytes of it
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T", parsed)
	}
	return private, nil
}

// ID is the key's short name, as KeyID says.
func (k *Key) ID() string { return k.id }

// Public is what nodes check with.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// PublicPEM is the public key for people to keep: PKIX in PEM.
func (k *Key) PublicPEM() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: publicPEMType, Bytes: der}), nil
}

// ParsePublicKey reads a public key as PublicPEM writes it, or that PEM's one
// line of base64 by itself.
func ParsePublicKey(text []byte) (ed25519.PublicKey, error) {
	refuse := fault.New(fault.InvalidArgument, "that is no Ed25519 public key").
		WithHint("Give the PEM that up keeps beside its signing key (up/signing.pub in the state folder), or the line of base64 in it.")
	der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if block, rest := pem.Decode(text); block != nil {
		if block.Type != publicPEMType || len(bytes.TrimSpace(rest)) != 0 {
			return nil, refuse
		}
		der, err = block.Bytes, nil
	}
	if err != nil {
		return nil, refuse
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, refuse
	}
	pub, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return nil, refuse
	}
	return pub, nil
}

// Ring is the set of public keys that are believed. It is never changed after
// it was made, and may be used by many at once.
type Ring struct {
	keys map[string]ed25519.PublicKey // by KeyID
}

// NewRing makes a ring of raw Ed25519 public keys, at least one.
func NewRing[K ~[]byte](keys ...K) (*Ring, error) {
	if len(keys) == 0 {
		return nil, fault.New(fault.InvalidArgument, "a ring needs at least one public key")
	}
	r := &Ring{keys: make(map[string]ed25519.PublicKey, len(keys))}
	for i, k := range keys {
		if len(k) != ed25519.PublicKeySize {
			return nil, fault.New(fault.InvalidArgument, "public key %d has %d bytes instead of %d", i, len(k), ed25519.PublicKeySize)
		}
		pub := ed25519.PublicKey(append([]byte(nil), k...))
		if other, ok := r.keys[KeyID(pub)]; ok && !other.Equal(pub) {
			return nil, fault.New(fault.InvalidArgument, "two public keys have the ID %s", KeyID(pub))
		}
		r.keys[KeyID(pub)] = pub
	}
	return r, nil
}
