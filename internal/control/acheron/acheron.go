// Package acheron is the request queue: what the scheduler takes requests
// from and gives them back to.
//
// The queue itself is in the ledger, so nothing admitted is lost, and a
// scheduler that dies loses only its claims, when their leases pass. Acheron
// knows when to look: it sleeps until the ledger changes or the next moment
// comes at which a request is offered again. It ends requests that waited too
// long, passes over tenants that wait for their own limits, and calls those
// that wait for room as soon as room becomes free.
package acheron

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/fault"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Ledger is what the queue needs of the book.
type Ledger interface {
	ledger.Queue
	Get(ctx context.Context, id sandbox.ID) (sandbox.Record, error)
	Usage(ctx context.Context, tenants []string) (map[string]ledger.Usage, error)
	Watch(ctx context.Context) <-chan struct{}
}

// Config is what a Queue is made of. Ledger and Owner are required.
type Config struct {
	Ledger Ledger
	Owner  string // of the claims: names this process among all that ever claim

	// Lease is how long a claim is held at most; 30 s if zero. It is long
	// enough for one try at placing, so claims are not renewed.
	Lease time.Duration

	// Backoff is how long a request that no node fitted waits before it is
	// tried again, twice as long each time up to MaxBackoff; 100 ms and 5 s if
	// zero. Pace keeps such tries apart, however many wait; 100 ms if zero, and
	// it makes nobody wait for longer than 30 s. None of it matters when room
	// becomes free: then those whose turn it is are tried at once.
	Backoff    time.Duration
	MaxBackoff time.Duration
	Pace       time.Duration

	// Poll is how often to look for what other processes did to the ledger;
	// 2 s if zero.
	Poll time.Duration

	Clock  func() time.Time // time.Now if nil
	Logger *slog.Logger     // nil: none
}

