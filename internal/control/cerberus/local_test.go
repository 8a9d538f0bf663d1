package cerberus_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

func TestAdminTokenFile(t *testing.T) {
	g, b, _ := newGuard(t)
	path := filepath.Join(t.TempDir(), "admin.token")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := g.EnsureAdminToken(t.Context(), path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(b.tokens) != 1 {
		t.Fatalf("%d tokens are kept", len(b.tokens))
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := g.Authenticate(t.Context(), "Bearer "+strings.TrimSpace(string(content)), "s")
	if err != nil || p.Tenant != "local" || !p.Has(sandbox.ScopeAdmin) {
		t.Errorf("%+v, %v", p, err)
	}

	// A new ledger beside an old file learns the token.
	fresh, freshBook, _ := newGuard(t)
	if err := fresh.EnsureAdminToken(t.Context(), path); err != nil || len(freshBook.tokens) != 1 {
		t.Errorf("a new ledger: %d tokens, %v", len(freshBook.tokens), err)
	}

	// A revoked one does not come back to life.
	if err := g.Revoke(t.Context(), admin, p.TokenID); err != nil {
		t.Fatal(err)
	}
	if err := g.EnsureAdminToken(t.Context(), path); !fault.Is(err, fault.Conflict) {
		t.Errorf("revoked: %v", err)
	}
	_, err = g.Authenticate(t.Context(), "Bearer "+strings.TrimSpace(string(content)), "s")
	wantUnauthenticated(t, "revoked admin token", err)
}

func TestAdminTokenFileRefused(t *testing.T) {
	g, b, _ := newGuard(t)
	path := filepath.Join(t.TempDir(), "admin.token")
	for content, mode := range map[string]os.FileMode{"junk": 0o600, "": 0o600, "tart_x\n": 0o644} {
		os.Remove(path)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := g.EnsureAdminToken(t.Context(), path); !fault.Is(err, fault.Conflict) {
			t.Errorf("%q, mode %v: %v", content, mode, err)
		}
	}
	if len(b.tokens) != 0 {
		t.Error("a token was kept")
	}
}
