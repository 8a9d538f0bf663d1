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
	smallRow   = 16   // bytes
	job        = `{"command": ["python3", "-c", "print(40+2)"], "env": {"LANG": "C.UTF-8"}, "labels": {"team": "ci"}}`
	forever    = `{"command": ["sleep", "forever"], "max_duration": "3600s"}`
)

// newUp is an up on fakes in which nothing leaves the queue: the one sandbox
// that may run sleeps.
func (b *bench) newFullUp(ctx context.Context, name string) (*up, error) {
	u, err := startUp(filepath.Join(b.dir, name), policy(1), false)
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
	floor, err := openBare(b.dir, smallRow)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, floor.close()) }()
	pairs, err := measure.Alternate(ctx, b.rounds,
		func(ctx context.Context) (float64, error) { return u.post(ctx, admissions, job) },
		func(context.Context) (float64, error) { return floor.rate(20 * admissions) })
	return []measure.Row{measure.Of(measure.Row{
		Name: "admissions", Unit: "/s",
		Includes: "POST /sandbox/run from 64 clients on connections they keep: token, policy, judges, Ed25519 verdict, sealed secrets, and in one commit record, queue entry, secrets, event and audit entry, on disk before the answer; client and server share the cores",
		FloorOf:  "the same number of bare durable SQLite group commits (WAL, synchronous=FULL, one small row each) from 64 goroutines",
		Goals:    []measure.Goal{measure.AtLeast(2000), measure.RatioAtLeast(0.5)},
	}, pairs)}, err
}
