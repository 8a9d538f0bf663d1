package sqliteledger

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const clients = 64

// crowd has clients do f, b.N times in all.
func crowd(b *testing.B, f func(n int) error) {
	b.Helper()
	var wg sync.WaitGroup
	b.ResetTimer()
	for c := range clients {
		wg.Go(func() {
			for n := c; n < b.N; n += clients {
				if err := f(n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "steps/s")
}

// BenchmarkAdmit is durable admits of 64 clients, beside two floors in the
// same run: the same clients with steps that insert one small row, and one
// client that appends to a file and syncs it.
func BenchmarkAdmit(b *testing.B) {
	b.Run("admit", func(b *testing.B) {
		l := openLedger(b, Config{})
		crowd(b, func(n int) error { return admit(b.Context(), l, request(n)) })
	})
	b.Run("floor=bare_group_commit", func(b *testing.B) {
		l := openLedger(b, Config{})
		if err := l.step(b.Context(), func(t *txn) error { return t.exec(`CREATE TABLE floor (n INTEGER PRIMARY KEY, t TEXT)`) }); err != nil {
			b.Fatal(err)
		}
		crowd(b, func(n int) error {
			return l.step(b.Context(), func(t *txn) error {
				return t.exec(`INSERT INTO floor VALUES (?1, ?2)`, n, "a small row")
			})
		})
	})
	b.Run("floor=write_and_fsync", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		row := make([]byte, 4096)
		for b.Loop() {
			if _, err := f.Write(row); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "steps/s")
	})
}

// fill makes n ended records and 100 that are queued.
func fill(b *testing.B, l *Ledger, n int) {
	b.Helper()
	ctx := b.Context()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := c; i < n+100; i += clients {
				if err := admit(ctx, l, request(i)); err != nil {
					b.Error(err)
					return
				}
				if i < n {
					if _, err := l.End(ctx, sandbox.Assignment{Sandbox: request(i).Record.ID},
						sandbox.End{At: epoch0, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}}); err != nil {
						b.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkRoad is one sandbox after the other on its whole road, among few
// and among many that have ended.
func BenchmarkRoad(b *testing.B) {
	for _, ended := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("ended=%d", ended), func(b *testing.B) {
			l := openLedger(b, Config{})
			fill(b, l, ended)
			ctx := b.Context()
			epoch, err := l.Join(ctx, sandbox.Node{ID: "n1", Capacity: sandbox.Capacity{VCPUs: 1 << 30, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}})
			if err != nil {
				b.Fatal(err)
			}
			spent := map[string]time.Duration{}
			timed := func(step string, f func() error) {
				began := time.Now()
				if err := f(); err != nil {
					b.Fatal(step, err)
				}
				spent[step] += time.Since(began)
			}
			n := ended + 1000
			for b.Loop() {
				n++
				road(ctx, l, n, epoch, timed)
			}
			for step, d := range spent {
				b.ReportMetric(float64(d.Microseconds())/float64(b.N), step+"-µs")
			}
		})
	}
}

func road(ctx context.Context, l *Ledger, n int, epoch int64, timed func(string, func() error)) {
	var c ledger.Claim
	var a sandbox.Assignment
	timed("admit", func() error { return admit(ctx, l, request(n)) })
	timed("claim", func() (err error) {
		c, _, err = l.Claim(ctx, "s", epoch0, time.Hour, nil)
		return err
	})
	timed("place", func() (err error) {
		a, err = l.Place(ctx, c, "n1", epoch, epoch0)
		return err
	})
	timed("accept", func() error { return l.Accept(ctx, a, epoch0) })
	timed("end", func() error {
		_, err := l.End(ctx, a, sandbox.End{At: epoch0, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}})
		return err
	})
	timed("due", func() error {
		_, err := l.Due(ctx, nil)
		return err
	})
}
