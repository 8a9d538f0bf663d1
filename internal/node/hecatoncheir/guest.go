package hecatoncheir

import (
	"context"
	"errors"
	"log/slog"

	"github.com/tartarus-vm/tartarus/internal/guest/guestdial"
	"github.com/tartarus-vm/tartarus/internal/guest/guestwire"
	"github.com/tartarus-vm/tartarus/internal/node/tartarus"
)

// dialGuest opens the session that Guest stands for.
func dialGuest(ctx context.Context, vm tartarus.VM, log *slog.Logger) (Guest, error) {
	s, err := guestdial.Open(ctx, guestdial.Config{Dial: vm.Dial, Logger: log})
	if err != nil {
		return nil, err
	}
	return session{s}, nil
}

// session is a guestdial.Session as a Guest.
type session struct{ *guestdial.Session }

func (s session) Start(ctx context.Context, m guestwire.Start, sink func(guestwire.Flow, int64, []byte)) (Process, error) {
	p, err := s.Session.Start(ctx, m, sink)
	var no *guestdial.StartError
	switch {
	case errors.As(err, &no):
		return nil, &CommandError{Code: no.Code, Message: no.Message}
	case err != nil:
		return nil, err
	}
	return p, nil
}
