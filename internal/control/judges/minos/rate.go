package minos

import (
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/tartarus-vm/tartarus/internal/control/themis"
	"github.com/tartarus-vm/tartarus/internal/fault"
)

// Rate bounds how often tenants may ask for a run. It lives in memory: it
// protects the server from a flood, and is not what a tenant is owed. The zero
// value is ready; it may be used by many at once, and must not be copied.
//
// It holds one small entry for each tenant that was ever asked about, and only
// tenants that the policy names are.
type Rate struct {
	mu      sync.Mutex
	tenants map[string]*limited // guarded by mu
}

type limited struct {
	limiter *rate.Limiter
	quota   themis.Quota // that the limiter was set to
}

// Allow takes one run from the tenant's rate, or says QuotaExceeded with the
// time after which one will be there. A refused one takes nothing.
func (r *Rate) Allow(t themis.Tenant, now time.Time) error {
	q := t.Quota
	l := r.limiter(t, now)
	res := l.ReserveN(now, 1)
	if !res.OK() {
		return fault.New(fault.QuotaExceeded, "the tenant may ask for no runs: rate_per_minute %d, burst %d", q.RatePerMinute, q.Burst).
			WithHint("Ask an operator for a larger quota.")
	}
	wait := res.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	res.CancelAt(now)
	refusal := fault.New(fault.QuotaExceeded, "the tenant asked for more runs than rate_per_minute %d with burst %d allows", q.RatePerMinute, q.Burst)
	if wait == rate.InfDuration {
		return refusal.WithHint("Ask an operator for a larger quota.")
	}
	return refusal.WithHint("Try again later, or ask an operator for a larger quota.").WithRetryAfter(wait)
}

// limiter is the tenant's, set to what its policy says now.
func (r *Rate) limiter(t themis.Tenant, now time.Time) *rate.Limiter {
	perSecond := rate.Limit(float64(t.Quota.RatePerMinute) / 60)
	burst := min(t.Quota.Burst, math.MaxInt32)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tenants == nil {
		r.tenants = map[string]*limited{}
	}
	l, ok := r.tenants[t.Name]
	if !ok {
		l = &limited{limiter: rate.NewLimiter(perSecond, burst), quota: t.Quota}
		r.tenants[t.Name] = l
	}
	if l.quota.RatePerMinute != t.Quota.RatePerMinute || l.quota.Burst != t.Quota.Burst {
		l.limiter.SetLimitAt(now, perSecond)
		l.limiter.SetBurstAt(now, burst)
		l.quota = t.Quota
	}
	return l.limiter
}
