// Package atropos is the binding step of the scheduler: she reserves the best
// node and assigns, or tells why it must wait.
package atropos

import (
	"context"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Ledger is what binding needs of the book.
type Ledger interface {
	Place(ctx context.Context, c ledger.Claim, node string, epoch int64, now time.Time) (sandbox.Assignment, error)
	Requeue(ctx context.Context, a sandbox.Assignment, notBefore time.Time, reason string) error
	Get(ctx context.Context, id sandbox.ID) (sandbox.Record, error)
}

// Orders carries assignments to nodes (hades).
type Orders interface {
	Assign(ctx context.Context, a sandbox.Assignment, adm sandbox.Admitted) error
}

// Binder binds.
type Binder struct {
	Ledger Ledger
	Orders Orders
	Clock  func() time.Time
	Logger *slog.Logger
}

// Outcome is what became of a request.
type Outcome int

// The outcomes. With TenantLimit and NodesFull the caller still holds the
// claim; with the others it does not.
const (
	Bound       Outcome = iota // a node took it, or it is known no more whether one did and the node's lease decides
	Refused                    // the node refused it; it is queued again, Node says which
	TenantLimit                // the tenant has as much as it may have on nodes
	NodesFull                  // no candidate has room any more
	Overtaken                  // somebody else holds, or ended, it
)

// refusalPause keeps a refused request from being offered in a tight circle.
const refusalPause = 200 * time.Millisecond

// Bind reserves the first candidate that still has room and sends the
// assignment. node is where it went, or who refused it.
func (b *Binder) Bind(ctx context.Context, c ledger.Claim, candidates []sandbox.Node) (o Outcome, node string, err error) {
	for _, n := range candidates {
		a, err := b.Ledger.Place(ctx, c, n.ID, n.Epoch, b.Clock())
		switch {
		case err == nil:
			o, err := b.assign(ctx, a, c.Admitted)
			return o, n.ID, err
		case fault.Is(err, fault.QuotaExceeded):
			return TenantLimit, "", nil
		case fault.Is(err, fault.Unavailable):
			continue // it filled up, or joined anew, since the ranking
		case fault.Is(err, fault.Conflict), fault.Is(err, fault.NotFound):
			return Overtaken, "", nil
		default:
			return Overtaken, "", err
		}
	}
	return NodesFull, "", nil
}

// assign sends an assignment until the node answers, or the record says that
// it is decided otherwise: accepted, ended, or fenced with its node.
func (b *Binder) assign(ctx context.Context, a sandbox.Assignment, adm sandbox.Admitted) (Outcome, error) {
	adm.Record.Runtime.Attempt, adm.Record.Node, adm.Record.Epoch = a.Attempt, a.Node, a.Epoch
	logger := b.Logger.With("sandbox", a.Sandbox, "request_id", adm.Record.RequestID, "node", a.Node)
	var refusal error
	send := func() (struct{}, error) {
		err := b.Orders.Assign(ctx, a, adm)
		switch {
		case err == nil:
			return struct{}{}, nil
		case isRefusal(err):
			refusal = err
			return struct{}{}, nil
		case b.decided(ctx, a):
			return struct{}{}, nil
		}
		logger.Warn("assigning is uncertain; sending it again", "error", err)
		return struct{}{}, err
	}
	if _, err := backoff.Retry(ctx, send, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxElapsedTime(0)); err != nil {
		return Bound, err
	}
	if refusal == nil {
		return Bound, nil
	}
	logger.Info("node refused a sandbox", "error", refusal)
	err := b.Ledger.Requeue(ctx, a, b.Clock().Add(refusalPause), "refused by its node: "+fault.KindOf(refusal).String())
	if fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
		return Overtaken, nil
	}
	return Refused, err
}

// isRefusal reports whether err is a node's definite no. Everything that may
// also come of a broken connection is not.
func isRefusal(err error) bool {
	switch fault.KindOf(err) {
	case fault.Conflict, fault.PolicyDenied, fault.InvalidArgument, fault.QuotaExceeded, fault.Unsupported, fault.NotFound, fault.TooLarge:
		return true
	}
	return false
}

func (b *Binder) decided(ctx context.Context, a sandbox.Assignment) bool {
	rec, err := b.Ledger.Get(ctx, a.Sandbox)
	if err != nil {
		return fault.Is(err, fault.NotFound)
	}
	return rec.State != sandbox.Assigned || rec.Runtime.Attempt != a.Attempt
}
