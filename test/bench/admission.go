package main

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"

	"github.com/tartarus-vm/tartarus/internal/measure"
)

const (
	admissions = 2000 // a round
	job        = `{"command": ["python3", "-c", "print(40+2)"], "env": {"LANG": "C.UTF-8"}, "labels": {"team": "ci"}}`
	forever    = `{"command": ["sleep", "forever"], "max_duration": "3600s"}`
)

// newFullUp is an up on fakes in which nothing leaves the queue: the one sandbox
// that may run sleeps.
func (b *bench) newFullUp(ctx context.Context, name string) (*up, error) {
	u, err := b.startUp(filepath.Join(b.dir, name), policy(1), false)
	if err != nil {
		return nil, err
	}
	if _, err := u.one(ctx, http.MethodPost, "/sandbox/run", forever, http.StatusAccepted); err != nil {
		return nil, errors.Join(err, u.stop())
	}
	return u, nil
}

// admission is how fast requests come in, answered after they are on the disk.
func admission(ctx context.Context, b *bench) (_ []measure.Row, err error) {
	u, err := b.newFullUp(ctx, "admission")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, u.stop()) }()
	if _, err := u.post(ctx, 1, job); err != nil { // what the floor copies
		return nil, err
	}
	rows, err := openRows(ctx, b.dir, u)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.close()) }()
	small, err := openBare(b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, small.close()) }()
	var besides, cpu []measure.Pair
	pairs, err := measure.Alternate(ctx, b.rounds,
		func(ctx context.Context) (float64, error) {
			before, err := u.look()
			if err != nil {
				return 0, err
			}
			rate, err := u.post(ctx, admissions, job)
			if err != nil {
				return 0, err
			}
			after, err := u.look()
			besides = append(besides, measure.Pair{Value: rate})
			cpu = append(cpu, measure.Pair{Value: float64((after.cpu - before.cpu).Microseconds()) / admissions})
			return rate, err
		},
		func(context.Context) (float64, error) {
			return rows.rate(admissions)
		})
	if err != nil {
		return nil, err
	}
	besides, cpu = besides[1:], cpu[1:] // as of pairs, the first does not count
	for n := range besides {
		if besides[n].Floor, err = small.rate(10 * admissions); err != nil {
			return nil, err
		}
	}
	row := measure.Row{
		Name: "admissions", Unit: "/s",
		Includes: "POST /sandbox/run from 64 clients on connections they keep: token, policy, judges, Ed25519 verdict, sealed secrets, and in one commit record, queue entry, secrets, event and audit entry, on disk before the answer; client and server share the cores",
		FloorOf:  "the same number of bare durable SQLite group commits (WAL, synchronous=FULL) of the same rows, from 64 goroutines",
		Goals:    []measure.Goal{measure.AtLeast(2000), measure.RatioAtLeast(0.5)},
	}
	smallest := row
	smallest.Name, smallest.Goals = "admissions, smallest floor", nil
	smallest.Includes, smallest.FloorOf = "the same rounds", "bare durable group commits of one small row each"
	return []measure.Row{measure.Of(row, pairs), measure.Of(smallest, besides), measure.Of(measure.Row{
		Name: "CPU of an admission", Unit: "µs", Includes: "the same rounds, of the server without its clients",
	}, cpu)}, nil
}
