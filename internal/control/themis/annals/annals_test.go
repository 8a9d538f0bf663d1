package annals_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/control/ledger/memledger"
	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/control/themis/annals"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

const head = "version: 1\ntenants: {local: }\n"

func parse(t *testing.T, text string) *themis.Policy {
	t.Helper()
	p, err := themis.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func clock() time.Time { return time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC) }

func TestActivationIsAuditedWithItsDifference(t *testing.T) {
	ctx := t.Context()
	l := memledger.New()
	a := annals.New(l, clock)
	one, two := parse(t, head), parse(t, head+"templates: [base]\n")
	for _, p := range []*themis.Policy{one, one, two, two} {
		if err := a.Activate(ctx, p, "/etc/policy.yaml"); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := l.ActivePolicy(ctx)
	if err != nil || kept.Version != two.Version() || kept.Text != two.Text() || kept.Origin != "/etc/policy.yaml" || !kept.ActivatedAt.Equal(clock()) {
		t.Errorf("active is %+v, %v", kept, err)
	}
	if old, err := l.Policy(ctx, one.Version()); err != nil || old.Text != head {
		t.Errorf("the old one is %+v, %v", old, err)
	}
	all, err := l.AuditEntries(ctx, ledger.AuditQuery{})
	if err != nil || len(all) != 2 {
		t.Fatalf("%d audit entries, %v", len(all), err)
	}
	if all[0].PolicyVersion != one.Version() || all[0].Difference != "" || !strings.Contains(all[0].Reasons[0].Message, "no policy held before") {
		t.Errorf("the first is %+v", all[0])
	}
	const want = "@@ -1,2 +1,3 @@\n version: 1\n tenants: {local: }\n+templates: [base]\n"
	if e := all[1]; e.Action != "policy.activate" || e.PolicyVersion != two.Version() || e.Difference != want ||
		!strings.Contains(e.Reasons[0].Message, "+1 -0 lines since "+one.Version()) {
		t.Errorf("the second is %+v", all[1])
	}
}

// busy is a ledger in which another server activates between the look and the step.
type busy struct {
	*memledger.Ledger
	other []*themis.Policy
}

func (b *busy) ActivePolicy(ctx context.Context) (ledger.Policy, error) {
	p, err := b.Ledger.ActivePolicy(ctx)
	if len(b.other) > 0 {
		next := b.other[0]
		b.other = b.other[1:]
		if _, err := b.ActivatePolicy(ctx, ledger.Policy{Version: next.Version(), Text: next.Text(), ActivatedAt: clock()}, p.Version, sandbox.AuditEntry{}); err != nil {
			return p, err
		}
	}
	return p, err
}

// The difference is to what really held before.
func TestAnotherServerComesFirst(t *testing.T) {
	b := &busy{Ledger: memledger.New(), other: []*themis.Policy{parse(t, head+"# 1\n"), parse(t, head+"# 2\n")}}
	if err := annals.New(b, clock).Activate(t.Context(), parse(t, head+"# 3\n"), ""); err != nil {
		t.Fatal(err)
	}
	all, err := b.AuditEntries(t.Context(), ledger.AuditQuery{})
	if err != nil || len(all) != 3 || !strings.Contains(all[2].Difference, "-# 2\n+# 3\n") {
		t.Errorf("%+v, %v", all, err)
	}
	for i := range 100 {
		b.other = append(b.other, parse(t, fmt.Sprintf("%s# %d\n", head, 10+i)))
	}
	if err := annals.New(b, clock).Activate(t.Context(), parse(t, head), ""); !fault.Is(err, fault.Unavailable) {
		t.Errorf("against a server that never rests: %v", err)
	}
}

type broken struct{ *memledger.Ledger }

func (broken) ActivePolicy(context.Context) (ledger.Policy, error) {
	return ledger.Policy{}, errors.New("no disk")
}

func TestWithoutItsLedgerNothingHolds(t *testing.T) {
	if err := annals.New(broken{memledger.New()}, nil).Activate(t.Context(), parse(t, head), ""); err == nil {
		t.Error("activated")
	}
}

func TestDifferenceIsBounded(t *testing.T) {
	lines := func(n int, with string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%s%d\n", with, i)
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		from, to       string
		added, removed int
		says           string
	}{
		"a line":         {"a\nb\n", "a\nc\n", 1, 1, " a\n-b\n+c\n"},
		"no last end":    {"a", "b", 1, 1, "-a\n\\ No newline at end of file\n+b\n"},
		"many":           {lines(20000, "x"), lines(30000, "y"), 30000, 20000, "more lines\n"},
		"one very long":  {"", strings.Repeat("ä", themis.MaxPolicyBytes/2), 1, 0, "@@ -0,0 +1,1 @@\n… 2 more lines\n"},
		"far apart":      {"a\n" + lines(100, "") + "b\n", "c\n" + lines(100, "") + "d\n", 2, 2, "@@ -99,4 +99,4 @@"},
		"odd characters": {"a\n", "\x1b\u202e<&>\n", 1, 1, "+\x1b\u202e<&>\n"},
	} {
		text, added, removed := annals.Difference(c.from, c.to)
		if added != c.added || removed != c.removed || !strings.Contains(text, c.says) || !strings.HasPrefix(text, "@@ ") {
			t.Errorf("%s: +%d -%d %.200q", name, added, removed, text)
		}
		if len(text) > 4<<10+100 || !utf8.ValidString(text) {
			t.Errorf("%s: %d bytes", name, len(text))
		}
	}
}
