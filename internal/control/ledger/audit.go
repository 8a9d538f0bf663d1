package ledger

import (
	"bytes"
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
		(*string)(&e.Decision), &e.PolicyVersion, &e.Difference, (*string)(&e.PrevDigest)} {
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

// AuditRow is an entry as it is stored.
type AuditRow struct {
	Seq    int64  // by which it is found
	Tenant string // by which it is found
	Text   []byte // the bytes that the chain stands on: AuditText of the entry
}

// AuditHead is where the chain ends. The zero value is that of an empty one.
type AuditHead struct {
	Seq    int64          // of the last entry, and so the number of all
	Digest sandbox.Digest // of the last entry
}

// AuditChain walks along the chain. Its zero value stands before the first
// entry.
type AuditChain struct{ head AuditHead }

// Head is where it stands.
func (c *AuditChain) Head() AuditHead { return c.head }

// Next goes on to row and returns its entry. A row that was edited, or does not
// follow the one before, is a Conflict which says how; the chain then stands
// at that row all the same, so that what is behind it can be looked at.
func (c *AuditChain) Next(row AuditRow) (sandbox.AuditEntry, error) {
	before := c.head
	c.head = AuditHead{row.Seq, DigestOf(row.Text)}
	var e sandbox.AuditEntry
	if err := json.Unmarshal(row.Text, &e); err != nil {
		return e, fault.New(fault.Conflict, "entry %d was edited: it cannot be read", row.Seq)
	}
	switch canonical, err := AuditText(e); {
	case err != nil:
		return e, err
	case !bytes.Equal(canonical, row.Text):
		return e, fault.New(fault.Conflict, "entry %d was edited: it is not in the form in which entries are written", row.Seq)
	case e.Seq != row.Seq || e.Tenant != row.Tenant:
		return e, fault.New(fault.Conflict, "entry %d was edited: it is kept as number %d of tenant %q", e.Seq, row.Seq, row.Tenant)
	case row.Seq <= before.Seq:
		return e, fault.New(fault.Conflict, "entry %d is out of order: it comes after entry %d", row.Seq, before.Seq)
	case row.Seq != before.Seq+1:
		return e, fault.New(fault.Conflict, "entries %d to %d are missing", before.Seq+1, row.Seq-1)
	case e.PrevDigest != before.Digest && before.Seq == 0:
		return e, fault.New(fault.Conflict, "entry %d was edited: it is the first, and names one before it", row.Seq)
	case e.PrevDigest != before.Digest:
		return e, fault.New(fault.Conflict, "entry %d or entry %d was edited, or put in the other's place: they do not belong together", before.Seq, row.Seq)
	}
	return e, nil
}

// VerifyAudit checks that entries, all that there are or a part without gaps,
// follow each other. prev is the entry before the first, nil if that is the
// first of all. The errors are those of AuditChain.Next.
func VerifyAudit(prev *sandbox.AuditEntry, entries []sandbox.AuditEntry) error {
	var c AuditChain
	if prev != nil {
		d, err := AuditDigest(*prev)
		if err != nil {
			return err
		}
		c.head = AuditHead{prev.Seq, d}
	}
	for _, e := range entries {
		text, err := AuditText(e)
		if err != nil {
			return err
		}
		if _, err := c.Next(AuditRow{e.Seq, e.Tenant, text}); err != nil {
			return err
		}
	}
	return nil
}
