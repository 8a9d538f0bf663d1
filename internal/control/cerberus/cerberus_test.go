package cerberus_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

var start = time.Date(2026, 11, 23, 12, 0, 30, 0, time.UTC)

// book is the ledger's tokens in memory.
type book struct {
	mu      sync.Mutex
	tokens  map[[32]byte]ledger.Token
	asked   int                               // calls of TokenByHash
	touched []map[string]time.Time            // by each call of TouchTokens
	broken  error                             // answered by every method, if set
	during  func()                            // called by TokenByHash after it read, if set
	wrong   func(t ledger.Token) ledger.Token // what TokenByHash answers instead, if set
}

func newBook() *book { return &book{tokens: map[[32]byte]ledger.Token{}} }

func (b *book) PutToken(_ context.Context, t ledger.Token) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.tokens[t.Hash]; ok {
		return fault.New(fault.Conflict, "there already")
	}
	if b.broken == nil {
		b.tokens[t.Hash] = t
	}
	return b.broken
}

func (b *book) TokenByHash(_ context.Context, hash [32]byte) (ledger.Token, error) {
	b.mu.Lock()
	b.asked++
	t, ok := b.tokens[hash]
	during, broken := b.during, b.broken
	b.mu.Unlock()
	if during != nil {
		during()
	}
	if broken != nil {
		return ledger.Token{}, broken
	}
	if !ok {
		return ledger.Token{}, fault.New(fault.NotFound, "no such token")
	}
	if b.wrong != nil {
		t = b.wrong(t)
	}
	return t, nil
}

func (b *book) ListTokens(_ context.Context, tenant string) ([]ledger.Token, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []ledger.Token
	for _, t := range b.tokens {
		if tenant == "" || t.Tenant == tenant {
			out = append(out, t)
		}
	}
	return out, b.broken
}

func (b *book) RevokeToken(_ context.Context, id string, at time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for h, t := range b.tokens {
		if t.ID == id {
			t.RevokedAt = at
			b.tokens[h] = t
			return b.broken
		}
	}
	return fault.New(fault.NotFound, "no such token")
}

func (b *book) TouchTokens(_ context.Context, used map[string]time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return b.broken
	}
	b.touched = append(b.touched, maps.Clone(used))
	return nil
}

// clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) add(d time.Duration) { c.mu.Lock(); c.now = c.now.Add(d); c.mu.Unlock() }

var admin = sandbox.Principal{Tenant: "local", Scopes: []sandbox.Scope{sandbox.ScopeAdmin}, TokenID: "uid-0"}

func newGuard(t *testing.T) (*cerberus.Guard, *book, *clock) {
	t.Helper()
	b, c := newBook(), &clock{now: start}
	g, err := cerberus.New(cerberus.Config{Tokens: b, Clock: c.Now, KnownTenant: func(n string) bool { return n == "local" || n == "ci" }})
	if err != nil {
		t.Fatal(err)
	}
	return g, b, c
}

func create(t *testing.T, g *cerberus.Guard, spec cerberus.Spec) (string, ledger.Token) {
	t.Helper()
	token, kept, err := g.Create(t.Context(), admin, spec)
	if err != nil {
		t.Fatal(err)
	}
	return token, kept
}

func wantUnauthenticated(t *testing.T, what string, err error) {
	t.Helper()
	if !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("%s: %v; want unauthenticated", what, err)
	}
}

func TestToken(t *testing.T) {
	g, b, _ := newGuard(t)
	token, kept := create(t, g, cerberus.Spec{Tenant: "ci", Scopes: []sandbox.Scope{"run", "read", "run"}})
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "tart_"))
	if err != nil || len(raw) != 32 || !strings.HasPrefix(token, "tart_") {
		t.Errorf("token %q: %v", token, err)
	}
	if kept.Hash != sha256.Sum256([]byte(token)) || b.tokens[kept.Hash].ID != kept.ID || kept.ID == "" || !kept.CreatedAt.Equal(start) {
		t.Errorf("kept %+v", kept)
	}
	if s := fmt.Sprintf("%+v", b.tokens); strings.Contains(s, token) || strings.Contains(s, string(raw)) {
		t.Error("the token itself is kept")
	}
	other, _ := create(t, g, cerberus.Spec{Tenant: "ci", Scopes: []sandbox.Scope{"run"}})
	if other == token {
		t.Error("the same token twice")
	}
	for _, header := range []string{"Bearer " + token, "bearer " + token, "BEARER  " + token + " "} {
		p, err := g.Authenticate(t.Context(), header, "s")
		if err != nil || p.Tenant != "ci" || p.TokenID != kept.ID || !p.Has("run") || !p.Has("read") || p.Has("admin") || len(p.Scopes) != 2 {
			t.Errorf("%q: %+v, %v", header, p, err)
		}
	}
}

