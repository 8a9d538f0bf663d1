// Package ledger is the one book of the control plane: records, queue, quota
// usage, audit, idempotency keys and tokens, which must change together.
//
// The seam is Ledger; its suite is ledgertest, and every back end passes it.
// Each operation is a whole step, atomic: it happened or it did not, whatever
// is killed in the middle. The record is the truth. What a tenant or a node
// has in use is a sum over live records; there is no counter that can leak.
//
// Components declare the two or three methods they need of it.
package ledger

import (
	"context"
	"time"

	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Ledger is every step there is. All may be called at once, by any number of
// processes on the same store. Times are given by the caller, so that the
// ledger has no clock of its own.
//
// Errors have the kinds of package fault: NotFound, Conflict for a step that
// the state or a later attempt forbids, QuotaExceeded for a limit, Unavailable
// when the store cannot take it now.
type Ledger interface {
	Admissions
	Queue
	Placements
	Book
	Audits
	Tokens
	Policies

	// Close ends the use of the store. Steps under way finish first.
	Close() error
}

// Admissions is how requests enter.
type Admissions interface {
	// Admit writes a queued record, its place in the queue, its sealed
	// secrets and its audit entry, durably, if the tenant's Limits.Live
	// allows one more. With a key it also writes that; a key that is there
	// with the same hash returns the record it made, and created is false; with
	// another hash it is a Conflict. A refusal for quota writes nothing, and
	// neither does a repeat. A key lives until its Expires, as seen from the
	// new request's CreatedAt; it outlives the record if Prune removes that
	// first, and is then a Conflict. An ID that is taken is a Conflict.
	//
	// The record's first event is at the audit entry's Time, and its judged
	// timing ends there unless it was set.
	Admit(ctx context.Context, a sandbox.Admitted, audit sandbox.AuditEntry, key IdempotencyKey) (rec sandbox.Record, created bool, err error)

	// Refuse writes a refused record (State Refused) and its audit entry. It
	// ended at that entry's Time, unless EndedAt was set.
	Refuse(ctx context.Context, rec sandbox.Record, audit sandbox.AuditEntry) error

	// Audit appends one entry to the chain: its Seq and PrevDigest are set.
	// PrevDigest is AuditDigest of the entry before, "" for the first.
	Audit(ctx context.Context, audit sandbox.AuditEntry) error
}

// IdempotencyKey remembers what a key asked for. The zero value is none.
type IdempotencyKey struct {
	Key     string
	Hash    sandbox.Digest // of the request's body as sent
	Expires time.Time
}

// Queue is how admitted requests leave, at most one holder at a time.
type Queue interface {
	// Claim takes the request that is next for owner until lease passes, and
	// false if there is none. Among the tenants that wait, the one with the
	// fewest sandboxes on nodes goes first, and among equals the one that was
	// served longest ago; within a tenant the oldest. A request is not offered
	// before its NotBefore, nor while another's claim on it lives; tenants in
	// skip are passed over.
	Claim(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (Claim, bool, error)

	// ClaimEarly is Claim without regard to NotBefore: room has become free.
	ClaimEarly(ctx context.Context, owner string, now time.Time, lease time.Duration, skip []string) (Claim, bool, error)

	// ClaimOverdue takes the request whose QueueTimeout (0: none) passed
	// longest ago, whoever's it is and whatever its NotBefore. While another's
	// claim on it lives it is not offered.
	ClaimOverdue(ctx context.Context, owner string, now time.Time, lease time.Duration) (Claim, bool, error)

	// Release gives a claim back, to be offered again from notBefore on. A
	// claim that is no longer held is a Conflict; one whose lease has passed
	// is held as long as nobody else took it.
	Release(ctx context.Context, c Claim, notBefore time.Time, waiting Waiting) error

	// Drop ends a claimed request in the queue (queue_timeout, no_capacity), as
	// End does. A claim that is no longer held is a Conflict, so that a slow
	// holder cannot end what another has placed meanwhile.
	Drop(ctx context.Context, c Claim, end sandbox.End) (sandbox.Record, error)

	// Due says when there is something to claim next, passing over the
	// tenants in skip for Due.Offer.
	Due(ctx context.Context, skip []string) (Due, error)

	// Backlog counts the queue, for metrics.
	Backlog(ctx context.Context, now time.Time) (Backlog, error)
}

// Due says when the queue has something to do. A zero time is never.
type Due struct {
	Offer   time.Time // from then on Claim finds something
	Overdue time.Time // from then on ClaimOverdue finds something
	OnNodes int       // sandboxes on nodes: when it falls, room has become free
	Joins   int64     // of nodes, ever: when it grows, room has been added
}

// Backlog counts what is queued.
type Backlog struct {
	Ready   int       // offered now
	Waiting int       // not before a later time
	Claimed int       // held by a scheduler
	Oldest  time.Time // CreatedAt of the oldest of all; zero if none
}

// Claim is a queued request held by one scheduler. Its Admitted is whole.
type Claim struct {
	Admitted sandbox.Admitted
	Owner    string
	Token    int64     // grows with every claim of this request
	Until    time.Time // when the lease ends
	Waiting  Waiting   // as Release last said
}

// Waiting says why a request was not placed when it was last tried.
type Waiting struct {
	NoNodeSince time.Time `json:"no_node_since,omitzero"` // zero while nodes fit, or while it waits for its own limit
	Reasons     []string  `json:"reasons,omitempty"`      // by kind and count, without node names
}

// Placements is what becomes of a claimed request. After Place, each step
// names the whole assignment: one that a later attempt or epoch has overtaken
// is a Conflict, and repeating a step that was done is no error.
type Placements interface {
	// Place binds a claimed request to a node: queued → assigned, attempt
	// one higher. It is refused with QuotaExceeded when the tenant's limits
	// (running, vCPUs, memory, disk) or with Unavailable when the node's
	// capacity would be passed, both as sums over live records, or the node's
	// epoch is not epoch; with Conflict when the claim is no longer held (its
	// lease has passed, too) or there is no such node. A tenant's memory is the plain MemoryMiB; a
	// node's counts sandbox.VMOverheadMiB for each sandbox besides. An answer
	// that was lost is not repeated: the record tells what became of it.
	Place(ctx context.Context, c Claim, node string, epoch int64, now time.Time) (sandbox.Assignment, error)

	// Requeue gives a refused or fenced assignment back: assigned → queued.
	// It is a Conflict once the assignment was accepted. A record with a Kill
	// already set ends with it instead. The event, and such an end, are at
	// notBefore, or at AssignedAt if that is later.
	Requeue(ctx context.Context, a sandbox.Assignment, notBefore time.Time, reason string) error

	// Accept records durably that the node accepted: assigned → starting. The
	// order to execute leaves only after this has returned nil. A record with
	// a Kill already set is a Conflict.
	Accept(ctx context.Context, a sandbox.Assignment, now time.Time) error

	// Advance records what the node tells of an accepted sandbox. Facts that
	// are there already stay: the first word counts. With Stopping its cause
	// becomes the record's Kill, unless that is set.
	Advance(ctx context.Context, a sandbox.Assignment, p sandbox.Progress) error

	// End writes the end, durably, and erases the secrets. The first end
	// stays: ending an ended sandbox is no error and changes nothing. The exit
	// record is written as given, Kill or not; an empty Source becomes the
	// cause's. A sandbox that no node accepted cannot have succeeded: Conflict.
	// Assignment is only checked when its Attempt is not 0 (0: it ends from
	// the queue, or whatever its attempt). A fenced assignment that no other
	// has overtaken may end: a node that joins again tells so what became of
	// what it had.
	End(ctx context.Context, a sandbox.Assignment, end sandbox.End) (sandbox.Record, error)

	// Kill records that a sandbox is to be ended, with the cause: a queued one
	// ends at once, a live one keeps the first cause until its node carries it
	// out, an ended one is returned as it is. The audit entry is written too,
	// unless there is no such sandbox.
	Kill(ctx context.Context, id sandbox.ID, cause sandbox.Cause, now time.Time, audit sandbox.AuditEntry) (sandbox.Record, error)
}

// Book is what can be read, and what belongs to nodes.
type Book interface {
	Get(ctx context.Context, id sandbox.ID) (sandbox.Record, error)

	// Admitted is the whole of a live request, for the order to its node.
	Admitted(ctx context.Context, id sandbox.ID) (sandbox.Admitted, error)

	// List returns a page, newest first.
	List(ctx context.Context, q Query) (Page, error)

	// Events returns the changes of state of a sandbox with Seq > after.
	Events(ctx context.Context, id sandbox.ID, after int64) ([]sandbox.Event, error)

	// Watch returns a channel that gets a value after any change that this
	// process made since the last was received; it never blocks a step. It is
	// closed when ctx ends. Other processes' changes may not be seen: pair it
	// with a slow poll.
	Watch(ctx context.Context) <-chan struct{}

	// Live counts the live records by state, for metrics. It costs what there
	// is of them, however many have ended.
	Live(ctx context.Context) (map[sandbox.State]int, error)

	// Usage tells what tenants have in use now, by tenant; all tenants with
	// live records if none is named. It is a sum over live records.
	Usage(ctx context.Context, tenants []string) (map[string]Usage, error)

	// Join makes a node known and returns its new epoch, one higher than any
	// it had. From then on assignments of older epochs are fenced.
	Join(ctx context.Context, node sandbox.Node) (epoch int64, err error)

	// Nodes returns every node, by ID, with what live records of any epoch use
	// of it: VMOverheadMiB is in it for each.
	Nodes(ctx context.Context) ([]sandbox.Node, error)

	// Prune removes ended records that are too many or too old, their events
	// and expired idempotency keys. Too many are those beyond the Count that
	// ended last; too old those that ended more than Age ago. Audit entries
	// and live records stay. Policies that were replaced PolicyGrace ago go
	// once no record names them.
	Prune(ctx context.Context, keep Retention, now time.Time) (removed int, err error)
}

// Audits is the audit chain as it can be read.
type Audits interface {
	// AuditEntries returns the entries that q selects, oldest first.
	AuditEntries(ctx context.Context, q AuditQuery) ([]sandbox.AuditEntry, error)

	// AuditRows returns entries with Seq > after as they are stored, whatever
	// became of them, oldest first; limit is as in AuditQuery.
	AuditRows(ctx context.Context, after int64, limit int) ([]AuditRow, error)

	// AuditHead is where the chain ends now.
	AuditHead(ctx context.Context) (AuditHead, error)
}

// Query selects records. The zero value is every record of all tenants.
type Query struct {
	Tenant string // "" for all
	States []sandbox.State
	Labels map[string]string // all must match
	Node   string
	Before sandbox.ID // only older ones; how pages follow each other
	Limit  int        // 100 if zero, at most 1000
}

// Page is part of a list.
type Page struct {
	Records []sandbox.Record
	More    bool
}

// Retention says how long ended records are kept.
type Retention struct {
	Age   time.Duration // 0: for ever
	Count int           // 0: any number
}

// Tokens are the callers' keys. Only the SHA-256 of a token is ever stored.
type Tokens interface {
	// PutToken stores a token. Storing the very same again is no error;
	// another with its ID or its hash is a Conflict.
	PutToken(ctx context.Context, t Token) error
	// TokenByHash is NotFound for one that is not there; expiry and
	// revocation are for the caller to judge.
	TokenByHash(ctx context.Context, hash [32]byte) (Token, error)
	// ListTokens returns a tenant's tokens, or all with "", oldest first.
	ListTokens(ctx context.Context, tenant string) ([]Token, error)
	// RevokeToken sets RevokedAt; the first time stays.
	RevokeToken(ctx context.Context, id string, at time.Time) error
	// TouchTokens sets when tokens, by ID, were used last; a later time stays,
	// and one that is not there is passed over.
	TouchTokens(ctx context.Context, used map[string]time.Time) error
}

// Token is what is kept of a token.
type Token struct {
	ID         string
	Hash       [32]byte
	Tenant     string
	Scopes     []sandbox.Scope
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
	RevokedAt  time.Time // zero: not revoked
	LastUsedAt time.Time // by about a minute; zero: never
}

// AuditQuery selects audit entries. What is empty selects all.
type AuditQuery struct {
	Tenant   string
	Action   string
	Decision sandbox.Decision
	Sandbox  sandbox.ID
	Since    time.Time // from then on
	Until    time.Time // before then
	After    int64     // Seq
	Limit    int       // 100 if zero, at most 1000
}

// Selects reports whether q selects e, its Limit apart.
func (q AuditQuery) Selects(e sandbox.AuditEntry) bool {
	return e.Seq > q.After &&
		(q.Tenant == "" || e.Tenant == q.Tenant) &&
		(q.Action == "" || e.Action == q.Action) &&
		(q.Decision == "" || e.Decision == q.Decision) &&
		(q.Sandbox == "" || e.Sandbox == q.Sandbox) &&
		(q.Since.IsZero() || !e.Time.Before(q.Since)) &&
		(q.Until.IsZero() || e.Time.Before(q.Until))
}

// The bounds of pages.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// PageSize is the number of entries that a query's Limit asks for.
func PageSize(limit int) int {
	switch {
	case limit <= 0:
		return DefaultPage
	case limit > MaxPage:
		return MaxPage
	}
	return limit
}
