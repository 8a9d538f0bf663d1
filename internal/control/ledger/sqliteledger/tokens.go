package sqliteledger

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
)

// PutToken implements ledger.Tokens.
func (l *Ledger) PutToken(ctx context.Context, k ledger.Token) error {
	if err := ledger.CheckToken(k); err != nil {
		return err
	}
	return l.step(ctx, func(t *txn) error {
		there, err := t.first(func(s *sqlite3.Stmt) error {
			var have ledger.Token
			if err := parse(s, 0, &have); err != nil {
				return err
			}
			return ledger.SameToken(have, k)
		}, sqlTokenClash, k.ID, k.Hash[:])
		if err != nil || there {
			return err
		}
		doc, err := text(k)
		if err != nil {
			return err
		}
		t.changed = true
		return t.exec(sqlInsertToken, k.ID, k.Hash[:], k.Tenant, k.CreatedAt, doc)
	})
}

// TokenByHash implements ledger.Tokens.
func (l *Ledger) TokenByHash(ctx context.Context, hash [32]byte) (k ledger.Token, err error) {
	err = l.read(ctx, func(c *conn) error {
		found, err := c.first(func(s *sqlite3.Stmt) error { return parse(s, 0, &k) }, sqlTokenByHash, hash[:])
		if err == nil && !found {
			err = ledger.ErrNoToken()
		}
		return err
	})
	return k, err
}

// ListTokens implements ledger.Tokens.
func (l *Ledger) ListTokens(ctx context.Context, tenant string) (out []ledger.Token, err error) {
	err = l.read(ctx, func(c *conn) error {
		return c.query(func(s *sqlite3.Stmt) error {
			var k ledger.Token
			err := parse(s, 0, &k)
			out = append(out, k)
			return err
		}, sqlTokens, tenant)
	})
	return out, err
}

// RevokeToken implements ledger.Tokens.
func (l *Ledger) RevokeToken(ctx context.Context, id string, at time.Time) error {
	return l.step(ctx, func(t *txn) error {
		var k ledger.Token
		found, err := t.first(func(s *sqlite3.Stmt) error { return parse(s, 0, &k) }, sqlTokenByID, id)
		switch {
		case err != nil:
			return err
		case !found:
			return ledger.ErrNoToken()
		case !k.RevokedAt.IsZero():
			return nil
		}
		k.RevokedAt = at.UTC().Round(0)
		t.changed = true
		return t.updateToken(k)
	})
}

// TouchTokens implements ledger.Tokens.
func (l *Ledger) TouchTokens(ctx context.Context, used map[string]time.Time) error {
	return l.step(ctx, func(t *txn) error { // nobody waits for it: it is no change
		for id, at := range used {
			var k ledger.Token
			found, err := t.first(func(s *sqlite3.Stmt) error { return parse(s, 0, &k) }, sqlTokenByID, id)
			if err != nil {
				return err
			}
			if !found || !at.After(k.LastUsedAt) {
				continue
			}
			k.LastUsedAt = at.UTC().Round(0)
			if err := t.updateToken(k); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *txn) updateToken(k ledger.Token) error {
	doc, err := text(k)
	if err != nil {
		return err
	}
	return t.exec(sqlUpdateToken, k.ID, doc)
}
