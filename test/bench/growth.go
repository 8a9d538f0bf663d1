package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/measure"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

const (
	endedBefore = 100_000 // records
	growthNodes = 100
)

// growth is what admission and placement lose when many have ended before.
func growth(ctx context.Context, b *bench) ([]measure.Row, error) {
	old := filepath.Join(b.dir, "old")
	young := filepath.Join(b.dir, "young")
	admit, err := b.growthOfAdmission(ctx, old, young)
	if err != nil {
		return nil, err
	}
	place, err := b.growthOfPlacement(ctx, old, young)
	return []measure.Row{admit, place}, err
}

const (
	growthGoal = 0.9
	growthOf   = "the same in turn on a ledger in which nothing has ended before"
)

func (b *bench) growthOfAdmission(ctx context.Context, old, young string) (_ measure.Row, err error) {
	var ups [2]*up
	for i, dir := range []string{old, young} {
		if ups[i], err = b.newFullUp(ctx, filepath.Base(dir)); err != nil {
			return measure.Row{}, err
		}
		defer func() { err = errors.Join(err, ups[i].stop()) }()
		if i == 0 { // it need not know: its ledger may be written by others
			if err := fillEnded(ctx, filepath.Join(dir, "up", "ledger.db"), "local"); err != nil {
				return measure.Row{}, err
			}
		}
	}
	pairs, err := measure.Alternate(ctx, b.rounds,
		func(ctx context.Context) (float64, error) { return ups[0].post(ctx, admissions, job) },
		func(ctx context.Context) (float64, error) { return ups[1].post(ctx, admissions, job) })
	return measure.Of(measure.Row{
		Name: fmt.Sprintf("admissions, %d ended", endedBefore), Unit: "/s",
		Includes: "as admissions", FloorOf: growthOf, Goals: []measure.Goal{measure.RatioAtLeast(growthGoal)},
	}, pairs), err
}

func (b *bench) growthOfPlacement(ctx context.Context, old, young string) (_ measure.Row, err error) {
	var fleets [2]*fleet
	for i, dir := range []string{old, young} {
		if fleets[i], err = newFleet(ctx, dir+"-fleet", growthNodes); err != nil {
			return measure.Row{}, err
		}
		defer func() { err = errors.Join(err, fleets[i].close()) }()
	}
	if err := fillBook(ctx, fleets[0].book, "tenant-00"); err != nil {
		return measure.Row{}, err
	}
	pairs, err := measure.Alternate(ctx, b.rounds, fleets[0].round, fleets[1].round)
	return measure.Of(measure.Row{
		Name: fmt.Sprintf("placements, %d ended", endedBefore), Unit: "/s",
		Includes: fmt.Sprintf("as placements, %d nodes", growthNodes), FloorOf: growthOf, Goals: []measure.Goal{measure.RatioAtLeast(growthGoal)},
	}, pairs), err
}

func fillEnded(ctx context.Context, path, tenant string) error {
	l, err := sqliteledger.Open(ctx, sqliteledger.Config{Path: path})
	if err != nil {
		return err
	}
	return errors.Join(fillBook(ctx, l, tenant), l.Close())
}

// fillBook has many sandboxes of a tenant end.
func fillBook(ctx context.Context, l *sqliteledger.Ledger, tenant string) error {
	key, err := seal.NewKey()
	if err != nil {
		return err
	}
	box := seal.NewBox()
	_, err = crowd(endedBefore, func() (func() error, func(), error) {
		return func() error {
			a, err := request(key, box, tenant)
			if err != nil {
				return err
			}
			a.Record.CreatedAt = a.Record.CreatedAt.Add(-time.Hour)
			if _, _, err := l.Admit(ctx, a, sandbox.AuditEntry{Time: a.Record.CreatedAt, Tenant: tenant, Action: "run", Sandbox: a.Record.ID, Decision: sandbox.Allow}, ledger.IdempotencyKey{}); err != nil {
				return err
			}
			_, err = l.End(ctx, sandbox.Assignment{Sandbox: a.Record.ID}, sandbox.End{At: time.Now(), Exit: sandbox.ExitRecord{Cause: sandbox.Killed, Source: sandbox.FromHost}})
			return err
		}, func() {}, nil
	})
	return err
}
