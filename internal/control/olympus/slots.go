package olympus

import (
	"sync"
	"time"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// slots bounds the streams and waits that a tenant has open.
type slots struct {
	most int
	mu   sync.Mutex
	used map[string]int // by tenant; no entry for none
}

func newSlots(most int) *slots { return &slots{most: most, used: map[string]int{}} }

// take is one more for tenant, until release is called.
func (s *slots) take(tenant string) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[tenant] >= s.most {
		return nil, fault.New(fault.QuotaExceeded, "tenant %q has %d streams and waits open, of %d", tenant, s.used[tenant], s.most).
			WithHint("Close some, or poll the record instead.").WithRetryAfter(time.Second)
	}
	s.used[tenant]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.used[tenant]--; s.used[tenant] == 0 {
			delete(s.used, tenant)
		}
	}, nil
}
