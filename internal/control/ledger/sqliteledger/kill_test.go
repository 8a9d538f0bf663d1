package sqliteledger_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/sqliteledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// childEnv holds the path of a store and a number, for a test binary that is
// to use it until it is killed.
const childEnv = "SQLITELEDGER_TEST_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

var epoch0 = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func request(n int, tenant string) sandbox.Admitted {
	return sandbox.Admitted{
		Record: sandbox.Record{
			ID: sandbox.MakeID(fmt.Sprintf("%026d", n)), Tenant: tenant, CreatedAt: epoch0,
			Request: sandbox.Resolved{Resources: sandbox.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}},
		},
		Limits:  sandbox.Limits{Live: 1 << 20, Running: 1 << 20, VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40},
		Secrets: []byte(strings.Repeat("s", 5000)),
	}
}

// child takes sandboxes through their lives, and prints a line for each step
// once it has been answered.
func child(spec string) error {
	var path string
	var number int
	if _, err := fmt.Sscanf(spec, "%d %s", &number, &path); err != nil {
		return err
	}
	ctx := context.Background()
	l, err := sqliteledger.Open(ctx, sqliteledger.Config{Path: path, WipeAfter: time.Millisecond})
	if err != nil {
		return err
	}
	node := fmt.Sprintf("n%d", number)
	epoch, err := l.Join(ctx, sandbox.Node{ID: node, Capacity: sandbox.Capacity{VCPUs: 1 << 20, MemoryMiB: 1 << 40, DiskMiB: 1 << 40}})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(step string, id sandbox.ID) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(step, id)
	}
	var n atomic.Int64
	failed := make(chan error, 8)
	for range cap(failed) {
		go func() {
			for {
				a := request(number*1_000_000+int(n.Add(1)), "t")
				if err := live(ctx, l, a, bind{node, epoch}, say); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	return <-failed
}

type bind struct {
	node  string
	epoch int64
}

// live takes one sandbox as far as it goes.
func live(ctx context.Context, l ledger.Ledger, a sandbox.Admitted, b bind, say func(string, sandbox.ID)) error {
	if _, _, err := l.Admit(ctx, a, sandbox.AuditEntry{Time: epoch0}, ledger.IdempotencyKey{}); err != nil {
		return err
	}
	say("admitted", a.Record.ID)
	c, ok, err := l.Claim(ctx, b.node, epoch0, time.Minute, nil)
	if err != nil || !ok {
		return err
	}
	id := c.Admitted.Record.ID
	as, err := l.Place(ctx, c, b.node, b.epoch, epoch0)
	if err != nil {
		return err
	}
	if err := l.Accept(ctx, as, epoch0); err != nil {
		return err
	}
	say("accepted", id)
	if _, err := l.End(ctx, as, sandbox.End{At: epoch0, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}}); err != nil {
		return err
	}
	say("ended", id)
	return nil
}

// TestWhatWasAnsweredOutlivesSIGKILL kills two processes that use one store,
// in the middle of whatever they do, again and again.
func TestWhatWasAnsweredOutlivesSIGKILL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	openAt(t, path, func(*sqliteledger.Ledger) {})
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	answered := map[string][]sandbox.ID{}
	number := 0
	for range rounds {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 2 {
			number++
			spec, lines := fmt.Sprintf("%d %s", number, path), 60+number*7
			wg.Go(func() {
				for _, line := range killAfter(t, spec, lines) {
					step, id, _ := strings.Cut(line, " ")
					mu.Lock()
					answered[step] = append(answered[step], sandbox.ID(id))
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		openAt(t, path, func(l *sqliteledger.Ledger) { checkAnswered(t, l, answered) })
	}
	if len(answered["ended"]) == 0 {
		t.Error("nothing was ended")
	}
	t.Logf("%d admitted, %d accepted, %d ended", len(answered["admitted"]), len(answered["accepted"]), len(answered["ended"]))
}

// killAfter runs a child, kills it when it has said so many lines, and
// returns all that it said.
func killAfter(t *testing.T, spec string, lines int) (said []string) {
	cmd := exec.Command(os.Args[0]) //nolint:gosec // it is this very binary
	cmd.Env = append(os.Environ(), childEnv+"="+spec)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return nil
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return nil
	}
	guard := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer guard.Stop()
	for r := bufio.NewReader(out); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			break // what is not a whole line was not said
		}
		said = append(said, strings.TrimSpace(line))
		if len(said) == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 || len(said) < lines {
		t.Errorf("the child said %d lines and ended by itself: %v\n%s", len(said), err, &stderr)
	}
	return said
}

func checkAnswered(t *testing.T, l *sqliteledger.Ledger, answered map[string][]sandbox.ID) {
	t.Helper()
	for step, ids := range answered {
		for _, id := range ids {
			rec, err := l.Get(t.Context(), id)
			switch {
			case err != nil:
				t.Errorf("%s was %s: %v", id, step, err)
			case step == "accepted" && rec.AcceptedAt.IsZero(), step == "ended" && rec.State != sandbox.Failed:
				t.Errorf("%s was %s, and is %s", id, step, rec.State)
			}
		}
	}
	var prev *sandbox.AuditEntry
	after := int64(0)
	for {
		part, err := l.AuditEntries(t.Context(), ledger.AuditQuery{After: after, Limit: ledger.MaxPage})
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			break
		}
		if err := ledger.VerifyAudit(prev, part); err != nil {
			t.Fatal(err)
		}
		prev = &part[len(part)-1]
		after = prev.Seq
	}
	if after < int64(len(answered["admitted"])) {
		t.Errorf("%d audit entries for %d admitted", after, len(answered["admitted"]))
	}
}

// TestTwoLedgersOnOneFile has two ledgers keep one limit.
func TestTwoLedgersOnOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	openAt(t, path, func(one *sqliteledger.Ledger) {
		openAt(t, path, func(two *sqliteledger.Ledger) {
			var admitted atomic.Int64
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() {
					a := request(i, "t")
					a.Limits.Live = 10
					l := []*sqliteledger.Ledger{one, two}[i%2]
					_, _, err := l.Admit(t.Context(), a, sandbox.AuditEntry{Time: epoch0}, ledger.IdempotencyKey{})
					switch {
					case err == nil:
						admitted.Add(1)
					case !fault.Is(err, fault.QuotaExceeded):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := admitted.Load(); n != 10 {
				t.Errorf("%d were admitted", n)
			}
			// Each sees what the other did.
			for _, l := range []*sqliteledger.Ledger{one, two} {
				all, err := l.AuditEntries(t.Context(), ledger.AuditQuery{})
				if err != nil || len(all) != 10 {
					t.Errorf("there are %d audit entries, %v", len(all), err)
				}
				if err := ledger.VerifyAudit(nil, all); err != nil {
					t.Error(err)
				}
			}
		})
	})
}

// openAt opens the store for f.
func openAt(t *testing.T, path string, f func(l *sqliteledger.Ledger)) {
	t.Helper()
	l, err := sqliteledger.Open(t.Context(), sqliteledger.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	f(l)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
