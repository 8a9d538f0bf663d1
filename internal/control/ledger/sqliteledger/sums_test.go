package sqliteledger

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// counted is what the sums must be: counted through all that is live.
const counted = `
SELECT 'tenant', tenant, count(*), sum(node > ''), sum(iif(node > '', vcpus, 0)), sum(iif(node > '', memory_mib, 0)), sum(iif(node > '', disk_mib, 0)) FROM live GROUP BY tenant
UNION ALL SELECT 'node', node, count(*), count(*), sum(vcpus), sum(memory_mib), sum(disk_mib) FROM live WHERE node > '' GROUP BY node
UNION ALL SELECT 'all', '', (SELECT count(*) FROM live WHERE node > ''), (SELECT coalesce(sum(epoch), 0) FROM nodes), 0, 0, 0`

// kept is what they are.
const kept = `
SELECT 'tenant', tenant, live, running, vcpus, memory_mib, disk_mib FROM tenant_use WHERE live <> 0 OR running <> 0 OR vcpus <> 0 OR memory_mib <> 0 OR disk_mib <> 0
UNION ALL SELECT 'node', node, running, running, vcpus, memory_mib, disk_mib FROM node_use WHERE running <> 0 OR vcpus <> 0 OR memory_mib <> 0 OR disk_mib <> 0
UNION ALL SELECT 'all', '', on_nodes, joins, 0, 0, 0 FROM totals`

func sums(c *conn, sql string) (rows []string, err error) {
	err = c.query(func(s *sqlite3.Stmt) error {
		var row []string
		for i := range s.ColumnCount() {
			row = append(row, s.ColumnText(i))
		}
		rows = append(rows, strings.Join(row, " "))
		return nil
	}, sql)
	slices.Sort(rows)
	return rows, err
}

// checkSums looks at a store as it is, without opening it as a ledger does.
func checkSums(t rapid.TB, path string) {
	t.Helper()
	c, err := dial(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	want, err1 := sums(c, counted)
	got, err2 := sums(c, kept)
	if err1 != nil || err2 != nil || !slices.Equal(got, want) {
		t.Fatalf("the sums are %q, and what is live comes to %q (%v, %v)", got, want, err1, err2)
	}
}

// TestSumsAreOfWhatIsLive takes any steps in any order, those that fail and are
// undone too, in two ledgers on one file. As TestModel it makes fewer rounds than
// rapid would by itself.
func TestSumsAreOfWhatIsLive(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("40"); err != nil {
			t.Fatal(err)
		}
	}
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		path := filepath.Join(t.TempDir(), fmt.Sprintf("%d.db", round))
		ctx, now := t.Context(), epoch0
		ls := [2]*Ledger{}
		for i := range ls {
			var err error
			if ls[i], err = Open(ctx, Config{Path: path}); err != nil {
				rt.Fatal(err)
			}
			defer ls[i].Close()
		}
		n, claims, placed, epochs := 0, []ledger.Claim{}, []sandbox.Assignment{}, map[string]int64{}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			l := ls[rapid.IntRange(0, 1).Draw(rt, "ledger")]
			node := rapid.SampledFrom([]string{"n1", "n2"}).Draw(rt, "node")
			switch rapid.SampledFrom([]string{"join", "admit", "again", "claim", "place", "requeue", "accept", "end", "kill"}).Draw(rt, "step") {
			case "join":
				epochs[node], _ = l.Join(ctx, sandbox.Node{ID: node, Capacity: sandbox.Capacity{VCPUs: 2, MemoryMiB: 1024, DiskMiB: 1024}})
			case "admit":
				n++
				_ = admit(ctx, l, request(n))
			case "again": // an ID that is taken, undone
				_ = admit(ctx, l, request(n))
			case "claim":
				if c, ok, _ := l.Claim(ctx, "s", now, time.Hour, nil); ok {
					claims = append(claims, c)
				}
			case "place": // more than fits, too
				if len(claims) > 0 {
					if a, err := l.Place(ctx, claims[len(claims)-1], node, epochs[node], now); err == nil {
						placed, claims = append(placed, a), claims[:len(claims)-1]
					}
				}
			case "requeue":
				if len(placed) > 0 {
					_ = l.Requeue(ctx, placed[0], now, "a test")
				}
			case "accept":
				if len(placed) > 0 {
					_ = l.Accept(ctx, placed[0], now)
				}
			case "end":
				if len(placed) > 0 {
					_, _ = l.End(ctx, placed[0], sandbox.End{At: now, Exit: sandbox.ExitRecord{Cause: sandbox.Killed}})
					placed = placed[1:]
				}
			case "kill":
				_, _ = l.Kill(ctx, request(n).Record.ID, sandbox.Killed, now, sandbox.AuditEntry{Time: now})
			}
		}
		checkSums(rt, path)
	})
}

// TestSumsAreMadeAnew opens a store of the version that had none, and one whose
// sums somebody spoiled.
func TestSumsAreMadeAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	if err := makeFile(path); err != nil {
		t.Fatal(err)
	}
	c, err := dial(path, "")
	if err == nil {
		err = prepare(c, migrations[:2])
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`INSERT INTO nodes VALUES ('n1', 3, '{"id":"n1"}')`,
		`INSERT INTO live (id, tenant, node, vcpus, memory_mib, disk_mib, created_at, deadline, not_before, owner, token, claimed_at, claim_until, ready_at, overdue_at, waiting)
		VALUES ('a', 't', '', 1, 128, 64, 0, 0, 0, '', 0, 0, 0, 0, 0, '{}'), ('b', 't', 'n1', 2, 256, 32, 0, 0, 0, '', 0, 0, 0, 0, 0, '{}')`,
	} {
		if err := c.exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l := openLedger(t, Config{Path: path})
		u, err := l.Usage(t.Context(), nil)
		if want := (ledger.Usage{Live: 2, Running: 1, VCPUs: 2, MemoryMiB: 256, DiskMiB: 32}); err != nil || u["t"] != want {
			t.Errorf("%+v, %v", u, err)
		}
		checkSums(t, path)
		if err := l.step(t.Context(), func(tx *txn) error {
			return tx.exec(`UPDATE tenant_use SET live = 100, vcpus = 100`)
		}); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
