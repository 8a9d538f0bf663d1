package mnemosyne_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/mnemosyne"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
	"github.com/tartarus-vm/tartarus/internal/seal"
)

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// log is a chain of entries, as its writer or somebody who forges it makes it.
type log []sandbox.AuditEntry

func entry(action string) sandbox.AuditEntry {
	return sandbox.AuditEntry{Time: start, Tenant: "acme", Action: action, Decision: sandbox.Allow}
}

// chained numbers entries and links them, from the first one on.
func (l log) chained(t fataler) log {
	var digest sandbox.Digest
	for i := range l {
		l[i].Seq, l[i].PrevDigest = int64(i)+1, digest
		var err error
		if digest, err = ledger.AuditDigest(l[i]); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// fataler is a test of any kind.
type fataler interface{ Fatal(args ...any) }

func (l log) rows(t fataler) []ledger.AuditRow {
	var out []ledger.AuditRow
	for _, e := range l {
		text, err := ledger.AuditText(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ledger.AuditRow{Seq: e.Seq, Tenant: e.Tenant, Text: text})
	}
	return out
}

func newLog(t fataler, n int) log {
	var l log
	for i := range n {
		l = append(l, entry(fmt.Sprint("action ", i)))
	}
	return l.chained(t)
}

// checkpoint is the line that is kept when l has count entries.
func checkpoint(t fataler, k *seal.Key, l log, count int) string {
	digest, err := ledger.AuditDigest(l[count-1])
	if err != nil {
		t.Fatal(err)
	}
	line, err := k.SignCheckpoint(seal.Checkpoint{Writer: "up", Count: int64(count), Head: digest, Time: start.Add(time.Duration(count) * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	return string(line) + "\n"
}

func keyAndRing(t fataler) (*seal.Key, *seal.Ring) {
	k, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	r, err := seal.NewRing(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k, r
}

func verify(t fataler, r *seal.Ring, lines string, rows []ledger.AuditRow) mnemosyne.Report {
	v := mnemosyne.NewVerifier("up", r)
	if err := v.ReadCheckpoints("kept", strings.NewReader(lines)); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		v.Entry(row)
	}
	return v.Report()
}

// A mutation changes a log of at least two entries. One that forges makes a
// chain that is whole in itself: only a checkpoint shows it.
type mutation struct {
	name   string
	forges bool
	do     func(t *rapid.T, l log) []ledger.AuditRow
}

func mutations() []mutation {
	pick := func(t *rapid.T, l log) int { return rapid.IntRange(0, len(l)-1).Draw(t, "at") }
	edit := func(t *rapid.T, e *sandbox.AuditEntry) {
		changes := []func(){
			func() { e.Tenant = "other" }, func() { e.TokenID = "tok-other" }, func() { e.Decision = sandbox.Deny }, func() { e.Time = e.Time.Add(1) },
			func() { e.Reasons = []sandbox.Reason{{Judge: "x"}} }, func() { e.Sandbox = "sb-x" }, func() { e.Action = "nothing" },
		}
		rapid.SampledFrom(changes).Draw(t, "change")()
	}
	return []mutation{
		{"edited", false, func(t *rapid.T, l log) []ledger.AuditRow {
			i := rapid.IntRange(0, len(l)-2).Draw(t, "at") // the last one is the next case's
			edit(t, &l[i])
			return l.rows(t)
		}},
		{"the last one edited", true, func(t *rapid.T, l log) []ledger.AuditRow {
			edit(t, &l[len(l)-1])
			return l.rows(t)
		}},
		{"a byte changed", true, func(t *rapid.T, l log) []ledger.AuditRow {
			rows := l.rows(t)
			text := rows[pick(t, l)].Text
			text[rapid.IntRange(0, len(text)-1).Draw(t, "byte")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
			return rows
		}},
		{"other spelling", false, func(t *rapid.T, l log) []ledger.AuditRow {
			rows := l.rows(t)
			i := pick(t, l)
			rows[i].Text = bytes.Replace(rows[i].Text, []byte(`{"seq"`), []byte(`{ "seq"`), 1)
			return rows
		}},
		{"a field added", false, func(t *rapid.T, l log) []ledger.AuditRow {
			rows := l.rows(t)
			i := pick(t, l)
			rows[i].Text = bytes.Replace(rows[i].Text, []byte(`{"seq"`), []byte(`{"x":1,"seq"`), 1)
			return rows
		}},
		{"kept under another number", false, func(t *rapid.T, l log) []ledger.AuditRow {
			rows := l.rows(t)
			rows[pick(t, l)].Seq += rapid.SampledFrom([]int64{-2, -1, 1, 2, 1000}).Draw(t, "by")
			return rows
		}},
		{"kept for another tenant", false, func(t *rapid.T, l log) []ledger.AuditRow {
			rows := l.rows(t)
			rows[pick(t, l)].Tenant = "other"
			return rows
		}},
		{"removed", false, func(t *rapid.T, l log) []ledger.AuditRow {
			i := rapid.IntRange(0, len(l)-2).Draw(t, "at")
			return slices.Delete(l.rows(t), i, i+1)
		}},
		{"twice", false, func(t *rapid.T, l log) []ledger.AuditRow {
			rows := l.rows(t)
			return slices.Insert(rows, rapid.IntRange(0, len(l)).Draw(t, "to"), rows[pick(t, l)])
		}},
		{"reordered", false, func(t *rapid.T, l log) []ledger.AuditRow {
			rows := l.rows(t)
			i := rapid.IntRange(0, len(l)-2).Draw(t, "at")
			j := rapid.IntRange(i+1, len(l)-1).Draw(t, "and")
			rows[i], rows[j] = rows[j], rows[i]
			return rows
		}},
		{"edited and chained again", true, func(t *rapid.T, l log) []ledger.AuditRow {
			edit(t, &l[pick(t, l)])
			return l.chained(t).rows(t)
		}},
		{"removed and chained again", true, func(t *rapid.T, l log) []ledger.AuditRow {
			i := pick(t, l)
			return slices.Delete(l, i, i+1).chained(t).rows(t)
		}},
		{"inserted and chained again", true, func(t *rapid.T, l log) []ledger.AuditRow {
			return slices.Insert(l, pick(t, l), entry("forged")).chained(t).rows(t)
		}},
		{"truncated", true, func(t *rapid.T, l log) []ledger.AuditRow { return l[:pick(t, l)].rows(t) }},
		{"rolled back and gone on", true, func(t *rapid.T, l log) []ledger.AuditRow {
			l = l[:pick(t, l)]
			for i := range rapid.IntRange(1, 40).Draw(t, "new") {
				l = append(l, entry(fmt.Sprint("after it ", i)))
			}
			return l.chained(t).rows(t)
		}},
	}
}

// TestEveryMutationIsFound makes a log with checkpoints, one of them at its
// end, and changes it in one way: that is found. So it is without checkpoints
// where the chain by itself shows it; where it does not, the report says that
// it cannot know.
func TestEveryMutationIsFound(t *testing.T) {
	key, ring := keyAndRing(t)
	for _, m := range mutations() {
		t.Run(m.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				l := newLog(t, rapid.IntRange(2, 20).Draw(t, "entries"))
				var lines strings.Builder
				for i := 1; i < len(l); i++ {
					if rapid.Bool().Draw(t, "checkpoint") {
						lines.WriteString(checkpoint(t, key, l, i))
					}
				}
				lines.WriteString(checkpoint(t, key, l, len(l)))
				if r := verify(t, ring, lines.String(), l.rows(t)); len(r.Findings) > 0 || r.Covered != int64(len(l)) {
					t.Fatalf("unchanged: %+v", r)
				}
				rows := m.do(t, slices.Clone(l))
				if r := verify(t, ring, lines.String(), rows); len(r.Findings) == 0 {
					t.Errorf("not found: %+v", r)
				}
				r := verify(t, nil, "", rows)
				if len(r.Findings) == 0 && !m.forges {
					t.Errorf("not found without checkpoints: %+v", r)
				}
				if !strings.Contains(r.Unknown, "cannot be known whether the log was rewritten") || !r.CoveredAt.IsZero() {
					t.Errorf("it does not say what it cannot know: %+v", r)
				}
			})
		})
	}
}

// What is found is told with its place.
func TestReport(t *testing.T) {
	key, ring := keyAndRing(t)
	l := newLog(t, 9)
	lines := checkpoint(t, key, l, 3) + checkpoint(t, key, l, 6) + checkpoint(t, key, l, 8)
	other, _ := keyAndRing(t)
	forged := slices.Clone(l)
	forged[4].Action = "forged"
	forged = forged.chained(t)
	swapped := l.rows(t)
	swapped[1], swapped[2] = swapped[2], swapped[1]
	for name, c := range map[string]struct {
		lines   string
		rows    []ledger.AuditRow
		finds   []string // place and words
		unknown string
	}{
		"whole":          {lines, l.rows(t), nil, "No checkpoint vouches for what follows entry 8"},
		"whole, covered": {lines + checkpoint(t, key, l, 9), l.rows(t), nil, "after the last checkpoint (2026-11-23T12:00:09Z)"},
		"rewritten": {lines, forged.rows(t), []string{
			"entry 6: it is not the one that stood there at 2026-11-23T12:00:06Z (kept:2): the log was rewritten, or an older copy went on, from some entry after 3 on",
		}, "entry 3"},
		"cut off": {lines, l[:7].rows(t), []string{
			"entry 7: the log ends here, but had 8 entries at 2026-11-23T12:00:08Z (kept:3): its end was cut off, or an older copy was put in its place",
		}, "entry 6"},
		"gone":    {lines, nil, []string{"entry 0: the log ends here, but had 8 entries"}, "vouches for any entry"},
		"removed": {lines, slices.Delete(l.rows(t), 4, 5), []string{"entry 6: entries 5 to 5 are missing"}, "entry 8"},
		"swapped": {"", swapped, []string{"entry 3: entries 2 to 2 are missing", "entry 2: entry 2 is out of order", "entry 4: entries 3 to 3 are missing"}, "Without checkpoints"},
		"rolled back and back again": {lines + checkpoint(t, key, l, 5) + checkpoint(t, key, l, 9), l.rows(t), []string{
			"kept:4: the log had 5 entries at 2026-11-23T12:00:05Z, after 8 at 2026-11-23T12:00:08Z (kept:3)",
		}, "after the last checkpoint"},
		"another's checkpoint": {lines + checkpoint(t, other, l, 9), l.rows(t), []string{"kept:4: the checkpoint does not hold: its key"}, "entry 8"},
		"an edited checkpoint": {strings.Replace(lines, `"count":6`, `"count":7`, 1), l.rows(t), []string{"kept:2: the checkpoint does not hold: its signature"}, "entry 8"},
		"junk":                 {lines + "{}\n", l.rows(t), []string{"kept:4: the checkpoint does not hold"}, "entry 8"},
	} {
		r := verify(t, ring, c.lines, c.rows)
		var got []string
		for _, f := range r.Findings {
			got = append(got, f.Place+": "+f.What)
		}
		ok := len(got) == len(c.finds)
		for i := range min(len(got), len(c.finds)) {
			ok = ok && strings.HasPrefix(got[i], c.finds[i])
		}
		if !ok {
			t.Errorf("%s: found\n%q, want\n%q", name, got, c.finds)
		}
		if !strings.Contains(r.Unknown, c.unknown) {
			t.Errorf("%s: it says %q, want %q", name, r.Unknown, c.unknown)
		}
	}
}

// A syslog has other lines too, and something before ours.
func TestCheckpointsFromSyslog(t *testing.T) {
	key, ring := keyAndRing(t)
	l := newLog(t, 4)
	line, err := key.SignCheckpoint(seal.Checkpoint{Writer: "another", Count: 99, Head: "sha256:" + sandbox.Digest(strings.Repeat("0", 64)), Time: start})
	if err != nil {
		t.Fatal(err)
	}
	lines := "Nov 23 12:00:00 host sshd[1]: hello\n\nNov 23 12:00:04 host tartarus-audit[7]: " + checkpoint(t, key, l, 4) +
		"Nov 23 12:00:05 host tartarus-audit[7]: " + string(line)
	r := verify(t, ring, lines, l.rows(t))
	if len(r.Findings) != 0 || r.Foreign != 1 || r.Others != 1 || r.Checkpoints != 1 || r.Covered != 4 {
		t.Errorf("%+v", r)
	}
	v := mnemosyne.NewVerifier("up", ring)
	if err := v.ReadCheckpoints("big", strings.NewReader(strings.Repeat("x", 1<<20))); !fault.Is(err, fault.InvalidArgument) {
		t.Errorf("a line without end: %v", err)
	}
}

// Who rewrote everything is not told of every entry.
func TestFindingsAreBounded(t *testing.T) {
	rows := newLog(t, 200).rows(t)
	for i := range rows {
		rows[i].Tenant = "other"
	}
	if r := verify(t, nil, "", rows); len(r.Findings) != 20 || r.More != 180 {
		t.Errorf("%d findings and %d more", len(r.Findings), r.More)
	}
}

// FuzzVerify checks whatever a file or a server may hold in the place of
// checkpoints and of a row: nothing but what was signed is a checkpoint, and
// nothing but the entry that was written is one.
func FuzzVerify(f *testing.F) {
	key, ring := keyAndRing(f)
	l := newLog(f, 2)
	good, rows := checkpoint(f, key, l, 2), l.rows(f)
	f.Add(good, rows[0].Text, int64(1), "acme")
	f.Add(good[:len(good)-9], rows[1].Text, int64(2), "")
	f.Add("Nov 23 host x: "+good+"{", []byte(`{"seq":1,"seq":1}`), int64(-1), "\xff")
	f.Fuzz(func(t *testing.T, lines string, text []byte, seq int64, tenant string) {
		v := mnemosyne.NewVerifier("up", ring)
		if err := v.ReadCheckpoints("kept", strings.NewReader(lines)); err != nil {
			return
		}
		row := ledger.AuditRow{Seq: seq, Tenant: tenant, Text: text}
		v.Entry(row)
		v.Entry(rows[1])
		r := v.Report()
		if r.Checkpoints > 0 && !strings.Contains(lines, strings.TrimSpace(good)) {
			t.Errorf("%q holds a checkpoint", lines)
		}
		if written := seq == 1 && tenant == "acme" && bytes.Equal(text, rows[0].Text); !written && len(r.Findings) == 0 {
			t.Errorf("row %+v passes for what was written", row)
		}
	})
}