func TestBadHeaders(t *testing.T) {
	g, b, c := newGuard(t)
	token, _ := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}})
	unknown := "tart_" + base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	var words string
	bad := []string{
		"Bearer", "Bearer ", token, "Basic " + token, "Bearer x" + token, "Bearer " + token + "x", "Bearer " + token[:len(token)-1], "Bearer " + token + " x",
		"Bearer " + strings.ToUpper(token), "Bearer " + token + "\n", "Bearer\t" + token, "Bearer " + token + "=", "Bearer " + unknown, strings.Repeat("x", 1<<20),
		"Bearer tart_", "Bearer tart_" + base64.RawURLEncoding.EncodeToString(make([]byte, 31)), "Bearer tart_" + base64.RawURLEncoding.EncodeToString(make([]byte, 33)),
		"Bearer " + token[:len(token)-1] + "\x00", ", Bearer " + token,
	}
	for _, header := range bad {
		_, err := g.Authenticate(t.Context(), header, "s")
		wantUnauthenticated(t, header[:min(len(header), 60)], err)
		if words == "" {
			words = err.Error()
		}
		if err.Error() != words {
			t.Errorf("other words for another bad token: %v", err)
		}
	}
	if b.asked != 1 {
		t.Errorf("the ledger was asked %d times; want once, for the one that could be a token", b.asked)
	}
	_, err := g.Authenticate(t.Context(), "", "s")
	wantUnauthenticated(t, "no header", err)
	if due := g.Due(c.Now().Add(time.Minute)); len(due) != 1 || !strings.HasPrefix(due[0].Reasons[0].Message, fmt.Sprint(len(bad), " ")) {
		t.Errorf("due %+v; want %d counted, and none for the call without a token", due, len(bad))
	}
}

func TestExpiry(t *testing.T) {
	g, _, c := newGuard(t)
	token, _ := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}, ExpiresAt: start.Add(500 * time.Millisecond)})
	if _, err := g.Authenticate(t.Context(), "Bearer "+token, "s"); err != nil {
		t.Fatal(err)
	}
	c.add(500 * time.Millisecond) // while it is still remembered
	_, err := g.Authenticate(t.Context(), "Bearer "+token, "s")
	wantUnauthenticated(t, "expired", err)
}

func TestRevocation(t *testing.T) {
	g, b, c := newGuard(t)
	token, kept := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}})
	ask := func() error { _, err := g.Authenticate(t.Context(), "Bearer "+token, "s"); return err }
	for range 3 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if b.asked != 1 {
		t.Errorf("the ledger was asked %d times", b.asked)
	}
	// Revoked by another process: seen within a second.
	if err := b.RevokeToken(t.Context(), kept.ID, start); err != nil {
		t.Fatal(err)
	}
	c.add(time.Second)
	wantUnauthenticated(t, "a second after it was revoked elsewhere", ask())

	// Revoked here: seen at once, also by a look-up that was under way.
	token, kept = create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}})
	b.during = func() {
		b.during = nil
		if err := g.Revoke(t.Context(), admin, kept.ID); err != nil {
			t.Error(err)
		}
	}
	if err := ask(); err != nil { // it had read before
		t.Fatal(err)
	}
	wantUnauthenticated(t, "revoked here while it was looked up", ask())
	if err := g.Revoke(t.Context(), admin, "gone"); !fault.Is(err, fault.NotFound) {
		t.Errorf("revoking what is not there: %v", err)
	}
}

func TestBrokenLedger(t *testing.T) {
	g, b, c := newGuard(t)
	token, _ := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}})
	b.broken = fault.New(fault.Unavailable, "no ledger")
	if _, err := g.Authenticate(t.Context(), "Bearer "+token, "s"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("error %v", err)
	}
	if due := g.Due(c.Now().Add(time.Hour)); len(due) != 0 {
		t.Errorf("counted as a bad token: %+v", due)
	}
	b.broken = nil
	b.wrong = func(t ledger.Token) ledger.Token { t.Hash[0]++; return t }
	_, err := g.Authenticate(t.Context(), "Bearer "+token, "s")
	wantUnauthenticated(t, "a ledger that answers with another token", err)
}

