// Package cerberus is the authentication: from a token to the principal who
// calls. (On a Unix socket the kernel says who that is, and olympus asks it.)
//
// A token is "tart_" and 256 random bits in base64url. Only its SHA-256 is
// kept, so whoever reads the ledger cannot call. Attempts with bad tokens are
// counted, one audit entry a source and minute.
package cerberus

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	prefix    = "tart_"
	tokenBits = 256
	maxHeader = 512
	maxCache  = 4096
)

// maxCacheLife bounds how long a revoked token may go on to work.
const maxCacheLife = time.Second

// Tokens is what cerberus needs of the ledger.
type Tokens interface {
	PutToken(ctx context.Context, t ledger.Token) error
	TokenByHash(ctx context.Context, hash [32]byte) (ledger.Token, error)
	ListTokens(ctx context.Context, tenant string) ([]ledger.Token, error)
	RevokeToken(ctx context.Context, id string, at time.Time) error
	TouchTokens(ctx context.Context, used map[string]time.Time) error
}

// Config is what a Guard needs.
type Config struct {
	Tokens Tokens

	// Clock tells the time; time.Now if nil.
	Clock func() time.Time
	// CacheLife is how long a token that was found is not looked up again, at
	// most 1 s, which it is if zero. Negative: always look it up.
	CacheLife time.Duration
	// KnownTenant tells whether the policy names a tenant; nil takes any. A
	// token is not made for another one.
	KnownTenant func(name string) bool
	// Logger may be nil.
	Logger *slog.Logger
}

// Guard authenticates. It may be used by many at once.
type Guard struct {
	tokens Tokens
	clock  func() time.Time
	life   time.Duration
	known  func(string) bool
	log    *slog.Logger
	failed failures

	mu      sync.Mutex          // guards all below
	cache   map[[32]byte]cached // at most maxCache entries
	epoch   uint64              // grows with every revocation
	revoked chan struct{}       // closed, and replaced, with every revocation
	held    map[[32]byte]*holding
	uses    map[string]time.Time // of tokens by ID, since WriteUses
}

type cached struct {
	token ledger.Token
	until time.Time
}

// New makes a guard.
func New(cfg Config) (*Guard, error) {
	if cfg.Tokens == nil {
		return nil, fault.New(fault.InvalidArgument, "cerberus needs a book of tokens")
	}
	if cfg.CacheLife > maxCacheLife {
		return nil, fault.New(fault.InvalidArgument, "a cache life of %v is more than %v: revoked tokens would go on to work", cfg.CacheLife, maxCacheLife)
	}
	g := &Guard{
		tokens: cfg.Tokens, clock: cfg.Clock, life: cfg.CacheLife, known: cfg.KnownTenant, log: cfg.Logger,
		cache: map[[32]byte]cached{}, revoked: make(chan struct{}), held: map[[32]byte]*holding{}, uses: map[string]time.Time{},
	}
	if g.clock == nil {
		g.clock = time.Now
	}
	if g.life == 0 {
		g.life = maxCacheLife
	}
	if g.known == nil {
		g.known = func(string) bool { return true }
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	return g, nil
}

// Authenticate says who calls with an Authorization header. source is where
// the call comes from (an address without its port), for the count of
// failures. Errors are of kind Unauthenticated, all bad tokens with the same
// words, or what the ledger says when it cannot answer.
func (g *Guard) Authenticate(ctx context.Context, header, source string) (sandbox.Principal, error) {
	now := g.clock()
	if header == "" {
		return sandbox.Principal{}, fault.New(fault.Unauthenticated, "the call has no token").
			WithHint("Send the header Authorization: Bearer TOKEN. `tartarus token create` makes one.")
	}
	token, ok := parseHeader(header)
	if !ok {
		g.failed.add(source, now, 1)
		return sandbox.Principal{}, badToken()
	}
	t, err := g.find(ctx, sha256.Sum256([]byte(token)), now)
	if fault.Is(err, fault.NotFound) || err == nil && !holds(t, now) {
		g.failed.add(source, now, 1)
		return sandbox.Principal{}, badToken()
	}
	if err != nil {
		return sandbox.Principal{}, err
	}
	g.used(t.ID, now)
	return sandbox.Principal{Tenant: t.Tenant, Scopes: t.Scopes, TokenID: t.ID}, nil
}

func badToken() error {
	return fault.New(fault.Unauthenticated, "the token is malformed, unknown, expired or revoked").
		WithHint("Check the token (TARTARUS_TOKEN, --token-file), or have a new one made with `tartarus token create`.")
}

// holds reports whether a token that was found is good now.
func holds(t ledger.Token, now time.Time) bool {
	if !t.RevokedAt.IsZero() {
		return false
	}
	return t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt)
}

// parseHeader takes the token out of "Bearer TOKEN"; false for what can be no
// token of ours.
func parseHeader(header string) (string, bool) {
	if len(header) > maxHeader {
		return "", false
	}
	scheme, token, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return "", false
	}
	token = strings.Trim(token, " ")
	return token, wellFormed(token)
}

func wellFormed(token string) bool {
	digits, ok := strings.CutPrefix(token, prefix)
	if !ok || len(digits) != base64.RawURLEncoding.EncodedLen(tokenBits/8) {
		return false // the decoder by itself would skip line ends
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(digits)
	return err == nil && len(raw)*8 == tokenBits
}

func newToken() string {
	var raw [tokenBits / 8]byte
	rand.Read(raw[:]) // never fails
	return prefix + base64.RawURLEncoding.EncodeToString(raw[:])
}

// find looks a token up, for a moment in memory. What is compared is the hash
// of a random token: how long that takes tells nothing of use.
func (g *Guard) find(ctx context.Context, hash [32]byte, now time.Time) (ledger.Token, error) {
	g.mu.Lock()
	c, ok := g.cache[hash]
	epoch := g.epoch
	g.mu.Unlock()
	if ok && now.Before(c.until) {
		return c.token, nil
	}
	t, err := g.tokens.TokenByHash(ctx, hash)
	if err != nil {
		return ledger.Token{}, err
	}
	if subtle.ConstantTimeCompare(t.Hash[:], hash[:]) != 1 {
		g.log.ErrorContext(ctx, "the ledger found another token than was asked for", "token_id", t.ID)
		return ledger.Token{}, fault.New(fault.NotFound, "no such token")
	}
	if g.life > 0 {
		g.remember(t, now, epoch)
	}
	return t, nil
}

// remember keeps what was read while epoch held; what a revocation overtook
// is dropped.
func (g *Guard) remember(t ledger.Token, now time.Time, epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if epoch != g.epoch {
		return
	}
	if len(g.cache) >= maxCache {
		for h, c := range g.cache {
			if !now.Before(c.until) {
				delete(g.cache, h)
			}
		}
	}
	if len(g.cache) >= maxCache {
		clear(g.cache)
	}
	g.cache[t.Hash] = cached{token: t, until: now.Add(g.life)}
}

// forget empties the cache, and has held tokens looked up again.
func (g *Guard) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epoch++
	clear(g.cache)
	close(g.revoked)
	g.revoked = make(chan struct{})
}
