package cerberus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

// localTenant is the tenant of those who own the machine: of the first admin
// token, and of the Unix socket's peers.
const localTenant = "local"

// Spec is a token to be made.
type Spec struct {
	Tenant    string // the creator's own if empty
	Scopes    []sandbox.Scope
	ExpiresAt time.Time // zero: never
}

// Create makes a token and returns it, the only time that anybody sees it.
// Its scopes are never wider than its creator's, and only an admin makes one
// for another tenant. One that is made by a token that expires expires no
// later, unless an admin made it.
func (g *Guard) Create(ctx context.Context, creator sandbox.Principal, spec Spec) (string, ledger.Token, error) {
	now := g.clock()
	if spec.Tenant == "" {
		spec.Tenant = creator.Tenant
	}
	expires, err := g.judgeSpec(ctx, creator, spec, now)
	if err != nil {
		return "", ledger.Token{}, err
	}
	token := newToken()
	t := tokenOf(token, spec.Tenant, spec.Scopes)
	t.CreatedAt, t.ExpiresAt = now.UTC().Round(0), expires
	if err := g.tokens.PutToken(ctx, t); err != nil {
		return "", ledger.Token{}, fmt.Errorf("keeping token %s: %w", t.ID, err)
	}
	return token, t, nil
}

// tokenOf is what is kept of a token. Its ID comes from its hash: enough of
// it to tell tokens apart, too little to find it by.
func tokenOf(token, tenant string, scopes []sandbox.Scope) ledger.Token {
	hash := sha256.Sum256([]byte(token))
	scopes = slices.Clone(scopes)
	slices.Sort(scopes)
	id := sha256.Sum256(hash[:])
	return ledger.Token{ID: "tok-" + hex.EncodeToString(id[:8]), Hash: hash, Tenant: tenant, Scopes: slices.Compact(scopes)}
}

// judgeSpec refuses what the creator may not make, and says when it expires.
func (g *Guard) judgeSpec(ctx context.Context, creator sandbox.Principal, spec Spec, now time.Time) (time.Time, error) {
	var none time.Time
	if len(spec.Scopes) == 0 {
		return none, fault.Invalid("scopes", "Give run, read or admin, or several of them.", "the token would have no scopes")
	}
	for i, s := range spec.Scopes {
		if s != sandbox.ScopeRun && s != sandbox.ScopeRead && s != sandbox.ScopeAdmin {
			return none, fault.Invalid(fmt.Sprintf("scopes[%d]", i), "Give run, read or admin.", "the scope is not known")
		}
		if !creator.Has(s) {
			return none, fault.New(fault.PolicyDenied, "the token would have scope %s, which its creator does not have", s).
				WithHint("Ask for scopes that you have, or ask an operator.")
		}
	}
	admin := creator.Has(sandbox.ScopeAdmin)
	if spec.Tenant != creator.Tenant && !admin {
		return none, fault.New(fault.PolicyDenied, "the token would be another tenant's").
			WithHint("Leave the tenant out, or ask an operator.")
	}
	if spec.Tenant == "" || !g.known(spec.Tenant) {
		return none, fault.Invalid("tenant", "Name a tenant of the policy; `tartarus policy show` prints it.", "the policy does not name the tenant")
	}
	expires := spec.ExpiresAt
	if !expires.IsZero() {
		if expires = expires.UTC().Round(0); !expires.After(now) {
			return none, fault.Invalid("expires_at", "Give a time to come, or leave it out for never.", "the token would have expired already")
		}
	}
	if admin {
		return expires, nil
	}
	own, err := g.own(ctx, creator)
	if err != nil {
		return none, err
	}
	if !own.ExpiresAt.IsZero() && (expires.IsZero() || expires.After(own.ExpiresAt)) {
		expires = own.ExpiresAt
	}
	return expires, nil
}

// own is the token that the creator calls with.
func (g *Guard) own(ctx context.Context, creator sandbox.Principal) (ledger.Token, error) {
	all, err := g.tokens.ListTokens(ctx, creator.Tenant)
	if err != nil {
		return ledger.Token{}, fmt.Errorf("looking up the creator's token: %w", err)
	}
	i := slices.IndexFunc(all, func(t ledger.Token) bool { return t.ID == creator.TokenID })
	if i < 0 {
		return ledger.Token{}, badToken()
	}
	return all[i], nil
}

// List returns what is kept of tokens: of one tenant, or of all when tenant is
// "". Only an admin sees another tenant's.
func (g *Guard) List(ctx context.Context, who sandbox.Principal, tenant string) ([]ledger.Token, error) {
	if tenant != who.Tenant && !who.Has(sandbox.ScopeAdmin) {
		return nil, fault.New(fault.PolicyDenied, "these are another tenant's tokens").WithHint("Ask for your own tenant's.")
	}
	tokens, err := g.tokens.ListTokens(ctx, tenant)
	return g.withUses(tokens), err
}

// Revoke ends a token: at once here, within a second elsewhere. Revoking a
// revoked one is no error. Another tenant's is NotFound unless an admin asks.
func (g *Guard) Revoke(ctx context.Context, who sandbox.Principal, id string) error {
	if !who.Has(sandbox.ScopeAdmin) {
		all, err := g.tokens.ListTokens(ctx, who.Tenant)
		if err != nil {
			return fmt.Errorf("looking up token %q: %w", id, err)
		}
		if !slices.ContainsFunc(all, func(t ledger.Token) bool { return t.ID == id }) {
			return fault.New(fault.NotFound, "there is no such token").WithHint("`tartarus token list` shows the tokens there are.")
		}
	}
	err := g.tokens.RevokeToken(ctx, id, g.clock())
	g.forget()
	if err != nil {
		return fmt.Errorf("revoking token %q: %w", id, err)
	}
	return nil
}

// EnsureAdminToken makes sure that the file at path (mode 0600) holds an admin
// token of tenant "local" that the ledger knows, and makes both at first use.
// Any number of processes may do so at once. A token that was revoked stays
// revoked: that is a Conflict, and the hint says what to do.
func (g *Guard) EnsureAdminToken(ctx context.Context, path string) error {
	b, err := seal.ReadOrCreateFile(path, func() ([]byte, error) { return []byte(newToken() + "\n"), nil })
	if err != nil {
		return fmt.Errorf("making the admin token: %w", err)
	}
	token := strings.TrimSuffix(string(b), "\n")
	if !wellFormed(token) {
		return fault.New(fault.Conflict, "the admin token file %s holds no token", path).WithHint("Remove the file, so that a new token is made.")
	}
	want := tokenOf(token, localTenant, []sandbox.Scope{sandbox.ScopeAdmin})
	want.CreatedAt = g.clock().UTC().Round(0)
	found, err := g.tokens.TokenByHash(ctx, want.Hash)
	if fault.Is(err, fault.NotFound) {
		putErr := g.tokens.PutToken(ctx, want)
		if putErr == nil {
			return nil
		}
		// Another process may have been faster.
		if found, err = g.tokens.TokenByHash(ctx, want.Hash); err != nil {
			return fmt.Errorf("keeping the admin token: %w", putErr)
		}
	}
	if err != nil {
		return fmt.Errorf("looking up the admin token: %w", err)
	}
	if !holds(found, g.clock()) {
		return fault.New(fault.Conflict, "the admin token in %s was revoked or has expired", path).WithHint("Remove the file, so that a new token is made.")
	}
	return nil
}
