package hecatoncheir

import (
	"context"
	"errors"

	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/journal"
	"github.com/tartarus-vm/tartarus/internal/node/styx"
)

// attachCard gives the sandbox a network card with its contract in force. One
// without a contract gets none.
func (l *life) attachCard(ctx context.Context) error {
	if err := l.detachCard(ctx); err != nil || l.req.Network.Empty() {
		return err
	}
	uid := l.uid()
	card, err := l.a.cfg.Network.Attach(ctx, styx.Want{
		Contract: l.req.Network, Inside: l.a.cfg.Driver.Info().CardByName, UID: uid, GID: uid,
	})
	if err != nil {
		return err
	}
	l.card = card
	return l.a.write("card", l.id, func(e *journal.Entry) { e.Card = card.Name })
}

// detachCard takes the card away, and what the sandbox could reach with it. A
// card that is not held any more is swept by the network if this fails.
func (l *life) detachCard(ctx context.Context) error {
	if l.card == nil {
		return nil
	}
	card := l.card
	l.card = nil
	return errors.Join(l.a.cfg.Network.Detach(ctx, card.Name), card.Close())
}

// uid is the user that the VMM runs as, 0 for the driver's default.
func (l *life) uid() int { return l.a.uid(l.slot) }

func (a *Agent) uid(slot int) int {
	if a.cfg.UIDs.Count <= 0 {
		return 0
	}
	return a.cfg.UIDs.First + slot
}

// guestNetwork is what the guest is told of its card; nil without one.
func (l *life) guestNetwork() *guestwire.Network {
	if l.card == nil {
		return nil
	}
	return &guestwire.Network{
		MAC: [6]byte(l.card.MAC), Address: l.card.Address.Addr().As4(), Bits: uint8(l.card.Address.Bits()), Gateway: l.card.Gateway.As4(),
	}
}

// traffic is what the host saw pass through the card.
func (l *life) traffic() (rx, tx int64) {
	if l.card == nil {
		return 0, 0
	}
	r, t, err := l.a.cfg.Network.Traffic(l.card.Name)
	if err != nil {
		l.logger.Warn("a sandbox's traffic could not be counted", "error", err)
	}
	return int64(r), int64(t)
}

// detachLost takes away the card that an earlier process left.
func (a *Agent) detachLost(ctx context.Context, e journal.Entry) error {
	if e.Card == "" {
		return nil
	}
	if a.cfg.Network == nil {
		a.loggerOf(ctx, e.Assignment).Warn("a network card is left over, and this process may not remove it", "port", e.Card)
		return nil
	}
	return a.cfg.Network.Detach(ctx, e.Card)
}
