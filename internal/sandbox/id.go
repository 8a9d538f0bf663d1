package sandbox

import "strings"

// ID names one sandbox for ever: "sb-" and a lower-case ULID (26 characters of
// Crockford's base 32, time first), so IDs sort by age and are valid host names
// (RFC 1123).
type ID string

const idPrefix = "sb-"

// ulidLen is the length of a ULID's text form.
const ulidLen = 26

// MakeID makes the ID of a ULID in its text form.
func MakeID(ulid string) ID { return ID(idPrefix + strings.ToLower(ulid)) }

// Valid reports whether id has the form of an ID. Paths are built from IDs, so
// whatever comes from outside is checked with it first.
func (id ID) Valid() bool {
	s, ok := strings.CutPrefix(string(id), idPrefix)
	if !ok || len(s) != ulidLen {
		return false
	}
	for _, c := range s {
		if !strings.ContainsRune("0123456789abcdefghjkmnpqrstvwxyz", c) {
			return false
		}
	}
	return true
}

// Digest is "sha256:" and 64 lower-case hexadecimal digits.
type Digest string

// Valid reports whether d has the form of a Digest.
func (d Digest) Valid() bool {
	s, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(s) != 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// Hex is the digest without its algorithm.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }
