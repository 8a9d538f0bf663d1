package seal

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// MaxSecrets bounds encoded secrets. The largest request that package themis
// lets pass stays below it.
const MaxSecrets = 4 << 20

// SaltLen is the length of Secrets.Salt.
const SaltLen = 32

// EncodeSecrets makes the one encoding of secrets, and its digest, which the
// verdict pins. The salt keeps the digest from telling what the secrets are.
func EncodeSecrets(s sandbox.Secrets) ([]byte, sandbox.Digest, error) {
	if err := checkSecrets(s); err != nil {
		return nil, "", fmt.Errorf("encoding secrets: %w", err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, "", errors.New("encoding secrets failed") // err could tell one
	}
	if len(b) > MaxSecrets {
		return nil, "", fault.New(fault.TooLarge, "env, stdin and files are too large: %d bytes of %d when encoded", len(b), MaxSecrets)
	}
	return b, digestOf(b), nil
}

// DecodeSecrets decodes secrets whose digest is want. Errors are of kind
// PolicyDenied and tell nothing of the content.
func DecodeSecrets(b []byte, want sandbox.Digest) (sandbox.Secrets, error) {
	if len(b) > MaxSecrets {
		return sandbox.Secrets{}, refuse("bundle of secrets", errors.New("it is too large"))
	}
	if subtle.ConstantTimeCompare([]byte(digestOf(b)), []byte(want)) != 1 {
		return sandbox.Secrets{}, refuse("bundle of secrets", errors.New("its digest is not the verdict's"))
	}
	var s sandbox.Secrets
	if err := decodeStrict(b, &s); err != nil {
		return sandbox.Secrets{}, refuse("bundle of secrets", err)
	}
	if err := checkSecrets(s); err != nil {
		return sandbox.Secrets{}, refuse("bundle of secrets", err)
	}
	return s, nil
}

// checkSecrets refuses what JSON would not give back as it was.
func checkSecrets(s sandbox.Secrets) error {
	if len(s.Salt) != SaltLen {
		return fmt.Errorf("the salt has %d bytes instead of %d", len(s.Salt), SaltLen)
	}
	for name, value := range s.Env {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return errors.New("a name or value of env is no UTF-8")
		}
	}
	for i, f := range s.Files {
		if !utf8.ValidString(f.Path) {
			return fmt.Errorf("the path of file %d is no UTF-8", i)
		}
	}
	return nil
}