func TestCreateIsNeverWider(t *testing.T) {
	g, b, _ := newGuard(t)
	_, kept := create(t, g, cerberus.Spec{Tenant: "ci", Scopes: []sandbox.Scope{"run"}, ExpiresAt: start.Add(time.Hour)})
	runner := sandbox.Principal{Tenant: "ci", Scopes: kept.Scopes, TokenID: kept.ID}
	for name, c := range map[string]struct {
		creator sandbox.Principal
		spec    cerberus.Spec
		kind    fault.Kind
		field   string
	}{
		"wider":          {runner, cerberus.Spec{Scopes: []sandbox.Scope{"run", "read"}}, fault.PolicyDenied, ""},
		"admin":          {runner, cerberus.Spec{Scopes: []sandbox.Scope{"admin"}}, fault.PolicyDenied, ""},
		"other tenant":   {runner, cerberus.Spec{Tenant: "local", Scopes: []sandbox.Scope{"run"}}, fault.PolicyDenied, ""},
		"no scopes":      {admin, cerberus.Spec{}, fault.InvalidArgument, "scopes"},
		"unknown scope":  {admin, cerberus.Spec{Scopes: []sandbox.Scope{"run", "fly"}}, fault.InvalidArgument, "scopes[1]"},
		"unknown tenant": {admin, cerberus.Spec{Tenant: "nobody", Scopes: []sandbox.Scope{"run"}}, fault.InvalidArgument, "tenant"},
		"expired":        {admin, cerberus.Spec{Scopes: []sandbox.Scope{"run"}, ExpiresAt: start}, fault.InvalidArgument, "expires_at"},
		"gone itself":    {sandbox.Principal{Tenant: "ci", Scopes: kept.Scopes, TokenID: "gone"}, cerberus.Spec{Scopes: kept.Scopes}, fault.Unauthenticated, ""},
	} {
		before := len(b.tokens)
		token, _, err := g.Create(t.Context(), c.creator, c.spec)
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != c.kind || f.Field != c.field || f.Hint == "" || token != "" {
			t.Errorf("%s: %q, %#v", name, token, err)
		}
		if len(b.tokens) != before {
			t.Errorf("%s: a token was kept", name)
		}
	}
	for _, wish := range []time.Time{{}, start.Add(2 * time.Hour)} {
		_, made, err := g.Create(t.Context(), runner, cerberus.Spec{Scopes: []sandbox.Scope{"run"}, ExpiresAt: wish})
		if err != nil || made.Tenant != "ci" || !made.ExpiresAt.Equal(start.Add(time.Hour)) {
			t.Errorf("%+v, %v; want one that expires with its creator", made, err)
		}
	}
}

func TestOthersTokens(t *testing.T) {
	g, _, _ := newGuard(t)
	_, mine := create(t, g, cerberus.Spec{Tenant: "ci", Scopes: []sandbox.Scope{"run"}})
	_, theirs := create(t, g, cerberus.Spec{Tenant: "local", Scopes: []sandbox.Scope{"run"}})
	me := sandbox.Principal{Tenant: "ci", Scopes: mine.Scopes, TokenID: mine.ID}
	if list, err := g.List(t.Context(), me, "ci"); err != nil || len(list) != 1 || list[0].ID != mine.ID {
		t.Errorf("my own: %+v, %v", list, err)
	}
	for _, tenant := range []string{"local", ""} {
		if _, err := g.List(t.Context(), me, tenant); !fault.Is(err, fault.PolicyDenied) {
			t.Errorf("tokens of %q: %v", tenant, err)
		}
	}
	if list, err := g.List(t.Context(), admin, ""); err != nil || len(list) != 2 {
		t.Errorf("the admin's list: %+v, %v", list, err)
	}
	if err := g.Revoke(t.Context(), me, theirs.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("revoking another tenant's: %v", err)
	}
	if err := g.Revoke(t.Context(), me, mine.ID); err != nil {
		t.Errorf("revoking my own: %v", err)
	}
}

func failOnce(t *testing.T, g *cerberus.Guard, source string) {
	t.Helper()
	_, err := g.Authenticate(t.Context(), "Bearer nonsense", source)
	wantUnauthenticated(t, "nonsense", err)
}

