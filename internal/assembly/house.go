package assembly

import (
	"context"
	"errors"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/record/cocytus"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const (
	houseEvery = 10 * time.Minute
	auditEvery = time.Minute
	logGrace   = time.Hour      // a log is stored before its record names it
	imageGrace = 24 * time.Hour // an image is stored before its name is, and building takes minutes
)

// keepHouse prunes old records, the logs that no record names and the images
// that no name stands for, and writes what cerberus gathers: audit entries of
// bad tokens, and when tokens were used.
func (e *embedded) keepHouse(ctx context.Context) error {
	house, audit := time.NewTicker(houseEvery), time.NewTicker(auditEvery)
	defer house.Stop()
	defer audit.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			// What was gathered in the minute under way is written too.
			return e.writeGathered(context.WithoutCancel(ctx), time.Now().Add(auditEvery))
		case <-audit.C:
			err = e.writeGathered(ctx, time.Now())
		case <-house.C:
			err = e.clean(ctx, time.Now())
		}
		if err != nil && ctx.Err() == nil {
			e.log.Warn("housekeeping failed", "error", err)
		}
	}
}

// writeGathered writes what cerberus gathered until now.
func (e *embedded) writeGathered(ctx context.Context, now time.Time) error {
	return errors.Join(e.guard.WriteDue(ctx, now, e.census.Audited(e.book).Audit), e.guard.WriteUses(ctx))
}

// clean is one round.
func (e *embedded) clean(ctx context.Context, now time.Time) error {
	if _, err := e.book.Prune(ctx, ledger.Retention(cocytus.DefaultRetention()), now); err != nil {
		return err
	}
	images, err := e.images.Referenced(ctx)
	if err != nil {
		return err
	}
	logs, current, err := e.named(ctx, images)
	if err != nil {
		return err
	}
	if _, err := e.logs.Collect(ctx, func(d sandbox.Digest) bool { return logs[d] }, logGrace); err != nil {
		return err
	}
	if !current {
		return nil // what a live sandbox was promised is not by name any more: next time
	}
	_, err = e.blobs.Collect(ctx, func(d sandbox.Digest) bool { return images[d] }, imageGrace)
	return err
}

// named are the logs that records name, and whether every live sandbox's
// template and guest bundle are among images.
func (e *embedded) named(ctx context.Context, images map[sandbox.Digest]bool) (logs map[sandbox.Digest]bool, current bool, err error) {
	logs, current = map[sandbox.Digest]bool{}, true
	for q := (ledger.Query{Limit: 1000}); ; {
		page, err := e.book.List(ctx, q)
		if err != nil {
			return nil, false, err
		}
		for _, rec := range page.Records {
			logs[rec.LogDigest] = true
			if rec.State.Live() && (!images[rec.Request.TemplateDigest] || !images[rec.Request.GuestDigest]) {
				current = false
			}
			q.Before = rec.ID
		}
		if !page.More {
			return logs, current, nil
		}
	}
}
