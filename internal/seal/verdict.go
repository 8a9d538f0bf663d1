package seal

import (
	"errors"
	"fmt"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// FormatVersion is the version of verdicts and orders that are made here.
const FormatVersion = 1

// ClockSkew is how far the clocks of control plane and nodes may differ:
// something issued further in the future than that does not hold.
const ClockSkew = time.Minute

// Verdict is the leave to run one resolved request. A node believes nothing
// else about what it runs.
type Verdict struct {
	Version       int              `json:"version"` // set by SignVerdict
	KeyID         string           `json:"key_id"`  // set by SignVerdict
	Sandbox       sandbox.ID       `json:"sandbox"`
	Tenant        string           `json:"tenant"`
	PolicyVersion string           `json:"policy_version"`
	Issued        time.Time        `json:"issued"`
	Expires       time.Time        `json:"expires"` // no start from then on
	Request       sandbox.Resolved `json:"request"`
}

// SignVerdict makes the bytes that travel, and their digest. Signing the same
// verdict again makes the same bytes.
func (k *Key) SignVerdict(v Verdict) ([]byte, sandbox.Digest, error) {
	v.Version, v.KeyID = FormatVersion, k.id
	v.Issued, v.Expires = plainTime(v.Issued), plainTime(v.Expires)
	if err := v.check(k.id); err != nil {
		return nil, "", fmt.Errorf("signing the verdict of %q: %w", v.Sandbox, err)
	}
	b, err := k.seal(verdictDomain, v)
	if err != nil {
		return nil, "", fmt.Errorf("signing the verdict of %q: %w", v.Sandbox, err)
	}
	return b, digestOf(b), nil
}

// OpenVerdict checks the bytes that travelled and returns what they say, and
// their digest. Errors are of kind PolicyDenied.
func (r *Ring) OpenVerdict(b []byte, now time.Time) (Verdict, sandbox.Digest, error) {
	keyID, payload, err := r.open(verdictDomain, b)
	if err != nil {
		return Verdict{}, "", refuse("verdict", err)
	}
	var v Verdict
	if err := decodeStrict(payload, &v); err != nil {
		return Verdict{}, "", refuse("verdict", err)
	}
	if err := errors.Join(v.check(keyID), checkTimes(v.Issued, v.Expires, now)); err != nil {
		return Verdict{}, "", refuse("verdict", err)
	}
	return v, digestOf(b), nil
}

func (v *Verdict) check(keyID string) error {
	switch {
	case v.Version != FormatVersion:
		return fmt.Errorf("its version %d is not %d", v.Version, FormatVersion)
	case v.KeyID != keyID:
		return errors.New("it names another key than it is signed with")
	case !v.Sandbox.Valid():
		return errors.New("it names no sandbox")
	case v.Tenant == "" || v.PolicyVersion == "":
		return errors.New("it names no tenant or no policy")
	case !v.Expires.After(v.Issued):
		return errors.New("it expires before it begins")
	case !v.Request.TemplateDigest.Valid() || !v.Request.GuestDigest.Valid() || !v.Request.SecretsDigest.Valid():
		return errors.New("it does not pin template, guest bundle and secrets")
	case len(v.Request.Command) == 0:
		return errors.New("it has no command")
	}
	return nil
}

// checkTimes judges a span against the clock.
func checkTimes(issued, expires, now time.Time) error {
	if !now.Before(expires) {
		return fmt.Errorf("it expired at %s", expires.Format(time.RFC3339))
	}
	if issued.After(now.Add(ClockSkew)) {
		return fmt.Errorf("it was issued in the future, at %s", issued.Format(time.RFC3339))
	}
	return nil
}

// plainTime is t as JSON gives it back: UTC, without the monotonic clock.
func plainTime(t time.Time) time.Time { return t.UTC().Round(0) }