func TestFailuresBecomeOneEntryASourceAndMinute(t *testing.T) {
	g, _, c := newGuard(t)
	fail := func(source string, times int) {
		for range times {
			failOnce(t, g, source)
		}
	}
	fail("192.0.2.1", 1000)
	fail("192.0.2.2", 1)
	if due := g.Due(c.Now()); len(due) != 0 {
		t.Errorf("due before the minute ended: %+v", due)
	}
	c.add(time.Minute)
	fail("192.0.2.1", 2)
	due := g.Due(c.Now())
	if len(due) != 2 || due[0].Source != "192.0.2.1" || due[1].Source != "192.0.2.2" || due[0].Decision != sandbox.Deny ||
		!strings.HasPrefix(due[0].Reasons[0].Message, "1000 calls") || !due[0].Time.Equal(start.Truncate(time.Minute)) {
		t.Errorf("due %+v", due)
	}
	if again := g.Due(c.Now()); len(again) != 0 {
		t.Errorf("due twice: %+v", again)
	}
	if rest := g.Due(c.Now().Add(time.Minute)); len(rest) != 1 || !strings.HasPrefix(rest[0].Reasons[0].Message, "2 calls") {
		t.Errorf("the rest: %+v", rest)
	}

	// Memory stays bounded, and nothing is uncounted.
	const many = 5000
	for i := range many {
		fail(fmt.Sprintf("source-%d", i), 1)
	}
	for range 500 { // minutes that nobody collects
		c.add(time.Minute)
		fail("s", 1)
	}
	total := 0
	all := g.Due(c.Now().Add(time.Hour))
	for _, e := range all {
		var n int
		if _, err := fmt.Sscan(e.Reasons[0].Message, &n); err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if len(all) > 1200 || total != many+500 {
		t.Errorf("%d entries tell of %d failures, want %d", len(all), total, many+500)
	}
}

func TestFailuresThatCannotBeWrittenAreCountedAgain(t *testing.T) {
	g, _, c := newGuard(t)
	for i := range 6 {
		failOnce(t, g, fmt.Sprint("s", i%3))
	}
	c.add(time.Minute)
	var written []sandbox.AuditEntry
	room := 1
	write := func(_ context.Context, e sandbox.AuditEntry) error {
		if room == 0 {
			return fault.New(fault.Unavailable, "no room")
		}
		room--
		written = append(written, e)
		return nil
	}
	if err := g.WriteDue(t.Context(), c.Now(), write); !fault.Is(err, fault.Unavailable) {
		t.Errorf("error %v", err)
	}
	room = 10
	if err := g.WriteDue(t.Context(), c.Now(), write); err != nil || len(written) != 3 {
		t.Fatalf("written %+v, %v", written, err)
	}
	for i, e := range written {
		if e.Source != fmt.Sprint("s", i) || !strings.HasPrefix(e.Reasons[0].Message, "2 calls") || !e.Time.Equal(start.Truncate(time.Minute)) {
			t.Errorf("entry %d: %+v", i, e)
		}
	}
	if err := g.WriteDue(t.Context(), c.Now().Add(time.Hour), write); err != nil || len(written) != 3 {
		t.Errorf("written twice: %+v, %v", written, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	g, _, c := newGuard(t)
	token, kept := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				p, err := g.Authenticate(t.Context(), "Bearer "+token, "s")
				if err != nil || p.TokenID != kept.ID {
					t.Errorf("%+v, %v", p, err)
					return
				}
				failOnce(t, g, fmt.Sprint(i))
				if j%50 == 0 {
					c.add(time.Second)
					g.Due(c.Now())
				}
			}
		})
	}
	wg.Wait()
}

func TestConfig(t *testing.T) {
	if _, err := cerberus.New(cerberus.Config{}); err == nil {
		t.Error("a guard without a ledger")
	}
	if _, err := cerberus.New(cerberus.Config{Tokens: newBook(), CacheLife: 2 * time.Second}); err == nil {
		t.Error("a guard that would not see a revocation within a second")
	}
	b := newBook()
	g, err := cerberus.New(cerberus.Config{Tokens: b, CacheLife: -1})
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := g.Create(t.Context(), admin, cerberus.Spec{Tenant: "any", Scopes: []sandbox.Scope{"run"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := g.Authenticate(t.Context(), "Bearer "+token, "s"); err != nil {
			t.Fatal(err)
		}
	}
	if b.asked != 3 {
		t.Errorf("asked %d times without a cache", b.asked)
	}
}
