package census_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tartarus-vm/tartarus/internal/control/acheron"
	"github.com/tartarus-vm/tartarus/internal/control/census"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// nodesOf are the nodes as the ledger has them.
type nodesOf struct{ *sqliteledger.Ledger }

func (nodesOf) Fresh() time.Duration { return time.Minute }

// fill makes ended records, and live ones half of which are on a node.
func fill(b *testing.B, l *sqliteledger.Ledger, ended, live int) {
	b.Helper()
	ctx := b.Context()
	epoch, err := l.Join(ctx, sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 1 << 30, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}})
	if err != nil {
		b.Fatal(err)
	}
	const clients = 64
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for n := c; n < ended+live; n += clients {
				if err := fillOne(ctx, l, n, n < ended); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for range live / 2 {
		c, ok, err := l.Claim(ctx, "s", start, time.Hour, nil)
		if err != nil || !ok {
			b.Fatal(ok, err)
		}
		if _, err := l.Place(ctx, c, "n1", epoch, start); err != nil {
			b.Fatal(err)
		}
	}
}

func fillOne(ctx context.Context, l *sqliteledger.Ledger, n int, end bool) error {
	a := request(n, fmt.Sprint("tenant", n%10))
	if _, _, err := l.Admit(ctx, a, sandbox.AuditEntry{Time: start, Tenant: "t", Action: "run"}, ledger.IdempotencyKey{}); err != nil || !end {
		return err
	}
	_, err := l.End(ctx, sandbox.Assignment{Sandbox: a.Record.ID}, sandbox.End{At: start, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}})
	return err
}

// BenchmarkScrape is one reading of all metrics, with 200 live sandboxes among
// few and among many that have ended.
func BenchmarkScrape(b *testing.B) {
	for _, ended := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("ended=%d", ended), func(b *testing.B) {
			reg := prometheus.NewRegistry()
			c, err := census.New(census.Config{Metrics: reg})
			if err != nil {
				b.Fatal(err)
			}
			l, err := sqliteledger.Open(b.Context(), sqliteledger.Config{Path: filepath.Join(b.TempDir(), "ledger.db"), Observer: c})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			fill(b, l, ended, 200)
			q, err := acheron.New(acheron.Config{Ledger: l, Owner: "s"})
			if err != nil {
				b.Fatal(err)
			}
			if err := c.Read(census.Sources{Ledger: l, Queue: q, Nodes: nodesOf{l}}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := reg.Gather(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
