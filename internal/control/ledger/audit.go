package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// The chain stands on the text of an entry, so AuditEntry may only ever gain
// fields with omitempty or omitzero: old entries must keep their text.

// AuditText is the canonical JSON of an entry: encoding/json in the order of
// the fields, times in UTC, strings made valid UTF-8. Parsing it and asking
// again gives the same bytes.
func AuditText(e sandbox.AuditEntry) ([]byte, error) {
	e.Time = e.Time.UTC().Round(0)
	for _, s := range []*string{&e.Tenant, &e.TokenID, &e.Source, &e.RequestID, &e.Action, (*string)(&e.Sandbox),
		(*string)(&e.Decision), &e.PolicyVersion, (*string)(&e.PrevDigest)} {
		*s = strings.ToValidUTF8(*s, "\uFFFD")
	}
	reasons := make([]sandbox.Reason, 0, len(e.Reasons))
	for _, r := range e.Reasons {
		for _, s := range []*string{&r.Judge, &r.Rule, &r.Message, &r.Field} {
			*s = strings.ToValidUTF8(*s, "\uFFFD")
		}
		reasons = append(reasons, r)
	}
	e.Reasons = reasons
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("writing an audit entry as JSON: %w", err)
	}
	return b, nil
}

// AuditDigest is what the next entry's PrevDigest must be.
func AuditDigest(e sandbox.AuditEntry) (sandbox.Digest, error) {
	b, err := AuditText(e)
	if err != nil {
		return "", err
	}
	return DigestOf(b), nil
}

// DigestOf is the digest of b.
func DigestOf(b []byte) sandbox.Digest {
	sum := sha256.Sum256(b)
	return sandbox.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// VerifyAudit checks that entries, all that there are or a part without gaps,
// follow each other. prev is the entry before the first, nil if that is the
// first of all. An edited, missing or foreign entry is a Conflict which names
// the Seq from which on the chain cannot be trusted.
func VerifyAudit(prev *sandbox.AuditEntry, entries []sandbox.AuditEntry) error {
	var seq int64
	var digest sandbox.Digest
	var err error
	if prev != nil {
		if digest, err = AuditDigest(*prev); err != nil {
			return err
		}
		seq = prev.Seq
	}
	for _, e := range entries {
		if e.Seq != seq+1 || e.PrevDigest != digest {
			return fault.New(fault.Conflict, "the audit chain is broken between entries %d and %d", seq, e.Seq).
				WithHint("entries up to %d were changed, or some are missing; compare with a copy or a checkpoint", e.Seq)
		}
		if digest, err = AuditDigest(e); err != nil {
			return err
		}
		seq = e.Seq
	}
	return nil
}
