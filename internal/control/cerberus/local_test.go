package cerberus_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
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

func TestPeerOf(t *testing.T) {
	for _, c := range []struct {
		uid, self int
		ok        bool
	}{{1000, 1000, true}, {0, 1000, true}, {0, 0, true}, {1000, 0, false}, {1001, 1000, false}} {
		p, err := cerberus.PeerOf(c.uid, c.self)
		if c.ok && (err != nil || p.Tenant != "local" || !p.Has(sandbox.ScopeAdmin) || p.TokenID == "") {
			t.Errorf("%+v: %+v, %v", c, p, err)
		}
		if !c.ok && (!fault.Is(err, fault.Unauthenticated) || p.Tenant != "") {
			t.Errorf("%+v: %+v, %v", c, p, err)
		}
	}
}

func TestPeer(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	p, err := cerberus.Peer(in)
	if err != nil || p.Tenant != "local" || !p.Has(sandbox.ScopeAdmin) {
		t.Errorf("%+v, %v", p, err)
	}
	in.Close()
	if _, err := cerberus.Peer(in); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a closed connection: %v", err)
	}
}
