package cerberus_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubbled runs f with a guard whose clock is the bubble's.
func bubbled(t *testing.T, f func(t *testing.T, g *cerberus.Guard, b *book)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBook()
		g, err := cerberus.New(cerberus.Config{Tokens: b})
		if err != nil {
			t.Fatal(err)
		}
		f(t, g, b)
	})
}

// ends waits for ctx and says how long that took.
func ends(ctx context.Context, t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	select {
	case <-ctx.Done():
		wantUnauthenticated(t, "why the stream ended", context.Cause(ctx))
	case <-time.After(time.Hour):
		t.Error("it holds on")
	}
	return time.Since(began)
}

// What a token holds open ends with it: at once where it is revoked, within a
// second elsewhere, and to the moment where it expires.
func TestHold(t *testing.T) {
	bubbled(t, func(t *testing.T, g *cerberus.Guard, b *book) {
		token, kept := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"read"}})
		other, _ := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"read"}})
		hold := func(token string) context.Context {
			ctx, release := g.Hold(t.Context(), "Bearer "+token)
			t.Cleanup(release)
			return ctx
		}
		first, second, bystander := hold(token), hold(token), hold(other)
		time.Sleep(10 * time.Minute)
		if first.Err() != nil || second.Err() != nil {
			t.Fatal("a good token does not hold on")
		}
		if err := g.Revoke(t.Context(), admin, kept.ID); err != nil {
			t.Fatal(err)
		}
		if a, b := ends(first, t), ends(second, t); a+b != 0 {
			t.Errorf("revoked here, it went on for %v and %v", a, b)
		}
		if took := ends(hold(token), t); took != 0 {
			t.Errorf("one more stream went on for %v", took)
		}

		token, kept = create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"read"}})
		first = hold(token)
		time.Sleep(700 * time.Millisecond)
		if err := b.RevokeToken(t.Context(), kept.ID, time.Now()); err != nil {
			t.Fatal(err)
		}
		if took := ends(first, t); took > time.Second {
			t.Errorf("revoked elsewhere, it went on for %v", took)
		}

		token, _ = create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"read"}, ExpiresAt: time.Now().Add(1234 * time.Millisecond)})
		if took := ends(hold(token), t); took != 1234*time.Millisecond {
			t.Errorf("expired, it went on for %v", took)
		}
		if bystander.Err() != nil {
			t.Error("another token's stream has ended")
		}
		if took := ends(hold("tart_wrong"), t); took != 0 {
			t.Errorf("with a bad token it went on for %v", took)
		}
	})
}

// A ledger that cannot answer cuts nobody off; let go, nothing is looked up.
func TestHoldEndsWithItsCaller(t *testing.T) {
	bubbled(t, func(t *testing.T, g *cerberus.Guard, b *book) {
		token, _ := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"read"}})
		one, letGoOne := g.Hold(t.Context(), "Bearer "+token)
		two, letGoTwo := g.Hold(t.Context(), "Bearer "+token)
		b.mu.Lock()
		b.broken = fault.New(fault.Unavailable, "no ledger")
		b.mu.Unlock()
		time.Sleep(time.Minute)
		letGoOne()
		if one.Err() == nil || fault.Is(context.Cause(one), fault.Unauthenticated) || two.Err() != nil {
			t.Errorf("let go: %v; the other: %v", context.Cause(one), two.Err())
		}
		letGoTwo()
		b.mu.Lock()
		asked := b.asked
		b.mu.Unlock()
		if asked < 100 || asked > 200 { // two a second, for both together
			t.Errorf("it was looked up %d times in a minute", asked)
		}
		time.Sleep(time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.asked != asked {
			t.Error("it is looked up although nobody holds it")
		}
	})
}

// When a token was used is written with all others, when that is asked for,
// and shown before.
func TestLastUse(t *testing.T) {
	g, b, c := newGuard(t)
	token, kept := create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}})
	create(t, g, cerberus.Spec{Scopes: []sandbox.Scope{"run"}})
	used := func() {
		t.Helper()
		if _, err := g.Authenticate(t.Context(), "Bearer "+token, "s"); err != nil {
			t.Fatal(err)
		}
	}
	shown := func() time.Time {
		t.Helper()
		list, err := g.List(t.Context(), admin, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range list {
			if k.ID == kept.ID {
				return k.LastUsedAt
			}
		}
		return time.Time{}
	}
	for range 100 {
		used()
		c.add(time.Millisecond)
	}
	last := c.Now().Add(-time.Millisecond)
	if len(b.touched) != 0 || !shown().Equal(last) {
		t.Errorf("before it is written: %v, shown as %v", b.touched, shown())
	}
	b.broken = fault.New(fault.Unavailable, "no ledger")
	if err := g.WriteUses(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a ledger that cannot: %v", err)
	}
	b.broken = nil
	for range 2 {
		if err := g.WriteUses(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.touched) != 1 || len(b.touched[0]) != 1 || !b.touched[0][kept.ID].Equal(last) {
		t.Errorf("written: %v, want once %v", b.touched, last)
	}
	_, err := g.Authenticate(t.Context(), "Bearer tart_wrong", "s")
	wantUnauthenticated(t, "a wrong one", err)
	if err := g.WriteUses(t.Context()); err != nil || len(b.touched) != 1 {
		t.Errorf("a bad token's use was written: %v, %v", b.touched, err)
	}
}
