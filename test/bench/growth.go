package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/tartarus-vm/tartarus/internal/bench"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/measure"
)

const (
	endedBefore = 100_000 // records
	growthNodes = 100
)

// growth is what admission and placement lose when many have ended before.
func growth(ctx context.Context, b *run) ([]measure.Row, error) {
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

func (b *run) growthOfAdmission(ctx context.Context, old, young string) (_ measure.Row, err error) {
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
		func(ctx context.Context) (float64, error) { return ups[0].api.Post(ctx, bench.Admissions, bench.Job) },
		func(ctx context.Context) (float64, error) { return ups[1].api.Post(ctx, bench.Admissions, bench.Job) })
	return measure.Of(measure.Row{
		Name: fmt.Sprintf("admissions, %d ended", endedBefore), Unit: "/s",
		Includes: "as admissions", FloorOf: growthOf, Goals: []measure.Goal{measure.RatioAtLeast(growthGoal)},
	}, pairs), err
}

func (b *run) growthOfPlacement(ctx context.Context, old, young string) (_ measure.Row, err error) {
	var fleets [2]*bench.Fleet
	for i, dir := range []string{old, young} {
		if fleets[i], err = bench.NewFleet(ctx, dir+"-fleet", growthNodes); err != nil {
			return measure.Row{}, err
		}
		defer func() { err = errors.Join(err, fleets[i].Close()) }()
	}
	if err := bench.FillEnded(ctx, fleets[0].Book, endedBefore, "tenant-00"); err != nil {
		return measure.Row{}, err
	}
	pairs, err := measure.Alternate(ctx, b.rounds, fleets[0].Round, fleets[1].Round)
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
	return errors.Join(bench.FillEnded(ctx, l, endedBefore, tenant), l.Close())
}
