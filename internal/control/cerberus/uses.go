package cerberus

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
)

// used notes that a token was used. It is written later, with all others.
func (g *Guard) used(id string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.uses[id] = now
}

// WriteUses writes when tokens were used that were used since the last time.
// Whoever calls it once a minute has each token written once a minute at most.
// What cannot be written is written next time.
func (g *Guard) WriteUses(ctx context.Context) error {
	g.mu.Lock()
	uses := g.uses
	g.uses = map[string]time.Time{}
	g.mu.Unlock()
	if len(uses) == 0 {
		return nil
	}
	if err := g.tokens.TouchTokens(ctx, uses); err != nil {
		g.mu.Lock()
		maps.Copy(uses, g.uses) // those since are later
		g.uses = uses
		g.mu.Unlock()
		return fmt.Errorf("writing when tokens were used: %w", err)
	}
	return nil
}

// withUses adds the uses that are not written yet.
func (g *Guard) withUses(tokens []ledger.Token) []ledger.Token {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, t := range tokens {
		if at, ok := g.uses[t.ID]; ok && at.After(t.LastUsedAt) {
			tokens[i].LastUsedAt = at
		}
	}
	return tokens
}
