package census

import (
	"context"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Auditing is the steps that write audit entries.
type Auditing interface {
	ledger.Admissions
	Kill(ctx context.Context, id sandbox.ID, cause sandbox.Cause, now time.Time, audit sandbox.AuditEntry) (sandbox.Record, error)
}

// Audited is l, with those of its steps counted whose audit entry could not be
// written.
func (c *Census) Audited(l Auditing) Auditing { return audited{l, c} }

type audited struct {
	Auditing
	c *Census
}

// count counts err, unless it is an answer of the ledger.
func (a audited) count(err error) {
	switch {
	case err == nil:
	case fault.Is(err, fault.QuotaExceeded), fault.Is(err, fault.Conflict), fault.Is(err, fault.NotFound), fault.Is(err, fault.InvalidArgument):
	default:
		a.c.auditFailed.Inc()
	}
}

// Admit implements ledger.Admissions.
func (a audited) Admit(ctx context.Context, adm sandbox.Admitted, audit sandbox.AuditEntry, key ledger.IdempotencyKey) (sandbox.Record, bool, error) {
	rec, created, err := a.Auditing.Admit(ctx, adm, audit, key)
	a.count(err)
	return rec, created, err
}

// Refuse implements ledger.Admissions.
func (a audited) Refuse(ctx context.Context, rec sandbox.Record, audit sandbox.AuditEntry) error {
	err := a.Auditing.Refuse(ctx, rec, audit)
	a.count(err)
	return err
}

// Audit implements ledger.Admissions.
func (a audited) Audit(ctx context.Context, audit sandbox.AuditEntry) error {
	err := a.Auditing.Audit(ctx, audit)
	a.count(err)
	return err
}

// Kill implements ledger.Placements.
func (a audited) Kill(ctx context.Context, id sandbox.ID, cause sandbox.Cause, now time.Time, audit sandbox.AuditEntry) (sandbox.Record, error) {
	rec, err := a.Auditing.Kill(ctx, id, cause, now, audit)
	a.count(err)
	return rec, err
}
