package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	boxKeyLen  = 32
	boxPrefix  = "tartarus-box-v1:" // of the key file's one line
	boxVersion = 1                  // first byte of what Seal makes
	boxInfo    = "tartarus secrets at rest v1 "
)

// Box keeps secrets at rest: AES-256-GCM, with a key of its own for each
// sandbox that comes from the box's key and the sandbox's ID. It may be used
// by many at once.
type Box struct {
	key []byte
}

// LoadOrCreateBox reads the box's key from the file at path, or makes one
// there at first use; the file is guarded as ReadOrCreateFile says.
func LoadOrCreateBox(path string) (*Box, error) {
	b, err := ReadOrCreateFile(path, func() ([]byte, error) {
		var key [boxKeyLen]byte
		rand.Read(key[:]) // never fails
		return []byte(boxPrefix + hex.EncodeToString(key[:]) + "\n"), nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading the key for secrets at rest: %w", err)
	}
	digits, ok := strings.CutPrefix(strings.TrimSuffix(string(b), "\n"), boxPrefix)
	key, err := hex.DecodeString(digits)
	if !ok || err != nil || len(key) != boxKeyLen {
		return nil, fault.New(fault.Conflict, "%s holds no key for secrets at rest", path).
			WithHint("Restore it from a backup, or remove it so that a new one is made: then queued sandboxes cannot start any more.")
	}
	return &Box{key: key}, nil
}

// NewBox makes a box whose key lives only in memory.
func NewBox() *Box {
	key := make([]byte, boxKeyLen)
	rand.Read(key) // never fails
	return &Box{key: key}
}

// Seal encrypts b for the sandbox id; only Open with the same id returns it.
func (x *Box) Seal(id sandbox.ID, b []byte) ([]byte, error) {
	aead, err := x.aead(id)
	if err != nil {
		return nil, fmt.Errorf("sealing secrets of %q: %w", id, err)
	}
	return aead.Seal([]byte{boxVersion}, nil, b, []byte{boxVersion}), nil
}

// Open decrypts what Seal made for the sandbox id.
func (x *Box) Open(id sandbox.ID, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != boxVersion {
		return nil, fmt.Errorf("opening secrets of %q: not sealed in a version known here", id)
	}
	aead, err := x.aead(id)
	if err != nil {
		return nil, fmt.Errorf("opening secrets of %q: %w", id, err)
	}
	b, err := aead.Open(nil, nil, sealed[1:], sealed[:1])
	if err != nil {
		return nil, fmt.Errorf("opening secrets of %q: damaged, or sealed with another key or for another sandbox", id)
	}
	return b, nil
}

func (x *Box) aead(id sandbox.ID) (cipher.AEAD, error) {
	if !id.Valid() {
		return nil, errors.New("no ID of a sandbox")
	}
	key, err := hkdf.Expand(sha256.New, x.key, boxInfo+string(id), boxKeyLen)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