// Validate fills in the defaults and says what cannot be.
func (c *Config) Validate() error {
	if c.Ledger == nil || c.Owner == "" {
		return errors.New("acheron: Ledger and Owner are required")
	}
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{
		{&c.Lease, 30 * time.Second}, {&c.Backoff, 100 * time.Millisecond}, {&c.MaxBackoff, 5 * time.Second},
		{&c.Pace, 100 * time.Millisecond}, {&c.Poll, 2 * time.Second},
	} {
		if *d.at < 0 {
			return fmt.Errorf("acheron: a duration cannot be negative: %v", *d.at)
		}
		if *d.at == 0 {
			*d.at = d.def
		}
	}
	c.MaxBackoff = max(c.MaxBackoff, c.Backoff)
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Queue is the request queue. Make one with New; all of a process's schedulers
// share it. It owns no goroutine and needs no closing.
type Queue struct {
	cfg   Config
	watch chan struct{} // holds a value while somebody watches for all

	mu      sync.Mutex
	limited map[string]limited // by tenant: those that wait for their own limits
	looked  time.Time          // when the last thorough look at them was
	rushing time.Time          // until then requests are claimed without asking what is due
	room    room
}

// limited is the request for which a tenant waits.
type limited struct {
	id     sandbox.ID
	limits sandbox.Limits
	res    sandbox.Resources
}

// room says whether requests that wait for room are worth a try before their
// time.
type room struct {
	free    bool      // room has become free, and nothing says that it is used up
	since   time.Time // when it became free last
	tries   int       // how many may still be called early before the outcome of others is seen
	onNodes int       // as last seen
	joins   int64     // as last seen
	paced   time.Time // up to when tries are spread
}

// New makes a Queue.
func New(cfg Config) (*Queue, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Queue{cfg: cfg, watch: make(chan struct{}, 1), limited: map[string]limited{}}, nil
}

// Next waits until a request can be claimed, and claims it. The caller places
// it, gives it back with Return, or ends it with Drop, before the lease
// passes. Requests that waited too long end meanwhile.
//
// Of those that find nothing one watches for all: else each change of the
// ledger would have all of them look. When it has found something, the next
// takes its place, and looks first.
func (q *Queue) Next(ctx context.Context) (ledger.Claim, error) {
	c, ok, _, err := q.try(ctx)
	if err != nil || ok {
		return c, taking(err)
	}
	select {
	case q.watch <- struct{}{}:
		defer func() { <-q.watch }()
	case <-ctx.Done():
		return ledger.Claim{}, ctx.Err()
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := q.cfg.Ledger.Watch(watching) // before looking, so that no change is missed
	for {
		c, ok, wake, err := q.try(ctx)
		if err != nil || ok {
			return c, taking(err)
		}
		if err := q.sleep(ctx, changed, wake); err != nil {
			return ledger.Claim{}, err
		}
	}
}

func taking(err error) error {
	if err != nil {
		return fmt.Errorf("taking the next request from the queue: %w", err)
	}
	return nil
}

// shortest bounds how fast Next can go round.
const shortest = time.Millisecond

// sleep returns after a change, at wake (if that is not zero), or when it is
// time to poll.
func (q *Queue) sleep(ctx context.Context, changed <-chan struct{}, wake time.Time) error {
	d := q.cfg.Poll
	if !wake.IsZero() {
		d = min(d, max(shortest, wake.Sub(q.cfg.Clock())))
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed: // which is also closed when ctx ends
	case <-timer.C:
	}
	return ctx.Err()
}

// try claims a request if one can be claimed, else says when to look again.
func (q *Queue) try(ctx context.Context) (c ledger.Claim, ok bool, wake time.Time, err error) {
	skip, err := q.skip(ctx)
	if err != nil {
		return c, false, wake, err
	}
	now := q.cfg.Clock()
	if q.busy(now) {
		if c, ok, err = q.cfg.Ledger.Claim(ctx, q.cfg.Owner, now, q.cfg.Lease, skip); ok || err != nil {
			return c, ok, wake, err
		}
	}
	due, err := q.cfg.Ledger.Due(ctx, skip)
	if err != nil {
		return c, false, wake, err
	}
	now = q.cfg.Clock()
	if passed(due.Overdue, now) {
		if err := q.endOverdue(ctx, now); err != nil {
			return c, false, wake, err
		}
		return c, false, now, nil // look again
	}
	if q.early(due, now) {
		if c, ok, err = q.cfg.Ledger.ClaimEarly(ctx, q.cfg.Owner, now, q.cfg.Lease, skip); ok || err != nil {
			return c, ok, wake, err
		}
		q.full(now)
	} else if passed(due.Offer, now) {
		if c, ok, err = q.cfg.Ledger.Claim(ctx, q.cfg.Owner, now, q.cfg.Lease, skip); ok || err != nil {
			q.offers(ok, now)
			return c, ok, wake, err
		}
	}
	return c, false, earliest(due.Offer, due.Overdue), nil
}

// rush is how long, after one request was offered, others are claimed without
// asking first what is due: who waits too long, and whose room became free, is
// seen so much later at most.
const rush = 10 * time.Millisecond

func (q *Queue) busy(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return now.Before(q.rushing)
}

func (q *Queue) offers(found bool, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rushing = time.Time{}
	if found {
		q.rushing = now.Add(rush)
	}
}

// early notes what due tells of the nodes, and says whether those that wait
// for room are to be tried before their time.
func (q *Queue) early(due ledger.Due, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := &q.room
	ended, joined := max(0, r.onNodes-due.OnNodes), due.Joins > r.joins
	if ended > 0 || joined {
		r.free, r.since = true, now
		r.tries = min(mostTries, r.tries+ended+1)
	}
	if joined {
		r.tries = mostTries
	}
	// Each that was placed calls another: there may be room for more of them.
	r.tries = min(mostTries, r.tries+max(0, due.OnNodes-r.onNodes))
	r.onNodes, r.joins = due.OnNodes, due.Joins
	if !r.free || r.tries == 0 {
		return false
	}
	r.tries--
	return true
}

// mostTries bounds how many requests are called early at once.
const mostTries = 16

// full notes that a request claimed at that time found no room.
func (q *Queue) full(claimed time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !claimed.Before(q.room.since) {
		q.room.free, q.room.tries = false, 0
	}
}

// unused notes that a request which was perhaps called early needed no room.
func (q *Queue) unused() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.room.tries = min(mostTries, q.room.tries+1)
}

// endOverdue ends the requests whose QueueTimeout has passed.
func (q *Queue) endOverdue(ctx context.Context, now time.Time) error {
	for {
		c, ok, err := q.cfg.Ledger.ClaimOverdue(ctx, q.cfg.Owner, now, q.cfg.Lease)
		if err != nil || !ok {
			return err
		}
		rec := c.Admitted.Record
		message := fmt.Sprintf("it was not placed within %v", rec.Request.QueueTimeout)
		if len(c.Waiting.Reasons) > 0 {
			message += ": " + strings.Join(c.Waiting.Reasons, ", ")
		}
		if _, err := q.Drop(ctx, c, sandbox.QueueTimeout, message); err != nil && !fault.Is(err, fault.Conflict) {
			return err
		}
		q.cfg.Logger.Debug("a request waited too long", "sandbox", rec.ID, "request_id", rec.RequestID, "tenant", rec.Tenant)
	}
}

// Return gives a claim back. w tells why it was not placed. tenantLimited: it
// waits for its tenant's own limits, and the tenant is passed over until
// enough of it has ended; otherwise no node fitted, and it is tried again
// later, or when room becomes free. A claim that is no longer held is a
// Conflict.
func (q *Queue) Return(ctx context.Context, c ledger.Claim, w ledger.Waiting, tenantLimited bool) error {
	now := q.cfg.Clock()
	var notBefore time.Time
	if tenantLimited {
		q.unused()
		rec := c.Admitted.Record
		// Whether that still holds is asked before the next claim, of what is
		// in use then: so an end that comes meanwhile is not missed.
		q.mu.Lock()
		q.limited[rec.Tenant] = limited{id: rec.ID, limits: c.Admitted.Limits, res: rec.Request.Resources}
		q.mu.Unlock()
		notBefore = now.Add(again)
	} else {
		q.full(c.Until.Add(-q.cfg.Lease))
		notBefore = q.retryAt(c, w, now)
	}
	if err := q.cfg.Ledger.Release(ctx, c, notBefore, w); err != nil {
		return fmt.Errorf("giving %s back to the queue: %w", c.Admitted.Record.ID, err)
	}
	return nil
}

// again is the least pause between two tries of a request that waits for its
// tenant's limit.
const again = 10 * time.Millisecond

// longest bounds how long pacing makes a request wait.
const longest = 30 * time.Second

// retryAt is when a request that found no room is tried again: after its
// backoff, apart from the others, but in time for being given up.
func (q *Queue) retryAt(c ledger.Claim, w ledger.Waiting, now time.Time) time.Time {
	at := now.Add(q.backoff(c.Token))
	q.mu.Lock()
	q.room.paced = latest(q.room.paced, now).Add(q.cfg.Pace)
	at = latest(at, q.room.paced)
	if limit := now.Add(max(longest, q.cfg.MaxBackoff)); at.After(limit) {
		at = limit
	}
	q.mu.Unlock()
	if wait := c.Admitted.Record.Request.CapacityWait; wait > 0 && !w.NoNodeSince.IsZero() {
		if giveUp := w.NoNodeSince.Add(wait); giveUp.After(now) && giveUp.Before(at) {
			at = giveUp
		}
	}
	return at
}

// backoff is the pause after a claim: its token counts the tries.
func (q *Queue) backoff(token int64) time.Duration {
	d := q.cfg.Backoff
	for ; token > 1 && d < q.cfg.MaxBackoff; token-- {
		d *= 2
	}
	return min(d, q.cfg.MaxBackoff)
}

// Drop ends a claimed request in the queue. A claim that is no longer held is
// a Conflict.
func (q *Queue) Drop(ctx context.Context, c ledger.Claim, cause sandbox.Cause, message string) (sandbox.Record, error) {
	q.unused()
	rec, err := q.cfg.Ledger.Drop(ctx, c, sandbox.End{
		At:   q.cfg.Clock(),
		Exit: sandbox.ExitRecord{Cause: cause, Source: cause.Source(), Message: message},
	})
	if err != nil {
		return rec, fmt.Errorf("ending %s in the queue: %w", c.Admitted.Record.ID, err)
	}
	return rec, nil
}

// skip is the tenants that wait for their own limits, after a look at who need
// not any more. Once in a while the look is thorough, and also finds requests
// that have left the queue otherwise.
func (q *Queue) skip(ctx context.Context) ([]string, error) {
	now := q.cfg.Clock()
	q.mu.Lock()
	thorough := now.Sub(q.looked) >= q.cfg.Poll
	if thorough {
		q.looked = now
	}
	waiting := make(map[string]limited, len(q.limited))
	var tenants []string
	for t, l := range q.limited {
		waiting[t] = l
		tenants = append(tenants, t)
	}
	q.mu.Unlock()
	if len(tenants) == 0 {
		return nil, nil
	}
	usage, err := q.cfg.Ledger.Usage(ctx, tenants)
	if err != nil {
		return nil, err
	}
	var skip []string
	for _, t := range tenants {
		l := waiting[t]
		over := usage[t].Fits(l.limits, l.res) == nil
		if !over && thorough {
			rec, err := q.cfg.Ledger.Get(ctx, l.id)
			if err != nil && !fault.Is(err, fault.NotFound) {
				return nil, err
			}
			over = err != nil || rec.State != sandbox.Queued
		}
		if over {
			q.forget(t, l)
		} else {
			skip = append(skip, t)
		}
	}
	return skip, nil
}

// forget removes a tenant that waited for l, unless it waits for another now.
func (q *Queue) forget(tenant string, l limited) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.limited[tenant] == l {
		delete(q.limited, tenant)
	}
}

// Depth is how much waits, for metrics.
type Depth struct {
	Ready   int           // offered now, those of limited tenants too
	Waiting int           // for room
	Claimed int           // being placed
	Limited int           // tenants that wait for their own limits
	Oldest  time.Duration // age of the oldest; 0 if there is none
}

// Depth counts the queue.
func (q *Queue) Depth(ctx context.Context) (Depth, error) {
	now := q.cfg.Clock()
	b, err := q.cfg.Ledger.Backlog(ctx, now)
	if err != nil {
		return Depth{}, fmt.Errorf("counting the queue: %w", err)
	}
	d := Depth{Ready: b.Ready, Waiting: b.Waiting, Claimed: b.Claimed}
	if !b.Oldest.IsZero() {
		d.Oldest = max(0, now.Sub(b.Oldest))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	d.Limited = len(q.limited)
	return d, nil
}

func passed(t, now time.Time) bool { return !t.IsZero() && !t.After(now) }

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// earliest is the first of a and b, where zero is never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
