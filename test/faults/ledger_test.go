package faults_test

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// brittle is a ledger whose steps are named and watched.
type brittle struct {
	ledger.Ledger
	w *watch
}

// reads are the operations that change nothing. Those that are not brittle's
// differ in nothing from those that are.
var reads = []string{"Get", "Admitted", "List", "Events", "Watch", "Live", "Usage", "Nodes", "Due", "Backlog", "AuditEntries", "AuditRows", "AuditHead", "TokenByHash", "ListTokens", "ActivePolicy", "Policy", "ListPolicies", "Close"}

func (b brittle) step(name string, id sandbox.ID, do func() error) error {
	_, err := answer(b, name, id, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// answer is a step that answers something, which is lost when it fails after.
func answer[T any](b brittle, name string, id sandbox.ID, do func() (T, error)) (T, error) {
	var none T
	if err := b.w.pass("ledger "+name, id, false); err != nil {
		return none, err
	}
	v, err := do()
	if err != nil {
		return v, err
	}
	if err := b.w.pass("ledger "+name, id, true); err != nil {
		return none, err
	}
	return v, nil
}

type admission struct {
	rec     sandbox.Record
	created bool
}

func (b brittle) Admit(ctx context.Context, a sandbox.Admitted, audit sandbox.AuditEntry, key ledger.IdempotencyKey) (sandbox.Record, bool, error) {
	v, err := answer(b, "admit", a.Record.ID, func() (v admission, err error) {
		v.rec, v.created, err = b.Ledger.Admit(ctx, a, audit, key)
		return v, err
	})
	return v.rec, v.created, err
}

func (b brittle) Refuse(ctx context.Context, rec sandbox.Record, audit sandbox.AuditEntry) error {
	return b.step("refuse", rec.ID, func() error { return b.Ledger.Refuse(ctx, rec, audit) })
}

func (b brittle) Audit(ctx context.Context, audit sandbox.AuditEntry) error {
	return b.step("audit", audit.Sandbox, func() error { return b.Ledger.Audit(ctx, audit) })
}

// claim is done only where there was something to claim.
func (b brittle) claim(name string, do func() (ledger.Claim, bool, error)) (ledger.Claim, bool, error) {
	if err := b.w.pass("ledger "+name, "", false); err != nil {
		return ledger.Claim{}, false, err
	}
	c, ok, err := do()
	if err != nil || !ok {
		return c, ok, err
	}
	if err := b.w.pass("ledger "+name, c.Admitted.Record.ID, true); err != nil {
		return ledger.Claim{}, false, err
	}
	return c, ok, nil
}

func (b brittle) Claim(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (ledger.Claim, bool, error) {
	return b.claim("claim", func() (ledger.Claim, bool, error) { return b.Ledger.Claim(ctx, owner, now, lease, skip) })
}

func (b brittle) ClaimEarly(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (ledger.Claim, bool, error) {
	return b.claim("claim early", func() (ledger.Claim, bool, error) { return b.Ledger.ClaimEarly(ctx, owner, now, lease, skip) })
}

func (b brittle) ClaimOverdue(ctx context.Context, owner string, now time.Time, lease time.Duration) (ledger.Claim, bool, error) {
	return b.claim("claim overdue", func() (ledger.Claim, bool, error) { return b.Ledger.ClaimOverdue(ctx, owner, now, lease) })
}

func (b brittle) Release(ctx context.Context, c ledger.Claim, notBefore time.Time, waiting ledger.Waiting) error {
	return b.step("release", c.Admitted.Record.ID, func() error { return b.Ledger.Release(ctx, c, notBefore, waiting) })
}

func (b brittle) Drop(ctx context.Context, c ledger.Claim, end sandbox.End) (sandbox.Record, error) {
	return answer(b, "drop", c.Admitted.Record.ID, func() (sandbox.Record, error) { return b.Ledger.Drop(ctx, c, end) })
}

func (b brittle) Place(ctx context.Context, c ledger.Claim, node string, epoch int64, now time.Time) (sandbox.Assignment, error) {
	return answer(b, "place", c.Admitted.Record.ID, func() (sandbox.Assignment, error) { return b.Ledger.Place(ctx, c, node, epoch, now) })
}

func (b brittle) Requeue(ctx context.Context, a sandbox.Assignment, notBefore time.Time, reason string) error {
	return b.step("requeue", a.Sandbox, func() error { return b.Ledger.Requeue(ctx, a, notBefore, reason) })
}

func (b brittle) Accept(ctx context.Context, a sandbox.Assignment, now time.Time) error {
	return b.step("accept", a.Sandbox, func() error { return b.Ledger.Accept(ctx, a, now) })
}

func (b brittle) Advance(ctx context.Context, a sandbox.Assignment, p sandbox.Progress) error {
	return b.step("advance", a.Sandbox, func() error { return b.Ledger.Advance(ctx, a, p) })
}

func (b brittle) End(ctx context.Context, a sandbox.Assignment, end sandbox.End) (sandbox.Record, error) {
	return answer(b, "end", a.Sandbox, func() (sandbox.Record, error) { return b.Ledger.End(ctx, a, end) })
}

func (b brittle) Kill(ctx context.Context, id sandbox.ID, cause sandbox.Cause, now time.Time, audit sandbox.AuditEntry) (sandbox.Record, error) {
	return answer(b, "kill", id, func() (sandbox.Record, error) { return b.Ledger.Kill(ctx, id, cause, now, audit) })
}

func (b brittle) Join(ctx context.Context, node sandbox.Node) (int64, error) {
	return answer(b, "join", "", func() (int64, error) { return b.Ledger.Join(ctx, node) })
}

func (b brittle) Prune(ctx context.Context, keep ledger.Retention, now time.Time) (int, error) {
	return answer(b, "prune", "", func() (int, error) { return b.Ledger.Prune(ctx, keep, now) })
}

func (b brittle) ActivatePolicy(ctx context.Context, p ledger.Policy, before string, audit sandbox.AuditEntry) (bool, error) {
	return answer(b, "activate policy", "", func() (bool, error) { return b.Ledger.ActivatePolicy(ctx, p, before, audit) })
}

func (b brittle) PutToken(ctx context.Context, t ledger.Token) error {
	return b.step("put token", "", func() error { return b.Ledger.PutToken(ctx, t) })
}

func (b brittle) RevokeToken(ctx context.Context, id string, at time.Time) error {
	return b.step("revoke token", "", func() error { return b.Ledger.RevokeToken(ctx, id, at) })
}

func (b brittle) TouchTokens(ctx context.Context, used map[string]time.Time) error {
	return b.step("touch tokens", "", func() error { return b.Ledger.TouchTokens(ctx, used) })
}

func (b brittle) Due(ctx context.Context, skip []string) (ledger.Due, error) {
	return answer(b, "due", "", func() (ledger.Due, error) { return b.Ledger.Due(ctx, skip) })
}

func (b brittle) Nodes(ctx context.Context) ([]sandbox.Node, error) {
	return answer(b, "nodes", "", func() ([]sandbox.Node, error) { return b.Ledger.Nodes(ctx) })
}

func (b brittle) List(ctx context.Context, q ledger.Query) (ledger.Page, error) {
	return answer(b, "list", "", func() (ledger.Page, error) { return b.Ledger.List(ctx, q) })
}

// TestEveryStepOfTheLedgerIsWatched: an operation that is added to the seam
// must be a step here, or one that only reads.
func TestEveryStepOfTheLedgerIsWatched(t *testing.T) {
	seam := reflect.TypeFor[ledger.Ledger]()
	for i := range seam.NumMethod() {
		name := seam.Method(i).Name
		_, inTable := stepOf("ledger " + plain(name))
		if !inTable && !slices.Contains(reads, name) {
			t.Errorf("the ledger's step %s is not in the table of faults", name)
		}
	}
}

// plain is a method's name in plain words: ClaimEarly is "claim early".
func plain(name string) string {
	var b strings.Builder
	for i, r := range name {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}
