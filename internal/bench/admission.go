package bench

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/tartarus-vm/tartarus/internal/measure"
)

// What is admitted.
const (
	Admissions = 2000 // a round

	// Job is a run that waits, and Forever the one that it waits for.
	Job     = `{"command": ["python3", "-c", "print(40+2)"], "env": {"LANG": "C.UTF-8"}, "labels": {"team": "ci"}}`
	Forever = `{"command": ["sleep", "86400"], "max_duration": "3600s"}`
)

// Queueing is a server in which nothing leaves the queue.
type Queueing struct {
	API    API
	Ledger string                        // its file
	Dir    string                        // for the floors, on the ledger's file system
	CPU    func() (time.Duration, error) // that the server has used; nil: it shares its process with the clients
}

// Fill has the one sandbox that may run sleep.
func (a API) Fill(ctx context.Context) error {
	_, err := a.Call(ctx, http.MethodPost, "/sandbox/run", Forever, http.StatusAccepted)
	return err
}

// Admission is how fast requests come in, answered after they are on the disk.
func Admission(ctx context.Context, q Queueing, rounds int) (_ []measure.Row, err error) {
	if _, err := q.API.Post(ctx, 1, Job); err != nil { // what the floor copies
		return nil, err
	}
	rows, err := openRows(ctx, q.Dir, q.Ledger)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	small, err := OpenBare(q.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, small.Close()) }()
	used := q.CPU
	if used == nil {
		used = func() (time.Duration, error) { return 0, nil }
	}
	var besides, cpu []measure.Pair
	pairs, err := measure.Alternate(ctx, rounds,
		func(ctx context.Context) (float64, error) {
			before, err := used()
			if err != nil {
				return 0, err
			}
			rate, err := q.API.Post(ctx, Admissions, Job)
			if err != nil {
				return 0, err
			}
			after, err := used()
			besides = append(besides, measure.Pair{Value: rate})
			cpu = append(cpu, measure.Pair{Value: float64((after - before).Microseconds()) / Admissions})
			return rate, err
		},
		func(context.Context) (float64, error) {
			return rows.rate(Admissions)
		})
	if err != nil {
		return nil, err
	}
	besides, cpu = besides[1:], cpu[1:] // as of pairs, the first does not count
	for n := range besides {
		if besides[n].Floor, err = small.rate(10 * Admissions); err != nil {
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
	out := []measure.Row{measure.Of(row, pairs), measure.Of(smallest, besides)}
	if q.CPU != nil {
		out = append(out, measure.Of(measure.Row{
			Name: "CPU of an admission", Unit: "µs", Includes: "the same rounds, of the server without its clients",
		}, cpu))
	}
	return out, nil
}
