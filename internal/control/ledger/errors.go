package ledger

import (
	"slices"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// ErrKeyOfAnother is Admit's answer to an idempotency key whose request
// differs.
func ErrKeyOfAnother(key string) error {
	return fault.New(fault.Conflict, "idempotency key %q was used for another request", key).
		WithHint("send the same body again, or use another key")
}

// ErrKeyOfRemoved is Admit's answer to an idempotency key whose record is gone.
func ErrKeyOfRemoved(key string) error {
	return fault.New(fault.Conflict, "the sandbox that idempotency key %q made has ended and was removed", key).
		WithHint("use another key")
}

// ErrTaken is the answer to a new record with an ID that is there.
func ErrTaken(id sandbox.ID) error {
	return fault.New(fault.Conflict, "there is a sandbox %q already", id)
}

// ErrNoSandbox is the answer to an ID that is not there.
func ErrNoSandbox(id sandbox.ID) error {
	return fault.New(fault.NotFound, "there is no sandbox %q", id)
}

// ErrEnded is Admitted's answer to a sandbox that is not live: what it was
// admitted with is erased.
func ErrEnded(id sandbox.ID) error {
	return fault.New(fault.Conflict, "sandbox %q has ended", id)
}

// ErrNoNode is Place's answer to a node that never joined.
func ErrNoNode(node string) error {
	return fault.New(fault.Conflict, "there is no node %q", node)
}

// ErrNodeID is Join's answer to a node without an ID.
func ErrNodeID() error {
	return fault.Invalid("id", "", "a node needs an ID")
}

// ErrNoToken is the answer to a token that is not there.
func ErrNoToken() error {
	return fault.New(fault.NotFound, "there is no such token")
}

// ErrClosed is the answer of a ledger after Close.
func ErrClosed() error {
	return fault.New(fault.Unavailable, "the ledger is closed")
}

// CheckToken guards against a token that could not be told apart.
func CheckToken(t Token) error {
	if t.ID == "" || t.Tenant == "" {
		return fault.Invalid("id", "", "a token needs an ID and a tenant")
	}
	return nil
}

// CheckClaim guards against a claim that would be nobody's.
func CheckClaim(owner string, lease time.Duration) error {
	if owner == "" || lease <= 0 {
		return fault.Invalid("owner", "", "a claim needs an owner and a lease")
	}
	return nil
}

// SameToken is PutToken's answer where have, which is there, shares an ID or
// a hash with t: nil if they are the same.
func SameToken(have, t Token) error {
	if have.ID == t.ID && have.Hash == t.Hash && have.Tenant == t.Tenant && slices.Equal(have.Scopes, t.Scopes) &&
		have.CreatedAt.Equal(t.CreatedAt) && have.ExpiresAt.Equal(t.ExpiresAt) && have.RevokedAt.Equal(t.RevokedAt) {
		return nil
	}
	return fault.New(fault.Conflict, "there is another token with the ID %q or the same value", t.ID)
}
